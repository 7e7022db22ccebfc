//! What an upstream may be burdened with: calls a second, calls at once, calls that wait.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::model::{Error, Kind, Limits};

/// The runtime's clock for governor: the limiter's waits and its arithmetic then pass the same
/// time, also where a test has paused it.
#[derive(Clone, Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

/// Admits calls to one upstream.
pub(super) struct Limiter {
    rate: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Nanos>>,
    clock: RuntimeClock,
    /// Those who wait for the rate stand in line here, so that the first to come is the first
    /// to go. What it guards is only the turn.
    turn: Mutex<()>,
    slots: Semaphore,
    waiting: AtomicUsize,
    queue: usize,
    per_second: f64,
}

/// Counts one who waits, until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Limiter {
    pub(super) fn new(limits: &Limits) -> Self {
        let clock = RuntimeClock(Instant::now());
        let burst = NonZeroU32::new(limits.burst).unwrap_or(NonZeroU32::MIN);
        let period = Duration::from_secs_f64(1.0 / limits.per_second.clamp(0.001, 1e6));
        let quota = Quota::with_period(period)
            .unwrap_or_else(|| Quota::per_second(burst))
            .allow_burst(burst);
        Self {
            rate: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
            turn: Mutex::new(()),
            slots: Semaphore::new(limits.max_concurrency),
            waiting: AtomicUsize::new(0),
            queue: limits.queue,
            per_second: limits.per_second,
        }
    }

    /// Waits until a call may be made; the permit is held while it is under way. At once an
    /// error where as many wait already as may.
    pub(super) async fn admit(&self) -> Result<SemaphorePermit<'_>, Error> {
        if let (Ok(slot), Ok(_turn)) = (self.slots.try_acquire(), self.turn.try_lock())
            && self.rate.check().is_ok()
        {
            return Ok(slot);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.queue {
            let message = format!("{before} calls wait for the upstream already (queue)");
            let wait =
                Duration::from_secs_f64((before as f64 / self.per_second).clamp(1.0, 3600.0));
            return Err(Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait)));
        }
        let slot = self.slots.acquire().await.map_err(|_| {
            // The semaphore is never closed.
            Error::new(Kind::Internal, "the limiter is closed")
        })?;
        let _turn = self.turn.lock().await;
        while let Err(not_until) = self.rate.check() {
            let wait = not_until
                .earliest_possible()
                .duration_since(self.clock.now());
            tokio::time::sleep(wait.into()).await;
        }
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn limits(per_second: f64, burst: u32, max_concurrency: usize, queue: usize) -> Limits {
        Limits {
            timeout: Duration::from_secs(1),
            retries: 0,
            per_second,
            burst,
            max_concurrency,
            queue,
            breaker_failures: 1,
            breaker_open: Duration::from_secs(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_keep_to_the_rate_after_a_burst() {
        let limiter = Limiter::new(&limits(10.0, 5, 100, 100));
        let start = Instant::now();
        let mut times = Vec::new();
        for _ in 0..25 {
            drop(limiter.admit().await.unwrap());
            times.push(start.elapsed().as_millis());
        }
        assert_eq!(times[4], 0);
        assert!((100..=101).contains(&times[5]), "{times:?}");
        assert!((2000..=2021).contains(&times[24]), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_run_at_once_than_may_and_no_more_wait() {
        let limiter = Arc::new(Limiter::new(&limits(1000.0, 1000, 2, 3)));
        let first = limiter.admit().await.unwrap();
        let second = limiter.admit().await.unwrap();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move { limiter.admit().await.map(|_| ()) })
            })
            .collect();
        tokio::task::yield_now().await;
        let refused = limiter.admit().await.unwrap_err();
        assert_eq!(refused.kind, Kind::UpstreamBudget);
        assert!(refused.retry_after.is_some());
        drop((first, second));
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        assert_eq!(limiter.waiting.load(Ordering::Relaxed), 0);
    }
}
