//! A warning where the wall clock of this machine does not go as its monotonic clock does: it was set, or
//! the machine slept.

use std::time::Duration;

use tracing::warn;

use crate::clock::Clock;
use crate::model::Millis;

/// The difference that is taken for none: clocks are slewed by much less between two looks.
const TOLERANCE: Millis = 5_000;

/// The clocks at the last look.
pub(super) struct ClockWatch {
    wall: Millis,
    monotonic: Duration,
}

impl ClockWatch {
    /// Looks at `clock` for the first time.
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self {
            wall: clock.now(),
            monotonic: clock.monotonic(),
        }
    }

    /// Looks at `clock` again, and warns if it was set since.
    pub(super) fn look(&mut self, clock: &dyn Clock) {
        let Some(step) = self.step(clock) else {
            return;
        };
        let by = Duration::from_millis(step.unsigned_abs());
        let which = match step > 0 {
            true => "forward",
            false => "back",
        };
        warn!(
            "the clock of this machine went {which} by {}: it was set, or the machine slept",
            humantime::format_duration(by)
        );
    }

    /// Returns by how much it was set since the last look, if it was.
    fn step(&mut self, clock: &dyn Clock) -> Option<Millis> {
        let now = Self::new(clock);
        let passed = now.monotonic.saturating_sub(self.monotonic).as_millis();
        let passed = Millis::try_from(passed).unwrap_or(Millis::MAX);
        let step = (now.wall - self.wall).saturating_sub(passed);
        *self = now;
        (step.abs() > TOLERANCE).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Debug)]
    struct Hands(Mutex<(Millis, Duration)>);

    impl Clock for Hands {
        fn now(&self) -> Millis {
            self.0.lock().unwrap().0
        }

        fn monotonic(&self) -> Duration {
            self.0.lock().unwrap().1
        }
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_once() {
        let clock = Hands(Mutex::new((1_700_000_000_000, Duration::from_secs(9))));
        let mut watch = ClockWatch::new(&clock);
        let mut later = |wall: Millis, seconds: u64| {
            {
                let mut hands = clock.0.lock().unwrap();
                hands.0 += wall;
                hands.1 += Duration::from_secs(seconds);
            }
            watch.step(&clock)
        };
        assert_eq!(later(5_000, 5), None);
        assert_eq!(later(9_999, 5), None);
        assert_eq!(later(3_605_000, 5), Some(3_600_000));
        assert_eq!(later(5_000, 5), None);
        assert_eq!(later(-3_595_000, 5), Some(-3_600_000));
        assert_eq!(later(5_000, 5), None);
    }
}
