//! The only place that reads the machine's clocks.

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Millis;

/// Where the time comes from; tests bring their own.
pub trait Clock: Debug + Send + Sync {
    /// Wall time in epoch milliseconds. It may step in either direction.
    fn now(&self) -> Millis;

    /// Time since some fixed moment; it never steps back. Ages are measured with it.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl Default for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    fn default() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the clock")]
    fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |d| Millis::try_from(d.as_millis()).unwrap_or(0))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}
