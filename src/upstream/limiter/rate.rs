//! Calls per second: governor decides whether a call may be made now, by the generic cell rate
//! algorithm. The waits of later calls, which governor does not tell, are computed by the same
//! algorithm (ITU-T I.371, annex A).

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// The runtime's clock for governor: waits and governor's arithmetic then pass the same time, also
/// where a test has paused it.
#[derive(Clone, Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

/// A rate with bursts.
#[derive(Debug)]
pub(super) struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Nanos>>,
    clock: RuntimeClock,
    /// The time at which a call was taken from the limiter that has not been made yet.
    held: Option<Instant>,
    burst: u32,
    /// The time of one call.
    period: Duration,
    /// The time that calls may be ahead of the rate.
    tolerance: Duration,
    /// The time of the next call if calls came evenly; up to `tolerance` earlier is allowed.
    due: Instant,
}

impl Rate {
    /// Returns a rate of `per_second` calls per second in the mean, and up to `burst` at once.
    pub(super) fn new(per_second: f64, burst: u32) -> Self {
        let period = Duration::from_secs_f64(1.0 / per_second.clamp(0.001, 1e6));
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| Quota::per_second(burst))
            .allow_burst(burst);
        let clock = RuntimeClock(Instant::now());
        Self {
            limiter: RateLimiter::direct_with_clock(quota, clock.clone()),
            held: None,
            burst: burst.get(),
            period,
            tolerance: period.saturating_mul(burst.get() - 1),
            due: clock.0,
            clock,
        }
    }

    /// The same, of which no call may be made at once now.
    pub(super) fn empty(per_second: f64, burst: u32) -> Self {
        let mut rate = Self::new(per_second, burst);
        if let Some(all) = NonZeroU32::new(rate.burst) {
            // It is full, so all of them fit.
            let _ = rate.limiter.check_n(all);
        }
        rate.due += rate.period.saturating_mul(rate.burst);
        rate
    }

    /// Calls at once.
    pub(super) fn burst(&self) -> u32 {
        self.burst
    }

    /// Returns the time between two calls.
    pub(super) fn period(&self) -> Duration {
        self.period
    }

    /// Returns the time from `now` that the call after `ahead` others has to wait.
    pub(super) fn wait(&self, now: Instant, ahead: usize) -> Duration {
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let late = self.due.saturating_duration_since(now);
        let late = late.saturating_add(self.period.saturating_mul(ahead));
        late.saturating_sub(self.tolerance)
    }

    /// Checks that a call may be made at `now`; the error is the time that it has to wait.
    pub(super) fn ready(&mut self, now: Instant) -> Result<(), Duration> {
        // A call that was taken long ago must not come on top of a whole burst.
        let recent = |at: Instant| now.saturating_duration_since(at) < self.period;
        if self.held.is_some_and(recent) {
            return Ok(());
        }
        self.held = None;
        match self.limiter.check() {
            Ok(()) => {
                self.held = Some(now);
                Ok(())
            }
            Err(not_until) => {
                let wait = not_until
                    .earliest_possible()
                    .duration_since(self.clock.now());
                Err(Duration::from(wait))
            }
        }
    }

    /// Makes the call at `now` that [`Rate::ready`] has allowed.
    pub(super) fn take(&mut self, now: Instant) {
        self.held = None;
        self.due = self.due.max(now) + self.period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_not_made_does_not_come_on_top_of_a_burst() {
        let mut rate = Rate::new(10.0, 5);
        assert_eq!(rate.ready(Instant::now()), Ok(()));
        tokio::time::advance(Duration::from_secs(60)).await;
        let now = Instant::now();
        for call in 0..5 {
            assert_eq!(rate.ready(now), Ok(()), "{call}");
            rate.take(now);
        }
        assert_eq!(rate.ready(now), Err(Duration::from_millis(100)));
        assert_eq!(rate.wait(now, 0), Duration::from_millis(100));
        assert_eq!(rate.wait(now, 3), Duration::from_millis(400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_ready_twice_is_taken_once() {
        let mut rate = Rate::new(10.0, 1);
        let now = Instant::now();
        assert_eq!((rate.ready(now), rate.ready(now)), (Ok(()), Ok(())));
        rate.take(now);
        assert!(rate.ready(now).is_err());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(rate.ready(Instant::now()), Ok(()));
    }
}
