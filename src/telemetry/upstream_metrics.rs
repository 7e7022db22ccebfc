//! The metrics of one upstream. Some can be read back, which those of the registry cannot.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use serde::Serialize;

use super::metrics::{
    BREAKER_OPEN, COALESCED, DROPPED, FILLED_POINTS, IN_FLIGHT, LATE_POINTS, LEASES, LIMIT_CALLS,
    LOOKUPS, POINTS_SERVED, QUEUE_SECONDS, REFRESH_AHEAD, REJECTED, REPLICA_FILLS, RETRIES,
    STALE_SERVED, STATE_UNSAVED, UPSTREAM_POINTS, UPSTREAM_REQUESTS, UPSTREAM_SECONDS,
};
use super::removed;

pub(super) const ANSWER_BYTES: &str = "heliostat_upstream_answer_bytes";

/// Sets the bytes of upstream answers that are being read.
pub fn answer_bytes(bytes: usize) {
    gauge!(ANSWER_BYTES).set(bytes as f64);
}

/// A counter of `/metrics` whose value can be read back.
#[derive(Clone, Debug)]
pub struct Count {
    counter: Counter,
    total: Arc<AtomicU64>,
}

impl Count {
    pub(super) fn of(counter: Counter) -> Self {
        Self {
            counter,
            total: Arc::default(),
        }
    }

    /// Adds `n`.
    pub fn increment(&self, n: u64) {
        self.counter.increment(n);
        self.total.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts on from `total`, which the counter has already.
    pub(super) fn continue_from(&self, total: u64) {
        self.total.fetch_add(total, Ordering::Relaxed);
    }

    /// Returns the sum of what this handle and its clones have added.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// Numbers of calls, by what became of them.
#[derive(Debug, Default)]
struct Calls {
    made: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

/// Counts of one upstream since its settings took effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTotals {
    /// Queries for which everything was cached and fresh.
    pub hits: u64,
    /// Queries for which everything was cached, some of it expired.
    pub stale: u64,
    /// Queries for which a part was cached.
    pub partial: u64,
    /// Queries for which nothing was cached.
    pub misses: u64,
    /// Points served from the cache.
    pub points_from_cache: u64,
    /// Points served from what was fetched for the query.
    pub points_from_upstream: u64,
    /// HTTP attempts that ended.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Calls that were refused before they were made.
    pub refused: u64,
}

/// Handles to the metrics of one upstream.
#[derive(Clone, Debug)]
pub struct UpstreamMetrics {
    name: String,
    /// Queries for which everything was cached and fresh.
    pub hits: Count,
    /// Queries for which everything was cached, some of it expired.
    pub stale: Count,
    /// Queries for which a part was cached.
    pub partial: Count,
    /// Queries for which nothing was cached.
    pub misses: Count,
    /// Points served from the cache.
    pub points_from_cache: Count,
    /// Points served from what was fetched for the query.
    pub points_from_upstream: Count,
    /// Queries answered with expired data.
    pub stale_served: Counter,
    /// Points and samples received.
    pub points: Counter,
    /// Time of an HTTP attempt.
    pub seconds: Histogram,
    /// Time an attempt waited for the limits.
    pub queue_seconds: Histogram,
    /// Attempts in flight.
    pub in_flight: Gauge,
    /// Attempts that were retries.
    pub retries: Counter,
    /// Seconds for which a change of what is used of budgets has waited to be written.
    pub state_unsaved: Gauge,
    /// Requests that waited for another request's fetch.
    pub coalesced: Counter,
    calls: Arc<Calls>,
    failing: Arc<Failing>,
}

/// The failures since the last success.
#[derive(Debug, Default)]
struct Failing {
    /// Whether there are any, for a look without the lock.
    any: AtomicBool,
    last: Mutex<Option<Failure>>,
}

/// The last failure of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The last error.
    pub message: String,
    /// When it came, in milliseconds of Unix time.
    pub time: i64,
    /// When the first came after the last success.
    pub since: i64,
}

impl UpstreamMetrics {
    /// Creates the handles for the upstream `name`, which has to come from the configuration.
    pub fn new(name: &str) -> Self {
        removed::is_back(name);
        let upstream = || name.to_owned();
        let lookups =
            |result| Count::of(counter!(LOOKUPS, "upstream" => upstream(), "result" => result));
        let served = |source| {
            Count::of(counter!(POINTS_SERVED, "upstream" => upstream(), "source" => source))
        };
        let metrics = Self {
            name: upstream(),
            hits: lookups("hit"),
            stale: lookups("stale"),
            partial: lookups("partial"),
            misses: lookups("miss"),
            points_from_cache: served("cache"),
            points_from_upstream: served("upstream"),
            stale_served: counter!(STALE_SERVED, "upstream" => upstream()),
            points: counter!(UPSTREAM_POINTS, "upstream" => upstream()),
            seconds: histogram!(UPSTREAM_SECONDS, "upstream" => upstream()),
            queue_seconds: histogram!(QUEUE_SECONDS, "upstream" => upstream()),
            in_flight: gauge!(IN_FLIGHT, "upstream" => upstream()),
            retries: counter!(RETRIES, "upstream" => upstream()),
            state_unsaved: gauge!(STATE_UNSAVED, "upstream" => upstream()),
            coalesced: counter!(COALESCED, "upstream" => upstream()),
            calls: Arc::default(),
            failing: Arc::default(),
        };
        // Counters start at 0, so that the first increment can be alerted on.
        metrics.state_unsaved.set(0.0);
        // A replaced upstream of this name may still have calls in flight.
        metrics.in_flight.increment(0.0);
        for outcome in OUTCOMES {
            attempts(&metrics.name, outcome).absolute(0);
        }
        for reason in ["limits", "budget", "breaker_open"] {
            rejected(&metrics.name, reason).absolute(0);
        }
        metrics.late().absolute(0);
        metrics.filled().absolute(0);
        for outcome in ["answered", "unavailable"] {
            metrics.comparisons(outcome).absolute(0);
        }
        for outcome in ["used", "unused", "skipped"] {
            metrics.ahead(outcome).absolute(0);
        }
        for reason in ["nan", "inf", "outside_range", "histogram"] {
            dropped(&metrics.name, reason).absolute(0);
        }
        metrics
    }

