//! Another server of the mirror API as a backend.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    Adapter, Dropped, Exchange, Fetch, Forwarded, Next, Part, Request, Response, Series, busy,
    garbage,
};
use crate::aggregate::roll_up;
use crate::model::{
    Bucket, Error, Field, FieldNamesQuery, FieldValues, FieldValuesQuery, Kind, Layout,
    MetricQuery, Millis, Points, Step, TimeRange,
};
use crate::wire::request;
use crate::wire::response::{self, Rows};

/// The header in which a mirror proves itself.
pub const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-mirror-api-key");

/// Most pages that are read for one range before the rest counts as not to be had.
const MAX_PAGES: u32 = 64;

/// Speaks the mirror API to a backend.
pub struct Mirror {
    /// The key that every answer must carry.
    pub api_key: Option<String>,
    /// Most points to ask for in one page.
    pub page: u32,
}

impl Adapter for Mirror {
    fn health(&self, details: &Forwarded) -> Exchange<()> {
        let checks = self.checks();
        let body = request::write_connection(details);
        exchange("/api/connection", body, move |response| {
            checks.pass(response)?;
            match response::read_connection(&response.body) {
                Ok(Ok(())) => Ok(Next::Done(())),
                Ok(Err(details)) => Err(Error::new(Kind::UpstreamFailed, details)),
                Err(e) => Err(garbage(response, &e.to_string())),
            }
        })
    }

    fn series(&self, fetch: &Fetch) -> Result<Vec<Part>, Error> {
        let pages = Pages {
            fetch: fetch.clone(),
            checks: self.checks(),
            limit: self.page,
        };
        let nothing = Read {
            rows: Vec::new(),
            received: 0,
            pages: 0,
        };
        let start = fetch.range.start();
        let exchange = pages.exchange(start, nothing);
        Ok(vec![Part { start, exchange }])
    }

    fn field_names(
        &self,
        details: &Forwarded,
        query: &FieldNamesQuery,
    ) -> Result<Exchange<(Vec<Field>, bool)>, Error> {
        let checks = self.checks();
        let body = request::write_field_names(details, query);
        Ok(exchange("/api/field/name", body, move |response| {
            checks.pass(response)?;
            response::read_field_names(&response.body)
                .map(Next::Done)
                .map_err(|e| garbage(response, &e.to_string()))
        }))
    }

    fn field_values(
        &self,
        details: &Forwarded,
        query: &FieldValuesQuery,
    ) -> Result<Exchange<FieldValues>, Error> {
        let checks = self.checks();
        let body = request::write_field_values(details, query);
        Ok(exchange("/api/field/value", body, move |response| {
            checks.pass(response)?;
            response::read_field_values(&response.body)
                .map(Next::Done)
                .map_err(|e| garbage(response, &e.to_string()))
        }))
    }

    fn lists_whole(&self) -> bool {
        false
    }
}

impl Mirror {
    fn checks(&self) -> Checks {
        Checks {
            api_key: self.api_key.clone(),
        }
    }
}

fn exchange<T>(
    path: &str,
    body: Vec<u8>,
    read: impl Fn(&Response) -> Result<Next<T>, Error> + Send + Sync + 'static,
) -> Exchange<T> {
    let json = HeaderValue::from_static("application/json");
    Exchange {
        request: Request {
            method: Method::POST,
            path: path.to_owned(),
            headers: vec![(CONTENT_TYPE, json)],
            body: Bytes::from(body),
        },
        read: Box::new(read),
    }
}

/// What every answer of a mirror has to pass before it is read.
#[derive(Clone)]
struct Checks {
    api_key: Option<String>,
}

impl Checks {
    fn pass(&self, response: &Response) -> Result<(), Error> {
        let key = response.headers.get(&API_KEY_HEADER);
        if let Some(expected) = &self.api_key
            && key.is_none_or(|k| k.as_bytes() != expected.as_bytes())
        {
            let what = if key.is_some() { "another" } else { "no" };
            let message = format!(
                "the upstream answered with {what} {API_KEY_HEADER}; it is not the mirror that `api_key` means"
            );
            return Err(Error::new(Kind::UpstreamFailed, message));
        }
        if let Some(error) = busy(response) {
            return Err(error);
        }
        if response.status == StatusCode::OK {
            return Ok(());
        }
        Err(failure(response))
    }
}

/// The error in a response with an error status.
fn failure(response: &Response) -> Error {
    let Some(mut error) = response::read_error(&response.body) else {
        return garbage(response, "not an answer of the mirror API");
    };
    // A mirror that says whose fault it is is believed; old ones answer 500 to everything.
    match response.status {
        StatusCode::BAD_REQUEST => error.kind = Kind::InvalidRequest,
        StatusCode::FORBIDDEN => error.kind = Kind::TargetNotAllowed,
        StatusCode::UNPROCESSABLE_ENTITY if error.kind == Kind::UpstreamFailed => {
            error.kind = Kind::TooManyPoints;
        }
        _ => {}
    }
    let ours = error.kind.origin() == crate::model::Origin::Client;
    error.retryable = !ours && response.status.is_server_error();
    error
}

