//! The addresses of an upstream: which one a call goes to, and what calls show of each.

mod address;
mod method;
mod outages;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::address::{AddressState, BreakerPolicy, Readiness};
use self::method::Method;
use super::state::EndpointState;
use crate::model::{Limits, Millis, TargetUrl, TimeRange};
use crate::store::joint::{JointLimit, JointRests};

pub(super) use self::address::{SILENT, Verdict};
pub(super) use self::method::Taken;

/// All addresses, the preferred one first.
#[derive(Debug)]
pub(super) struct Addresses {
    all: Vec<Address>,
    policy: BreakerPolicy,
}

#[derive(Debug)]
struct Address {
    url: TargetUrl,
    // A plain mutex: it is held for a look-up and never across an await.
    state: Mutex<AddressState>,
    // The same.
    method: Mutex<Method>,
}

impl Address {
    fn state(&self) -> MutexGuard<'_, AddressState> {
        // Each change is of plain values, none of which can be left half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn method(&self) -> MutexGuard<'_, Method> {
        self.method.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The addresses that one call has been tried at, as bits; beyond 64 none is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tried(u64);

impl Tried {
    /// Returns the same with the address `index`.
    #[must_use]
    pub(super) fn with(self, index: usize) -> Self {
        Self(self.0 | Self::bit(index))
    }

    fn has(self, index: usize) -> bool {
        self.0 & Self::bit(index) != 0
    }

    fn bit(index: usize) -> u64 {
        u32::try_from(index)
            .ok()
            .and_then(|index| 1u64.checked_shl(index))
            .unwrap_or(0)
    }
}

/// The requirements of a call on its address.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    /// The addresses at which it has been tried already: others are preferred.
    pub(super) tried: Tried,
    /// The time that it asks about: an address that was away then is asked last.
    pub(super) span: Option<TimeRange>,
    /// Set for a trial, which goes to an address with an open breaker if all breakers are open.
    pub(super) trial: bool,
    /// The only address that it may go to.
    pub(super) only: Option<usize>,
}

impl Wish {
    /// Returns whether the same addresses may be called for `other`.
    pub(super) fn alike(&self, other: &Self) -> bool {
        self.trial == other.trial && self.only == other.only
    }
}

/// The prospects of a call that waits for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// A call may be made now.
    Ready,
    /// No call may be made before the given time, as all addresses rest.
    From(Instant),
    /// A call may be made when one in flight has ended, or at the given time, when an address has rested.
    Later(Option<Instant>),
    /// The breakers of all addresses are open; the next trial is at the given time.
    Open(Instant),
}

/// An address that a call goes to. Dropped without a verdict it is no evidence.
#[derive(Debug)]
pub(super) struct Chosen {
    addresses: Arc<Addresses>,
    /// The index of the address.
    pub(super) index: usize,
    /// The time at which the call was sent, and what the address needs to take in its end.
    sent: Instant,
    round: u64,
    /// Set if its breaker was open, so that this is a trial.
    pub(super) trial: bool,
    /// Set if it was away at the time that the call asks about, and another was not.
    pub(super) provisional: bool,
    ended: bool,
}

impl Chosen {
    /// Where it is.
    pub(super) fn url(&self) -> &TargetUrl {
        // The index is one of a list that never changes.
        #[allow(clippy::indexing_slicing)]
        &self.addresses.all[self.index].url
    }

    /// Returns whether it is asked by GET, where that is found out.
    pub(super) fn is_asked_by_get(&self) -> bool {
        let address = self.addresses.all.get(self.index);
        address.is_some_and(|address| address.method().is_get())
    }

    /// Takes in whether it `refused` a query that was sent `by_get` or by POST.
    pub(super) fn learn_method(&self, by_get: bool, refused: bool) -> Taken {
        let address = self.addresses.all.get(self.index);
        let learn = |address: &Address| address.method().learn(by_get, refused, Instant::now());
        address.map_or(Taken::Yes, learn)
    }

    /// Returns when the call is to be given up because its address answers none of several, where calls
    /// usually take `usual`; `None` if it is not, as things are: it is the only one, or a trial, or no
    /// other address is better.
    pub(super) fn given_up_at(&self, now: Instant, usual: Duration) -> Option<Instant> {
        let addresses = &self.addresses;
        // One slow question says nothing of the address, nor do the first calls of all.
        if self.trial || usual.is_zero() {
            return None;
        }
        let state = addresses.all.get(self.index)?.state();
        let several = state.running > 1 || state.is_suspect(now, addresses.policy);
        let silent = state.silent_from(usual);
        drop(state);
        let better = |(index, other): (usize, &Address)| {
            let state = other.state();
            index != self.index
                && state.readiness(now) == Readiness::Ready
                && !state.is_silent(now, usual)
                && !state.is_suspect(now, addresses.policy)
        };
        (several && addresses.all.iter().enumerate().any(better)).then_some(silent)
    }