    /// Returns the name of the upstream.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what was counted so far.
    pub fn totals(&self) -> UpstreamTotals {
        UpstreamTotals {
            hits: self.hits.total(),
            stale: self.stale.total(),
            partial: self.partial.total(),
            misses: self.misses.total(),
            points_from_cache: self.points_from_cache.total(),
            points_from_upstream: self.points_from_upstream.total(),
            calls: self.calls.made.load(Ordering::Relaxed),
            failed: self.calls.failed.load(Ordering::Relaxed),
            refused: self.calls.refused.load(Ordering::Relaxed),
        }
    }

    /// Returns what the upstream fails with, unless its last attempt succeeded.
    pub fn failure(&self) -> Option<Failure> {
        let last = self.failing.last.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that an attempt succeeded.
    pub fn works(&self) {
        if self.failing.any.load(Ordering::Relaxed) {
            let last = self.failing.last.lock();
            *last.unwrap_or_else(PoisonError::into_inner) = None;
            self.failing.any.store(false, Ordering::Relaxed);
        }
    }

    /// Records that an attempt failed with `message`, at `time`.
    pub fn fails(&self, message: &str, time: i64) {
        const LONGEST: usize = 500;
        let message = message
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST)
            .collect();
        let mut last = self
            .failing
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let since = last.as_ref().map_or(time, |failure| failure.since);
        *last = Some(Failure {
            message,
            time,
            since,
        });
        self.failing.any.store(true, Ordering::Relaxed);
    }

