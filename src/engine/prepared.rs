//! Prepared queries for metric values: all that does not depend on the range is worked out once.

use std::time::Duration;

use super::Engine;
use super::lane::Lane;
use crate::model::{Details, Error, MetricQuery};

/// A query for metric values, ready to be answered for any range.
pub struct PreparedQuery {
    pub(super) lane: Lane,
    /// Most points in an answer.
    pub(super) limit: usize,
    /// The units that the backend would bill for it; where it bills by the answer, the least.
    pub(super) units: u32,
    /// The client's own limit for the request.
    pub(crate) timeout: Option<Duration>,
}

impl Engine {
    /// Prepares `query` for the upstream that `details` pick. Its range does not matter.
    ///
    /// # Errors
    ///
    /// If there is no such upstream, or it cannot answer such a query.
    pub fn prepare(&self, details: &Details, query: MetricQuery) -> Result<PreparedQuery, Error> {
        let upstream = self.registry.pick(details)?;
        let query = upstream.adapter.canonical(query)?;
        let limit = query.limit.unwrap_or(u32::MAX).min(self.max_points);
        Ok(PreparedQuery {
            limit: limit as usize,
            units: upstream.adapter.units(&query),
            lane: Lane::of(upstream, details, query),
            timeout: details.timeout,
        })
    }
}
