//! The addresses of an upstream: which one a call goes to.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::breaker::{Breaker, Pass};
use super::state::EndpointState;
use crate::model::{Limits, TargetUrl};

/// All addresses, the preferred one first.
pub(super) struct Endpoints(Vec<Endpoint>);

pub(super) struct Endpoint {
    pub(super) url: TargetUrl,
    pub(super) breaker: Breaker,
    /// Calls under way to it.
    busy: AtomicUsize,
}

/// The addresses that one call has been tried at, as bits; beyond 64 none is remembered.
#[derive(Debug, Default)]
pub(super) struct Tried(AtomicU64);

impl Tried {
    /// Whether the call has been tried nowhere yet.
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn has(&self, index: usize) -> bool {
        let bit = 1u64.checked_shl(index as u32).unwrap_or(0);
        self.0.load(Ordering::Relaxed) & bit != 0
    }

    fn add(&self, index: usize) {
        let bit = 1u64.checked_shl(index as u32).unwrap_or(0);
        self.0.fetch_or(bit, Ordering::Relaxed);
    }
}

/// An address that a call goes to, until dropped.
pub(super) struct Chosen<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) pass: Pass<'a>,
    _busy: Busy<'a>,
}

struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoints {
    pub(super) fn new(urls: Vec<TargetUrl>, limits: &Limits) -> Self {
        let endpoint = |url| Endpoint {
            url,
            breaker: Breaker::new(limits.breaker_failures, limits.breaker_open),
            busy: AtomicUsize::new(0),
        };
        Self(urls.into_iter().map(endpoint).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.0.iter()
    }

    /// The address for a call: one that it has not been tried at, then the least busy, then the
    /// most preferred, of those that their breakers let through. If there is none, when the next
    /// breaker does.
    pub(super) fn choose(&self, tried: &Tried) -> Result<Chosen<'_>, Duration> {
        let mut order: Vec<(usize, &Endpoint)> = self.0.iter().enumerate().collect();
        order.sort_by_key(|(i, e)| (tried.has(*i), e.busy.load(Ordering::Relaxed), *i));
        let mut soonest = Duration::MAX;
        for (index, endpoint) in order {
            match endpoint.enter() {
                Ok(chosen) => {
                    tried.add(index);
                    return Ok(chosen);
                }
                Err(wait) => soonest = soonest.min(wait),
            }
        }
        Err(soonest)
    }

    /// If no call may be made to any address: when one may.
    pub(super) fn all_open(&self) -> Option<Duration> {
        let waits: Option<Vec<Duration>> = self.0.iter().map(|e| e.breaker.open_for()).collect();
        waits?.into_iter().min()
    }

    /// How many addresses are left alone.
    pub(super) fn open(&self) -> usize {
        self.0.iter().filter(|e| e.breaker.is_open()).count()
    }

    /// The state of each.
    pub(super) fn state(&self) -> Vec<EndpointState> {
        let state = |endpoint: &Endpoint| {
            let (breaker, failures, open) = endpoint.breaker.state_now();
            EndpointState {
                url: endpoint.url.as_str().to_owned(),
                breaker,
                failures,
                open_seconds: open.map(|d| d.as_secs_f64()),
                running: endpoint.busy.load(Ordering::Relaxed),
            }
        };
        self.iter().map(state).collect()
    }

    /// When the next address that is left alone may be tried again, if any is.
    pub(super) fn next_trial(&self) -> Option<Duration> {
        let open = self.0.iter().filter(|e| e.breaker.is_open());
        open.map(|e| e.breaker.open_for().unwrap_or_default()).min()
    }
}

impl Endpoint {
    /// Leave to call this address, or for how long there is none.
    pub(super) fn enter(&self) -> Result<Chosen<'_>, Duration> {
        let pass = self.breaker.pass()?;
        self.busy.fetch_add(1, Ordering::Relaxed);
        Ok(Chosen {
            endpoint: self,
            pass,
            _busy: Busy(&self.busy),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(n: usize) -> Endpoints {
        let limits = Limits {
            breaker_failures: 1,
            ..Limits::for_tests()
        };
        let url = |i| TargetUrl::parse(&format!("http://host{i}")).unwrap();
        Endpoints::new((0..n).map(url).collect(), &limits)
    }

    fn host(chosen: &Chosen<'_>) -> String {
        chosen.endpoint.url.host().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_go_to_the_least_busy_and_not_to_the_broken() {
        let all = endpoints(3);
        let fresh = Tried::default;
        let first = all.choose(&fresh()).unwrap();
        let second = all.choose(&fresh()).unwrap();
        let third = all.choose(&fresh()).unwrap();
        assert_eq!(
            [host(&first), host(&second), host(&third)],
            ["host0", "host1", "host2"]
        );
        drop(second);
        assert_eq!(host(&all.choose(&fresh()).unwrap()), "host1");
        let Chosen { pass, .. } = all.choose(&fresh()).unwrap();
        pass.failed();
        assert_eq!(all.open(), 1);
        drop((first, third));
        assert_eq!(host(&all.choose(&fresh()).unwrap()), "host0");
        assert_eq!(all.all_open(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn another_attempt_goes_elsewhere_if_it_can() {
        let all = endpoints(2);
        let tried = Tried::default();
        assert_eq!(host(&all.choose(&tried).unwrap()), "host0");
        assert_eq!(host(&all.choose(&tried).unwrap()), "host1");
        assert_eq!(host(&all.choose(&tried).unwrap()), "host0");
        for _ in 0..2 {
            let Chosen { pass, .. } = all.choose(&Tried::default()).unwrap();
            pass.failed();
        }
        assert!(all.choose(&Tried::default()).is_err());
        assert_eq!(all.all_open(), Some(Limits::for_tests().breaker_open));
        assert_eq!(all.next_trial(), Some(Limits::for_tests().breaker_open));
    }
}
