//! Upstreams that round start and end of a range query down to multiples of its step: which they are,
//! and what is done about a query for other times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use tracing::warn;

use super::encoded::CachedResponse;
use super::range::RangeRequest;
use super::whole::CachePolicy;
use super::{Engine, RequestContext};
use crate::model::{Error, StepAlignment};
use crate::upstream::Upstream;
use crate::wire::prometheus::RangeQuery;

/// The reason why an answer of such an upstream is not cached, for `Cache-Status`.
const ALIGNED: &str = "aligned by the upstream";

/// Time for which an upstream is assumed to align after it was seen to.
const BELIEVED: Duration = Duration::from_secs(600);

/// Most upstreams that are remembered; beyond it all are forgotten and learned anew.
const MOST: usize = 1024;

/// The upstreams that were seen to do so, by their numbers, and when they were last seen.
#[derive(Default)]
pub(super) struct Aligning(Mutex<HashMap<u64, Duration>>);

impl Aligning {
    fn is_believed(&self, upstream: u64, now: Duration) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.get(&upstream);
        seen.is_some_and(|at| now.saturating_sub(*at) < BELIEVED)
    }

    /// Remembers that `upstream` did so at `now`. Returns whether that is news.
    fn saw(&self, upstream: u64, now: Duration) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST {
            seen.clear();
        }
        seen.insert(upstream, now).is_none()
    }
}

/// Returns whether `request` is passed to `upstream` with a start that is no multiple of its step.
pub(super) fn is_off_grid(upstream: &Upstream, request: &RangeRequest) -> bool {
    let RangeQuery { start, step, .. } = &request.query;
    upstream.reading.step_alignment == StepAlignment::Exact && step.floor(*start) != *start
}

impl Engine {
    /// Returns why the answer to `request` would not be cached, if `upstream` is known to answer for other times.
    pub(super) fn aligned_by(
        &self,
        upstream: &Upstream,
        request: &RangeRequest,
    ) -> Option<&'static str> {
        let aligning = &self.memory.aligning;
        let believed = || aligning.is_believed(upstream.id(), self.clock.monotonic());
        (is_off_grid(upstream, request) && believed()).then_some(ALIGNED)
    }

    /// Remembers that `upstream` answers for other times, and says once what to do about it.
    pub(super) fn saw_aligned(&self, upstream: &Upstream) {
        let now = self.clock.monotonic();
        if self.memory.aligning.saw(upstream.id(), now) {
            warn!(
                upstream = upstream.name(),
                "the upstream rounds start and end of range queries down to multiples of the step; answers to queries that start elsewhere are not cached: set step_alignment = \"align\""
            );
        }
    }

    /// Passes `request` on as it is, and the answer, whatever its times.
    pub(super) async fn pass_aligned(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        request: RangeRequest,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let policy = CachePolicy::NoStore(ALIGNED);
        let request = request.passed();
        self.pass_through(upstream, Method::POST, request, policy, None, context)
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_believed_for_a_while_and_is_news_once() {
        let aligning = Aligning::default();
        let at = Duration::from_secs(1000);
        assert!(!aligning.is_believed(1, at));
        assert!(aligning.saw(1, at));
        assert!(aligning.is_believed(1, at) && !aligning.is_believed(2, at));
        assert!(!aligning.is_believed(1, at + BELIEVED));
        assert!(!aligning.saw(1, at + BELIEVED));
        assert!(aligning.is_believed(1, at + BELIEVED));
        for upstream in 0..3 * MOST as u64 {
            aligning.saw(upstream, at);
        }
        assert!(aligning.0.lock().unwrap().len() <= MOST);
    }
}