    /// Returns whether there is no other address.
    pub(super) fn is_alone(&self) -> bool {
        self.addresses.policy.alone
    }

    /// Takes in the `verdict` of the call, at the wall time `wall`. Returns whether it is the
    /// address that failed.
    pub(super) fn end(&mut self, verdict: Verdict, wall: Millis) -> bool {
        let Some(address) = self.addresses.all.get(self.index) else {
            return false;
        };
        let mut state = address.state();
        self.ended = true;
        state.ended(self.round);
        let policy = self.addresses.policy;
        state.learn(policy, self.sent, Instant::now(), wall, verdict)
    }

    /// Takes in that it said that `remaining` calls are left until `reset` is over.
    pub(super) fn advised(&self, remaining: u64, spacing: Duration, reset: Duration) {
        if let Some(address) = self.addresses.all.get(self.index) {
            let now = Instant::now();
            address.state().advised(now, remaining, spacing, reset);
        }
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if !self.ended
            && let Some(address) = self.addresses.all.get(self.index)
        {
            address.state().ended(self.round);
        }
    }
}

impl Addresses {
    pub(super) fn new(urls: Vec<TargetUrl>, limits: &Limits) -> Arc<Self> {
        let now = Instant::now();
        let address = |url| Address {
            url,
            state: Mutex::new(AddressState::new(now)),
            method: Mutex::default(),
        };
        let alone = urls.len() == 1;
        Arc::new(Self {
            all: urls.into_iter().map(address).collect(),
            policy: BreakerPolicy {
                failures: limits.breaker_failures,
                open: limits.breaker_open,
                alone,
            },
        })
    }

    /// Returns their URLs.
    pub(super) fn urls(&self) -> impl Iterator<Item = &TargetUrl> {
        self.all.iter().map(|a| &a.url)
    }

    /// Returns the prospects of a call with `wish` at `now`.
    pub(super) fn outlook(&self, wish: &Wish, now: Instant) -> Outlook {
        let mut open = None;
        let mut from = None;
        let mut later = false;
        let sooner = |a: Option<Instant>, b: Instant| Some(a.map_or(b, |a| a.min(b)));
        for (index, address) in self.all.iter().enumerate() {
            if wish.only.is_some_and(|only| only != index) {
                continue;
            }
            match address.state().readiness(now) {
                Readiness::Ready => return Outlook::Ready,
                Readiness::From(at) => from = sooner(from, at),
                Readiness::Later => later = true,
                Readiness::Open(at) => open = sooner(open, at),
            }
        }
        match (later, from, open) {
            (true, from, _) => Outlook::Later(from),
            (_, Some(at), _) => Outlook::From(at),
            // Heliostat's own trial of one address waits for its time; that of a client does not.
            (_, _, Some(at)) if wish.trial && (wish.only.is_none() || at <= now) => Outlook::Ready,
            (_, _, Some(at)) => Outlook::Open(at),
            (false, None, None) => Outlook::Later(None),
        }
    }

    /// Returns the address for a call with `wish` that is made at `now`: the first that may be
    /// called; preferably one at which it has not been tried, that was not away at the time asked
    /// about, and that answers (calls usually take `usual`).
    pub(super) fn choose(
        self: &Arc<Self>,
        wish: &Wish,
        now: Instant,
        usual: Duration,
    ) -> Option<Chosen> {
        let mut best = None;
        let mut clean = 0;
        let allowed = |index: &usize| wish.only.is_none_or(|only| only == *index);
        for (index, address) in self.all.iter().enumerate() {
            let state = address.state();
            let away_then = wish.span.is_some_and(|span| state.outages.meet(&span));
            // One that is away now may know more when it is back.
            let lacks = wish.span.is_none_or(|span| state.outages.are_over(&span));
            clean += usize::from(!lacks);
            if !allowed(&index) {
                continue;
            }
            let open = match state.readiness(now) {
                Readiness::Ready => false,
                Readiness::Open(at) if wish.trial && (wish.only.is_none() || at <= now) => true,
                _ => continue,
            };
            let silent = state.is_silent(now, usual);
            let suspect = state.is_suspect(now, self.policy);
            let tried = wish.tried.has(index);
            let rank = (open, tried, away_then, silent, suspect, index, lacks);
            if best.is_none_or(|best| rank < best) {
                best = Some(rank);
            }
        }
        let (_, _, away_then, _, _, index, lacks) = best?;
        let clean_elsewhere = clean > usize::from(!lacks);
        let address = self.all.get(index)?;
        let mut state = address.state();
        let trial = state.is_open();
        let round = state.sent(now);
        drop(state);
        Some(Chosen {
            addresses: self.clone(),
            index,
            sent: now,
            round,
            trial,
            provisional: away_then && clean_elsewhere,
            ended: false,
        })
    }

