//! A budget for retries, so that a failing upstream is not asked much more often than a healthy
//! one.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The credit of one call and the price of one retry: at most one retry for each five calls.
const CALL: i64 = 1;
const RETRY: i64 = 5;
/// Retries that can be saved up, and that are there from the start.
const SAVED: i64 = 10 * RETRY;

/// The retries that may be made.
#[derive(Debug)]
pub(super) struct RetryBudget(AtomicI64);

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicI64::new(SAVED))
    }
}

impl RetryBudget {
    /// Takes in that a call is made.
    pub(super) fn called(&self) {
        let add = |n: i64| Some((n + CALL).min(SAVED));
        // The closure never refuses.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Returns whether a retry may be made; if so, it is taken from the budget.
    pub(super) fn take(&self) -> bool {
        let take = |n: i64| (n >= RETRY).then_some(n - RETRY);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

/// Waits between attempts: at most `BACKOFF · 2^n`, and never more than `LONGEST_BACKOFF`.
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// Returns a random wait before another attempt: full jitter over an exponential bound.
pub(super) fn backoff(attempt: u32) -> Duration {
    let bound = BACKOFF
        .saturating_mul(2u32.saturating_pow(attempt))
        .min(LONGEST_BACKOFF);
    // A new hasher is randomly keyed, which is random enough to spread retries.
    let random = RandomState::new().hash_one(attempt);
    bound.mul_f64((random % 1024) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_at_most_a_fifth_of_calls_once_what_was_saved_is_spent() {
        let budget = RetryBudget::default();
        while budget.take() {}
        let retries = (0..1000)
            .filter(|_| {
                budget.called();
                budget.take()
            })
            .count();
        assert_eq!(retries, 200);
    }
}
