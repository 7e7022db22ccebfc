//! A limit of concurrency that adapts to the load that an upstream can take.

use std::time::Duration;

use tokio::time::Instant;

/// The number of calls that may run at once, found by trying: a little more after each that goes
/// well, a third less when one does not (additive increase, multiplicative decrease).
#[derive(Clone, Copy, Debug)]
pub(super) struct Adaptive {
    limit: f64,
    most: usize,
    /// The shortest time of a call, forgotten slowly.
    shortest: Duration,
    /// The time at which the limit was last lowered.
    lowered: Option<Instant>,
}

/// A call that takes this many times as long as the shortest shows that the upstream is strained.
const SLOW: u32 = 3;

/// The limit is lowered at most once in this time: calls that fail together are one failure.
const ONE_FAILURE: Duration = Duration::from_secs(1);

impl Adaptive {
    /// Returns a limit of at most `most` calls.
    pub(super) fn new(most: usize) -> Self {
        Self {
            limit: most as f64,
            most,
            shortest: Duration::from_secs(3600),
            lowered: None,
        }
    }

    /// Returns the number of calls that may run now.
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Takes in a call that failed or not, and took `took`.
    pub(super) fn learn(&mut self, failed: bool, took: Duration) {
        let slow = took > self.shortest * SLOW + Duration::from_millis(50);
        // Grows by a hundredth per call, so that an upstream that has become slower is not strained
        // for ever.
        self.shortest = (self.shortest + self.shortest / 100).min(took);
        if !failed && !slow {
            self.limit = (self.limit + 1.0 / self.limit).min(self.most as f64);
            return;
        }
        let now = Instant::now();
        if self
            .lowered
            .is_none_or(|at| now.duration_since(at) >= ONE_FAILURE)
        {
            self.lowered = Some(now);
            self.limit = (self.limit * 0.7).max(1.0);
        }
    }
}
