//! The built-in demonstration source: a StackState mirror with synthetic telemetry.
//!
//! It does no I/O and reads no clock: its answers depend only on the request and the given time.
//! Its data behaves like real data: it has gaps, counter resets, and late points in the newest
//! minute.

pub mod http;
mod query;
mod series;
mod signal;

use crate::model::{Error, Kind, Millis};
use crate::wire::mirror::request::{self, RequestBounds};
use crate::wire::mirror::response;

/// Most points that one query may evaluate over all matching series.
const POINTS_MAX: u64 = 2_000_000;

/// Answers one call of the mirror API; `path` is for example `/api/metric`, `now` in epoch
/// milliseconds.
pub fn answer(path: &str, body: &[u8], now: Millis) -> Result<Vec<u8>, Error> {
    // The URL of a data source often ends in a slash, so a path may begin with two.
    match path.trim_start_matches('/') {
        "api/connection" => {
            request::read_connection(body, RequestBounds::default())?;
            Ok(response::write_connection(None))
        }
        "api/field/name" => {
            query::field_names(&request::read_field_names(body, RequestBounds::default())?.query)
        }
        "api/field/value" => {
            query::field_values(&request::read_field_values(body, RequestBounds::default())?.query)
        }
        "api/metric" => query::metric(
            &request::read_metric(body, RequestBounds::default())?.query,
            now,
            POINTS_MAX,
        ),
        _ => Err(Error::new(
            Kind::PathNotFound,
            format!(
                "no such path: {path}; there are /api/connection, /api/field/name, \
                 /api/field/value and /api/metric"
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
