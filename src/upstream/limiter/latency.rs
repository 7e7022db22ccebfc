//! Latencies of calls.

use std::time::Duration;

/// The mean latency of calls and its mean deviation, of about the last `WEIGHT` calls (RFC 6298
/// estimates round trips alike).
#[derive(Debug, Default)]
pub(super) struct Latency {
    /// Calls that were taken in, up to `WEIGHT`.
    calls: f64,
    /// Seconds.
    mean: f64,
    /// Seconds.
    deviation: f64,
}

/// A new call weighs one in this many, so that a slow one among quick ones changes little.
const WEIGHT: f64 = 32.0;

impl Latency {
    /// Takes in a call that took `took`.
    pub(super) fn learn(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.calls = (self.calls + 1.0).min(WEIGHT);
        self.mean += (took - self.mean) / self.calls;
        self.deviation += ((took - self.mean).abs() - self.deviation) / self.calls;
    }

    /// Returns the mean; zero before the first call has ended.
    pub(super) fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.mean.max(0.0))
    }

    /// Returns the latency that all calls except a few stay below, with a tenth to spare; zero
    /// before the first call has ended.
    pub(super) fn usual(&self) -> Duration {
        Duration::from_secs_f64((1.1 * self.mean + 2.0 * self.deviation).max(0.0))
    }
}