    /// Counts an HTTP attempt that ended as `outcome`.
    pub fn attempt(&self, outcome: &'static str) {
        // One that nobody waited for any more, that was the client's fault, or for which Heliostat lacked
        // something says nothing of the upstream.
        let failed = !matches!(outcome, "ok" | "abandoned" | "refused" | "overloaded");
        self.calls.made.fetch_add(1, Ordering::Relaxed);
        self.calls
            .failed
            .fetch_add(failed.into(), Ordering::Relaxed);
        attempts(&self.name, outcome).increment(1);
    }

    /// Counts `n` points that came after their time had settled and were found by a second look.
    pub fn late_points(&self, n: u64) {
        self.late().increment(n);
    }

    fn late(&self) -> Counter {
        counter!(LATE_POINTS, "upstream" => self.name.clone())
    }

    /// Counts `n` points of further replicas that filled gaps of a first one.
    pub fn filled_points(&self, n: u64) {
        if n > 0 {
            self.filled().increment(n);
        }
    }

    fn filled(&self) -> Counter {
        counter!(FILLED_POINTS, "upstream" => self.name.clone())
    }

    /// Counts a call to a further replica that ended as `outcome`: `answered` or `unavailable`.
    pub fn compared(&self, outcome: &'static str) {
        self.comparisons(outcome).increment(1);
    }

    fn comparisons(&self, outcome: &'static str) -> Counter {
        counter!(REPLICA_FILLS, "upstream" => self.name.clone(), "outcome" => outcome)
    }

    /// Counts a fetch that replicas make once for all, by its outcome: `taken`, `waited`, `overtaken`
    /// or `alone`.
    pub fn leased(&self, outcome: &'static str) {
        counter!(LEASES, "upstream" => self.name.clone(), "outcome" => outcome).increment(1);
    }

    /// Counts a call that was allowed by `shared`, the limit of all replicas, or by `share`, the part
    /// of this one.
    pub fn limit_call(&self, source: &'static str) {
        counter!(LIMIT_CALLS, "upstream" => self.name.clone(), "source" => source).increment(1);
    }

    /// Counts a refresh ahead of a poll that ended as `outcome`: `used`, `unused` or `skipped`.
    pub fn refreshed_ahead(&self, outcome: &'static str) {
        self.ahead(outcome).increment(1);
    }

    fn ahead(&self, outcome: &'static str) -> Counter {
        counter!(REFRESH_AHEAD, "upstream" => self.name.clone(), "outcome" => outcome)
    }

    /// Counts a call that was not made for `reason`.
    pub fn rejected(&self, reason: &'static str) {
        self.calls.refused.fetch_add(1, Ordering::Relaxed);
        rejected(&self.name, reason).increment(1);
    }

    /// Counts `n` points that were received and left out for `reason`.
    pub fn dropped(&self, reason: &'static str, n: u64) {
        if n > 0 {
            dropped(&self.name, reason).increment(n);
        }
    }
}

/// The possible outcomes of an attempt.
const OUTCOMES: [&str; 8] = [
    "ok",
    "refused",
    "busy",
    "error",
    "timeout",
    "unreachable",
    "abandoned",
    "overloaded",
];

fn attempts(upstream: &str, outcome: &'static str) -> Counter {
    counter!(UPSTREAM_REQUESTS, "upstream" => upstream.to_owned(), "outcome" => outcome)
}

fn rejected(upstream: &str, reason: &'static str) -> Counter {
    counter!(REJECTED, "upstream" => upstream.to_owned(), "reason" => reason)
}

fn dropped(upstream: &str, reason: &'static str) -> Counter {
    counter!(DROPPED, "upstream" => upstream.to_owned(), "reason" => reason)
}

/// Sets the number of URLs of the upstream `name`, or of all targets that the pattern `name` allows,
/// whose circuit breaker is open.
pub fn breakers_open(name: &str, open: usize) {
    gauge!(BREAKER_OPEN, "upstream" => name.to_owned()).set(open as f64);
}

/// Records that the upstream or pattern of targets `name` was removed: its series are no longer
/// shown.
pub fn upstream_gone(name: &str) {
    removed::add(name);
}
