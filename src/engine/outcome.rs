//! Facts that an answer states about itself: the role of the cache, and where its time went.

use std::time::Duration;

use super::fetch::{Degraded, View};
use super::plan::Lookup;
use crate::model::Millis;
use crate::telemetry::metrics::UpstreamMetrics;

/// The phases of an answer's time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Looking up what is cached and which points of it to show.
    pub plan: Duration,
    /// Planning what to fetch, fetching and storing it, waiting for the upstream included and for
    /// the second level left out.
    pub fetch: Duration,
    /// Waiting for the second level of the cache.
    pub second: Duration,
    /// Rendering.
    pub render: Duration,
    /// Whether the fetch filled a gap from another replica.
    pub filled: bool,
}

/// The part that the cache had in an answer.
#[derive(Clone, Debug)]
pub struct CacheOutcome {
    /// The state of the cache when the query came.
    pub lookup: Lookup,
    /// Set if what was fetched is in the cache now.
    pub stored: bool,
    /// Set if a fetch of another request was waited for.
    pub collapsed: bool,
    /// Seconds for which the answer stays fresh; negative if it has expired.
    pub ttl_seconds: i64,
    /// The reason for which the cache was not used, if it was not.
    pub bypass: Option<&'static str>,
    /// Set if the source answered with other buckets than requested; they are not cached.
    pub other_buckets: bool,
    /// The reason for which expired data is served, if it is.
    pub detail: Option<String>,
    /// Set for a remembered error of the upstream.
    pub error: bool,
    /// Whether some of it came from the second level just now.
    pub second_level: bool,
    /// Whether another replica filled a gap in what was fetched.
    pub filled: bool,
}

impl CacheOutcome {
    /// Returns the outcome of an answer that needed no data.
    pub(super) fn nothing_asked() -> Self {
        Self {
            lookup: Lookup::Hit,
            stored: false,
            collapsed: false,
            ttl_seconds: 0,
            bypass: None,
            other_buckets: false,
            detail: None,
            error: false,
            second_level: false,
            filled: false,
        }
    }

    /// Counts the result of the look-up.
    pub(super) fn count(&self, metrics: &UpstreamMetrics) {
        if self.detail.is_some() {
            metrics.stale_served.increment(1);
        }
        match self.lookup {
            Lookup::Hit => metrics.hits.increment(1),
            Lookup::Stale => metrics.stale.increment(1),
            Lookup::Partial => metrics.partial.increment(1),
            Lookup::Miss => metrics.misses.increment(1),
        }
    }

    pub(super) fn expired(&mut self, reason: &str, expired_since: Duration, edge: Option<Millis>) {
        let seconds = i64::try_from(expired_since.as_secs()).unwrap_or(i64::MAX);
        self.ttl_seconds = self.ttl_seconds.min(-seconds.max(1));
        let ends = edge.map_or_else(String::new, |t| format!("; known to {t}"));
        self.detail = Some(format!("{reason}{ends}"));
    }
}

/// Returns the part that the cache had in `view`, of data that is served for `refresh`.
pub(super) fn outcome(view: &View, refresh: Duration) -> CacheOutcome {
    let mut outcome = CacheOutcome {
        lookup: view.lookup,
        stored: view.stored,
        collapsed: view.collapsed,
        ttl_seconds: i64::try_from(view.ttl.as_secs()).unwrap_or(i64::MAX),
        other_buckets: view.off_grid.is_some(),
        ..CacheOutcome::nothing_asked()
    };
    if let Some(Degraded {
        reason, age, edge, ..
    }) = &view.degraded
    {
        let since = age.saturating_sub(refresh);
        outcome.expired(reason, since, Some(*edge));
    }
    outcome
}

/// Combines the outcomes of two sub-ranges: the lesser result, and the shorter time.
pub(super) fn both(a: CacheOutcome, b: CacheOutcome) -> CacheOutcome {
    CacheOutcome {
        lookup: match (a.lookup, b.lookup) {
            (x, y) if x == y => x,
            (Lookup::Hit, Lookup::Stale) | (Lookup::Stale, Lookup::Hit) => Lookup::Stale,
            _ => Lookup::Partial,
        },
        stored: a.stored || b.stored,
        collapsed: a.collapsed || b.collapsed,
        ttl_seconds: a.ttl_seconds.min(b.ttl_seconds),
        bypass: a.bypass.or(b.bypass),
        other_buckets: a.other_buckets || b.other_buckets,
        detail: a.detail.or(b.detail),
        error: a.error || b.error,
        second_level: a.second_level || b.second_level,
        filled: a.filled || b.filled,
    }
}
