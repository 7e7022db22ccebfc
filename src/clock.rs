//! The only place that reads the machine's clocks.

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Millis;

/// A source of time; tests have their own.
pub trait Clock: Debug + Send + Sync {
    /// Returns wall time in epoch milliseconds. It may step in either direction.
    fn now(&self) -> Millis;

    /// Returns the time since some fixed moment, ten years before the process began or earlier; it
    /// never steps back. Ages are measured with it, and data may be older than the process.
    fn monotonic(&self) -> Duration;
}

/// The reading of the monotonic clock when the process begins.
const BEGINNING: Duration = Duration::from_secs(3650 * 86_400);

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
        BEGINNING.saturating_add(self.started.elapsed())
    }
}
