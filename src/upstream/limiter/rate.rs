//! Calls a second, by the generic cell rate algorithm (ITU-T I.371, annex A).

use std::time::Duration;

use tokio::time::Instant;

/// A rate with bursts.
#[derive(Debug)]
pub(super) struct Rate {
    /// The time of one call.
    period: Duration,
    /// How far calls may be ahead of the rate.
    tolerance: Duration,
    /// When the next call would come if calls came evenly; up to `tolerance` earlier is allowed.
    due: Instant,
}

impl Rate {
    /// `per_second` calls a second in the mean, and up to `burst` at once.
    pub(super) fn new(per_second: f64, burst: u32) -> Self {
        let period = Duration::from_secs_f64(1.0 / per_second.clamp(0.001, 1e6));
        Self {
            period,
            tolerance: period.saturating_mul(burst.saturating_sub(1)),
            due: Instant::now(),
        }
    }

    /// How long from `now` the call after `ahead` others has to wait.
    pub(super) fn wait(&self, now: Instant, ahead: usize) -> Duration {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let late = self.due.saturating_duration_since(now);
        let late = late.saturating_add(self.period.saturating_mul(ahead));
        late.saturating_sub(self.tolerance)
    }

    /// Takes a call at `now`.
    pub(super) fn take(&mut self, now: Instant) {
        self.due = self.due.max(now) + self.period;
    }
}