/// Reads a range page by page.
#[derive(Clone)]
struct Pages {
    fetch: Fetch,
    checks: Checks,
    limit: u32,
}

/// A row as it came: value, start and, of buckets, end.
type Row = (Millis, Option<Millis>, f64);

/// What the pages so far held.
#[derive(Clone)]
struct Read {
    rows: Vec<Row>,
    received: u64,
    pages: u32,
}

impl Pages {
    /// The request for the page that starts at `start`, after what `so_far` holds.
    fn exchange(&self, start: Millis, so_far: Read) -> Exchange<Series> {
        let query = MetricQuery {
            selector: self.fetch.selector.clone(),
            metric_field: self.fetch.metric_field.clone(),
            range: TimeRange::clamped(start, self.fetch.range.end()),
            limit: Some(self.limit),
            layout: self.fetch.layout,
        };
        let body = request::write_metric(&self.fetch.details, &query);
        let pages = self.clone();
        exchange("/api/metric", body, move |response| {
            pages.checks.pass(response)?;
            pages.page(response, start, so_far.clone())
        })
    }

    fn page(
        &self,
        response: &Response,
        start: Millis,
        mut read: Read,
    ) -> Result<Next<Series>, Error> {
        let telemetry =
            response::read_metric(&response.body).map_err(|e| garbage(response, &e.to_string()))?;
        let rows: Vec<Row> = match (telemetry.rows, self.fetch.layout) {
            (Rows::Raw(points), Layout::Raw) => {
                points.into_iter().map(|(t, v)| (t, None, v)).collect()
            }
            (Rows::Buckets(buckets), Layout::Buckets { .. }) => buckets
                .into_iter()
                .map(|b| (b.range.start(), Some(b.range.end()), b.value))
                .collect(),
            (Rows::Raw(_), _) => {
                return Err(garbage(response, "raw points, buckets were asked for"));
            }
            (Rows::Buckets(_), _) => {
                return Err(garbage(response, "buckets, raw points were asked for"));
            }
        };
        let count = rows.len();
        let last = rows.iter().map(|r| r.0).max();
        // The next page starts at the last point's time, inclusive, so that time comes again.
        read.rows.retain(|r| r.0 < start);
        read.rows.extend(rows);
        read.received += count as u64;
        read.pages += 1;
        match last {
            Some(last) if telemetry.partial && last > start && read.pages < MAX_PAGES => {
                Ok(Next::More(self.exchange(last, read)))
            }
            // A mirror that says "partial" and gives nothing new cannot be read further.
            _ => Ok(Next::Done(self.series(read, !telemetry.partial))),
        }
    }

    fn series(&self, read: Read, complete: bool) -> Series {
        let mut dropped = Dropped::default();
        let mut rows = Vec::with_capacity(read.rows.len());
        for (start, end, value) in read.rows {
            let inside = match end {
                None => self.fetch.range.holds(start),
                Some(end) => TimeRange::clamped(start, end)
                    .intersection(&self.fetch.range)
                    .is_some(),
            };
            if !inside {
                dropped.outside_range += 1;
            } else if let Some(value) = dropped.admit(value, self.fetch.nan) {
                rows.push((start, end, value));
            }
        }
        let mut series = Series {
            complete,
            received: read.received,
            dropped,
            ..Series::default()
        };
        match self.fetch.layout {
            Layout::Raw => {
                let pairs = rows.into_iter().map(|(t, _, v)| (t, v)).collect();
                series.points = Points::from_unsorted(pairs);
            }
            Layout::Buckets { statistic, size } => {
                let mut buckets: Vec<Bucket> = rows
                    .into_iter()
                    .map(|(start, end, value)| Bucket {
                        value,
                        range: TimeRange::clamped(start, end.unwrap_or(start)),
                    })
                    .collect();
                buckets.sort_by_key(|b| b.range.start());
                if buckets.iter().all(|b| on_grid(b, size)) {
                    let pairs = buckets.iter().map(|b| (b.range.start(), b.value)).collect();
                    series.points = Points::from_unsorted(pairs);
                } else if let Some(points) = roll_up(&buckets, statistic, size) {
                    series.points = points;
                } else {
                    series.off_grid = Some(buckets);
                }
            }
        }
        series
    }
}

fn on_grid(bucket: &Bucket, size: Step) -> bool {
    bucket.range
        == TimeRange::clamped(
            size.floor(bucket.range.start()),
            size.floor(bucket.range.start())
                .saturating_add(size.millis()),
        )
}

#[cfg(test)]
mod tests;