    /// Returns whether there is an address that a call has not been `tried` at and that may be
    /// called now.
    pub(super) fn has_other(&self, tried: Tried) -> bool {
        let now = Instant::now();
        let mut others = self.all.iter().enumerate().filter(|(i, _)| !tried.has(*i));
        others.any(|(_, a)| a.state().readiness(now) == Readiness::Ready)
    }

    /// Those that have not been `tried`, in their order.
    pub(super) fn others(&self, tried: Tried) -> impl Iterator<Item = usize> + use<> {
        (0..self.all.len()).filter(move |index| !tried.has(*index))
    }

    /// Whether the address `index` can be expected to answer a call made at `now`, where calls usually take
    /// `usual`.
    pub(super) fn answers(&self, index: usize, now: Instant, usual: Duration) -> bool {
        let Some(address) = self.all.get(index) else {
            return false;
        };
        let state = address.state();
        let ready = matches!(state.readiness(now), Readiness::Ready | Readiness::Later);
        ready && !state.is_silent(now, usual) && !state.is_suspect(now, self.policy)
    }

    /// Returns the number of failures and the last one of an address whose breaker is open.
    pub(super) fn last_failure(&self) -> Option<(u32, String)> {
        self.all.iter().find_map(|address| {
            let state = address.state();
            let error = state.last_error.clone().filter(|_| state.is_open())?;
            Some((state.failures, error))
        })
    }

    /// Returns the error of the address that rests.
    pub(super) fn last_error(&self) -> Option<String> {
        let mut all = self.all.iter();
        all.find_map(|address| address.state().last_error.clone())
    }

    /// Returns the number of addresses with an open breaker.
    pub(super) fn open(&self) -> usize {
        self.all.iter().filter(|a| a.state().is_open()).count()
    }

    /// Returns the addresses that are not well, and may be tried now.
    pub(super) fn to_try(&self) -> Vec<usize> {
        let now = Instant::now();
        let tried = self.all.iter().enumerate().filter(|(_, a)| {
            let state = a.state();
            let due = state.trial_at(self.policy).is_some_and(|at| at <= now);
            due && match state.readiness(now) {
                Readiness::Ready => true,
                Readiness::Open(_) => state.breaker(now).1 == Some(Duration::ZERO),
                Readiness::From(_) | Readiness::Later => false,
            }
        });
        tried.map(|(index, _)| index).collect()
    }

    /// Returns the time until the next trial of an address that is not well, if there is one.
    pub(super) fn next_trial(&self) -> Option<Duration> {
        let now = Instant::now();
        let trials = self
            .all
            .iter()
            .filter_map(|a| a.state().trial_at(self.policy));
        let next = trials.min()?;
        Some(next.saturating_duration_since(now))
    }

    /// Returns the time for which all of them rest, and the greatest distance of calls that one
    /// asked for.
    pub(super) fn resting(&self) -> (Option<Duration>, Option<Duration>) {
        let now = Instant::now();
        let rests: Option<Vec<_>> = self.all.iter().map(|a| a.state().resting(now)).collect();
        let spacing = self.all.iter().filter_map(|a| a.state().spacing(now)).max();
        (rests.and_then(|rests| rests.into_iter().min()), spacing)
    }

    /// Tells other replicas, through `limit`, for how long addresses have asked this one to rest, and lets
    /// them rest for what others tell, as long as what is returned is kept.
    pub(super) fn tell(self: &Arc<Self>, limit: &JointLimit) -> Arc<JointRests> {
        let urls = self.urls().map(|url| url.as_str().to_owned()).collect();
        let (told, take) = (self.clone(), self.clone());
        let told = move || {
            let now = Instant::now();
            let all = told.all.iter().enumerate();
            all.filter_map(|(at, address)| Some((at, address.state().asked_rest(now)?)))
                .collect()
        };
        let take = move |at: usize, rest| {
            if let Some(address) = take.all.get(at) {
                address.state().asked_elsewhere(Instant::now(), rest);
            }
        };
        limit.rests(urls, Box::new(told), Box::new(take))
    }

    /// Returns the state of each.
    pub(super) fn state(&self) -> Vec<EndpointState> {
        let now = Instant::now();
        let state = |address: &Address| {
            let state = address.state();
            let (breaker, open) = state.breaker(now);
            EndpointState {
                url: address.url.as_str().to_owned(),
                breaker,
                failures: state.failures,
                open_seconds: open.map(|d| d.as_secs_f64()),
                running: state.running,
            }
        };
        self.all.iter().map(state).collect()
    }
}

#[cfg(test)]
mod tests;
