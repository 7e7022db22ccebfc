//! A breaker: an address that failed again and again is left alone for a while, then tried once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerState {
    /// Calls pass; so many in a row failed.
    Closed { failures: u32 },
    /// No call passes before `until`.
    Open { until: Instant },
    /// One call is under way that decides.
    Probing,
}

/// The breaker of one address.
#[derive(Debug)]
pub(super) struct Breaker {
    state: Mutex<BreakerState>,
    failures: u32,
    open: Duration,
}

/// Leave to make one call. Dropped without a verdict, it counts as a call never made.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    breaker: &'a Breaker,
    probe: bool,
    settled: bool,
}

impl Breaker {
    /// Opens after `failures` in a row, for `open`.
    pub(super) fn new(failures: u32, open: Duration) -> Self {
        Self {
            state: Mutex::new(BreakerState::Closed { failures: 0 }),
            failures,
            open,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, BreakerState> {
        // A plain value cannot be left half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave to call, or for how long there is none.
    pub(super) fn pass(&self) -> Result<Pass<'_>, Duration> {
        let mut state = self.state();
        let probe = match *state {
            BreakerState::Closed { .. } => false,
            BreakerState::Probing => return Err(self.open),
            BreakerState::Open { until } => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    return Err(left);
                }
                *state = BreakerState::Probing;
                true
            }
        };
        Ok(Pass {
            breaker: self,
            probe,
            settled: false,
        })
    }

    /// For how long no call may be made, if none may now.
    pub(super) fn open_for(&self) -> Option<Duration> {
        match *self.state() {
            BreakerState::Closed { .. } => None,
            BreakerState::Probing => Some(self.open),
            BreakerState::Open { until } => {
                let left = until.saturating_duration_since(Instant::now());
                (!left.is_zero()).then_some(left)
            }
        }
    }

    /// Its state by name, the failures in a row, and for how long no call is let through.
    pub(super) fn state_now(&self) -> (&'static str, u32, Option<Duration>) {
        match *self.state() {
            BreakerState::Closed { failures } => ("closed", failures, None),
            BreakerState::Probing => ("probing", self.failures, None),
            BreakerState::Open { until } => {
                let left = until.saturating_duration_since(Instant::now());
                ("open", self.failures, Some(left))
            }
        }
    }

    /// Whether calls are held back.
    pub(super) fn is_open(&self) -> bool {
        !matches!(*self.state(), BreakerState::Closed { .. })
    }
}

impl Pass<'_> {
    /// The call showed that the address works.
    pub(super) fn succeeded(mut self) {
        self.settled = true;
        *self.breaker.state() = BreakerState::Closed { failures: 0 };
    }

    /// The call showed that it does not.
    pub(super) fn failed(mut self) {
        self.settled = true;
        let mut state = self.breaker.state();
        let failures = match *state {
            BreakerState::Closed { failures } => failures + 1,
            BreakerState::Open { .. } => return,
            BreakerState::Probing => self.breaker.failures,
        };
        *state = if failures >= self.breaker.failures {
            BreakerState::Open {
                until: Instant::now() + self.breaker.open,
            }
        } else {
            BreakerState::Closed { failures }
        };
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probe && !self.settled {
            // The probe was given up; the next call is one.
            *self.breaker.state() = BreakerState::Open {
                until: Instant::now(),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_closes_after_one_good_probe() {
        let breaker = Breaker::new(3, Duration::from_secs(10));
        for _ in 0..2 {
            breaker.pass().unwrap().failed();
        }
        breaker.pass().unwrap().succeeded();
        for _ in 0..3 {
            assert!(!breaker.is_open());
            breaker.pass().unwrap().failed();
        }
        assert_eq!(breaker.pass().unwrap_err(), Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(10)).await;
        let probe = breaker.pass().unwrap();
        assert!(breaker.pass().is_err(), "only one probe");
        probe.failed();
        assert_eq!(breaker.pass().unwrap_err(), Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(10)).await;
        drop(breaker.pass().unwrap());
        breaker.pass().unwrap().succeeded();
        assert!(!breaker.is_open());
    }
}
