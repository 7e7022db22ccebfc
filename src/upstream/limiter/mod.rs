//! Limits on the load of an upstream: calls per second, concurrent calls, calls that wait.
//!
//! A call is admitted only if it can be answered before its deadline, given its turn (by the calls
//! that wait already, the rate, and how long calls run) and the usual latency. One that cannot is
//! refused at once. So however many calls come, those that are made are of use, and the upstream is
//! used as far as the limits allow.
//!
//! Estimates can be wrong. A call whose turn comes too late after all is refused then, and where
//! those that wait can no longer all be in time, the one whose turn is last gives way.

mod adaptive;
mod latency;
mod permit;
mod queue;
mod rate;
mod shared;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use self::adaptive::Adaptive;
use self::latency::Latency;
pub(super) use self::permit::{Ended, Permit};
use self::queue::{Place, Queue};
use self::shared::LimiterPace;
use super::addresses::{Addresses, Outlook, Wish};
use super::refusal::{breaker_open, no_call_left, pause, refusal};
use super::state::LimiterState;
use crate::model::{Error, Kind, Limits};
use crate::store::joint::JointLimit;

/// The origin of a call: the address of a client, or Heliostat itself, whose calls wait until no client's does.
pub type Caller = Option<IpAddr>;

/// The caller of trials, which take turns as one client does: an address that no client has.
pub(super) const TRIALS: Caller = Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));

/// A call that asks to be admitted.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// The origin of the call.
    pub(super) caller: Caller,
    /// The lane that it is for; lanes of one caller take turns.
    pub(super) lane: u64,
    /// Set if it continues the work of an earlier call.
    pub(super) continues: bool,
    /// The time after which its answer is of no use.
    pub(super) deadline: Instant,
    /// The addresses that it may go to.
    pub(super) addresses: Arc<Addresses>,
    /// Its requirements on the address.
    pub(super) wish: Wish,
}

impl Ask {
    /// Returns a call for no lane to one of `addresses`, which continues no earlier one.
    pub(super) fn new(caller: Caller, deadline: Instant, addresses: &Arc<Addresses>) -> Self {
        Self {
            caller,
            lane: 0,
            continues: false,
            deadline,
            addresses: addresses.clone(),
            wish: Wish::default(),
        }
    }

    fn place(&self) -> Place {
        Place {
            caller: self.caller,
            lane: self.lane,
            continues: self.continues,
        }
    }

    fn outlook(&self, now: Instant) -> Outlook {
        self.addresses.outlook(&self.wish, now)
    }
}

/// A call that waits.
struct Asking {
    ask: Ask,
    admission: oneshot::Sender<Admission>,
}

/// Admits calls to one upstream, or to all that share it.
#[derive(Clone)]
pub(super) struct Limiter(Arc<SharedLimiter>);

struct SharedLimiter {
    limits: Limits,
    // A plain mutex: it is held to change the queue and never across an await.
    state: Mutex<LimiterQueue>,
}

type Admission = Result<Permit, Error>;

struct LimiterQueue {
    /// Calls in flight.
    running: usize,
    /// The number of calls that may run at once, if it adapts.
    adaptive: Option<Adaptive>,
    rate: LimiterPace,
    latency: Latency,
    queue: Queue<Asking>,
    /// The time at which the queue is checked again.
    wake_at: Option<Instant>,
}

impl std::fmt::Debug for SharedLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedLimiter")
    }
}

/// A ticket of one who waits, given up when dropped.
struct Ticket<'a> {
    shared: &'a Arc<SharedLimiter>,
    caller: Caller,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.state().queue.leave(self.caller, self.number);
    }
}

impl Limiter {
    /// Admits calls as `limits` allow; those of a rate that is `joint` are of all replicas. Within a
    /// runtime if it is.
    pub(super) fn new(limits: &Limits, joint: Option<Arc<JointLimit>>) -> Self {
        let adaptive = limits.adaptive_concurrency;
        let shared = Arc::new(SharedLimiter {
            limits: *limits,
            state: Mutex::new(LimiterQueue {
                running: 0,
                adaptive: adaptive.then(|| Adaptive::new(limits.max_concurrency)),
                rate: LimiterPace::new(limits, joint.clone()),
                latency: Latency::default(),
                queue: Queue::default(),
                wake_at: None,
            }),
        });
        if let Some(joint) = joint {
            tokio::spawn(shared::refill(Arc::downgrade(&shared), joint));
        }
        Self(shared)
    }

    /// Waits until a call may be made; the permit is held while it is in flight. Returns an error,
    /// at once where that can be known, if the queue is full, or if the call would not be answered
    /// before its deadline.
    pub(super) async fn admit(&self, ask: Ask) -> Result<Permit, Error> {
        let shared = &self.0;
        let (ticket, admitted) = {
            let mut state = shared.state();
            shared.admissible(&state, &ask)?;
            if state.queue.len() >= shared.limits.queue {
                // Another caller has more calls waiting: its last one gives way.
                shared.shed_last(&mut state);
            }
            let (admission, admitted) = oneshot::channel();
            let (place, deadline, caller) = (ask.place(), ask.deadline, ask.caller);
            let asking = Asking { ask, admission };
            let number = state.queue.enter(place, deadline, asking);
            shared.shed_hopeless(&mut state, caller);
            let ticket = Ticket {
                shared,
                caller,
                number,
            };
            (ticket, admitted)
        };
        shared.admit_next();
        let permit = admitted.await;
        drop(ticket);
        // The sender lives in the queue until it has sent.
        permit.unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the queue was lost")))
    }

    /// Returns whether nobody waits, and half of the concurrency and of a burst is left.
    pub(super) fn has_spare(&self) -> bool {
        let state = self.0.state();
        let may_run = self.0.at_once(&state);
        state.queue.len() == 0
            && state.running < may_run.div_ceil(2)
            && state.rate.has_spare(Instant::now())
    }

    /// Returns whether a whole burst of calls is left.
    pub(super) fn has_whole_burst(&self) -> bool {
        self.0.state().rate.has_whole_burst(Instant::now())
    }

    /// Returns the time between calls that use half of the rate and of the concurrency.
    pub(super) fn spare_spacing(&self) -> Duration {
        let state = self.0.state();
        let slots = u32::try_from(self.0.at_once(&state).div_ceil(2)).unwrap_or(u32::MAX);
        let by_slots = state.latency.usual() / slots.max(1);
        by_slots.max(state.rate.period() * 2)
    }

    /// Returns the latency that all calls except a few stay below.
    pub(super) fn usual(&self) -> Duration {
        self.0.state().latency.usual()
    }

    /// Returns the time that a call of `caller` for `lane` would wait now for those before it.
    pub(super) fn wait(&self, caller: Caller, lane: u64) -> Duration {
        let state = self.0.state();
        let place = Place {
            caller,
            lane,
            continues: false,
        };
        let now = Instant::now();
        let ahead = state.queue.ahead(now, place);
        let turn = self.0.turn(&state, now, ahead.calls);
        turn.max(ahead.by_pace)
    }

    /// Returns the number of calls that have waited so far.
    #[cfg(test)]
    pub(super) fn entered(&self) -> u64 {
        self.0.state().queue.entered()
    }

    /// Returns the error with which a call would be refused now, if it would be.
    pub(super) fn check(&self, ask: &Ask) -> Result<(), Error> {
        self.0.admissible(&self.0.state(), ask)
    }

    /// Returns the limits, and the calls that wait.
    pub(super) fn state(&self) -> LimiterState {
        let state = self.0.state();
        let limits = &self.0.limits;
        LimiterState {
            per_second: limits.per_second,
            burst: limits.burst,
            running: state.running,
            may_run: self.0.at_once(&state),
            waiting: state.queue.len(),
            queue: limits.queue,
            share: state.rate.share(),
            alone: state.rate.source() == Some("share"),
            paused_seconds: None,
            spacing_seconds: None,
        }
    }
}

impl SharedLimiter {
    fn state(&self) -> MutexGuard<'_, LimiterQueue> {
        // Each change is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an error where the queue is full and nobody else has more calls in it, where no
    /// address may be called, or where the call would not be answered before its deadline.
    fn admissible(&self, state: &LimiterQueue, ask: &Ask) -> Result<(), Error> {
        let now = Instant::now();
        let rests = match ask.outlook(now) {
            Outlook::Open(trial) => return Err(breaker_open(&ask.addresses, trial)),
            Outlook::From(at) => at.saturating_duration_since(now),
            Outlook::Ready | Outlook::Later(_) => Duration::ZERO,
        };
        let ahead = state.queue.ahead(now, ask.place());
        let turn = self.turn(state, now, ahead.calls);
        let turn = turn.max(ahead.by_pace).max(rests);
        let waiting = state.queue.len();
        if waiting >= self.limits.queue && !state.queue.has_longer_line_than(ask.caller) {
            let message = format!("{waiting} calls already wait for the upstream (queue)");
            return Err(refusal(message, turn));
        }
        if turn.is_zero() {
            // Made even if it should come too late for the client: it delays nobody else, is stored
            // for the next request, and shows how long calls take now.
            return Ok(());
        }
        // A call that is estimated to be just in time would be late half of the time. Callers that come later
        // take turns before it, so the estimate of a long wait is not exact.
        let slack = turn.saturating_sub(rests) / 5;
        if now + turn + slack + state.latency.usual() <= ask.deadline {
            return Ok(());
        }
        if now + rests + state.latency.usual() > ask.deadline {
            return Err(pause(&ask.addresses, rests));
        }
        Err(refusal(no_call_left(waiting), turn))
    }

    /// Returns the time from `now` that a call with `ahead` others before it waits, by the rate and
    /// by the number of calls that run at once.
    fn turn(&self, state: &LimiterQueue, now: Instant, ahead: usize) -> Duration {
        let may_run = self.at_once(state);
        let free = may_run.saturating_sub(state.running);
        let slots = match (ahead + 1).saturating_sub(free) {
            0 => Duration::ZERO,
            beyond => state
                .latency
                .mean()
                .mul_f64(beyond as f64 / may_run.max(1) as f64),
        };
        state.rate.wait(now, ahead).max(slots)
    }

    /// Returns the number of calls that may run at once.
    fn at_once(&self, state: &LimiterQueue) -> usize {
        let adaptive = state.adaptive.as_ref();
        let calls = adaptive.map_or(self.limits.max_concurrency, Adaptive::limit);
        state.rate.at_once(calls)
    }

    /// Refuses the call whose turn comes last.
    fn shed_last(&self, state: &mut LimiterQueue) {
        if let Some((caller, ticket, _)) = state.queue.last() {
            let turn = self.turn(state, Instant::now(), state.queue.len() - 1);
            shed(state, caller, ticket, turn);
        }
    }

    /// Refuses calls that have no chance to be answered in time, now that one of `newcomer` has come: that one,
    /// which then has not waited, unless its line is less than half as long as the longest; then from the
    /// end of that.
    fn shed_hopeless(&self, state: &mut LimiterQueue, newcomer: Caller) {
        let mut may_stay = state.queue.has_line_twice_as_long_as(newcomer);
        while let Some((_, _, deadline)) = state.queue.last() {
            let now = Instant::now();
            let turn = self.turn(state, now, state.queue.len() - 1);
            if turn.is_zero() || now + turn + state.latency.usual() <= deadline {
                return;
            }
            match state.queue.last_of(newcomer) {
                Some((ticket, _, _)) if !may_stay => shed(state, newcomer, ticket, turn),
                _ => self.shed_last(state),
            }
            may_stay = true;
        }
    }

    /// Refuses calls in the line of `caller`, which has moved, that have no chance to be answered
    /// in time by its pace: its last ones, and its first.
    fn shed_late(&self, state: &mut LimiterQueue, caller: Caller, now: Instant) {
        for end in [Queue::last_of, Queue::first_of] {
            while let Some((ticket, deadline, wait)) = end(&state.queue, caller) {
                if now + wait + state.latency.usual() <= deadline {
                    break;
                }
                shed(state, caller, ticket, wait);
            }
        }
    }

    /// Admits the next calls, as long as a call may be made now; else has the queue checked again
    /// when one may.
    fn admit_next(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            if state.running >= self.at_once(&state) || state.queue.len() == 0 {
                return;
            }
            let now = Instant::now();
            if let Err(wait) = state.rate.ready(now) {
                self.wake_after(&mut state, wait);
                return;
            }
            let slots = self.at_once(&state).max(1) as f64;
            let by_slots = state.latency.mean().as_secs_f64() / slots;
            let period = by_slots.max(1.0 / self.limits.per_second);
            // Most wait for the same addresses, which are looked up once.
            let mut rest: Option<(*const Addresses, Wish)> = None;
            let mut soonest: Option<Instant> = None;
            let ready = |asking: &Asking| {
                let ask = &asking.ask;
                let same = |(addresses, wish): &(_, Wish)| {
                    std::ptr::eq(*addresses, Arc::as_ptr(&ask.addresses)) && wish.alike(&ask.wish)
                };
                if rest.as_ref().is_some_and(same) {
                    return false;
                }
                match ask.outlook(now) {
                    // A call that can go nowhere any more is refused at once.
                    Outlook::Ready | Outlook::Open(_) => return true,
                    Outlook::From(at) | Outlook::Later(Some(at)) => {
                        soonest = Some(soonest.map_or(at, |s| s.min(at)));
                    }
                    Outlook::Later(None) => {}
                }
                rest = Some((Arc::as_ptr(&ask.addresses), ask.wish));
                false
            };
            let Some((caller, next)) = state.queue.next(now, period, ready) else {
                if let Some(at) = soonest {
                    self.refuse_resting(&mut state, now);
                    self.wake_after(&mut state, at.saturating_duration_since(now));
                }
                return;
            };
            self.shed_late(&mut state, caller, now);
            let waiting = state.queue.len();
            let usual = state.latency.usual();
            let Asking { ask, admission } = next.item;
            let chosen = if waiting > 0 && now + usual > next.deadline {
                // Others can still be answered in time.
                Err(refusal(no_call_left(waiting), Duration::ZERO))
            } else {
                let chosen = ask.addresses.choose(&ask.wish, now, usual);
                chosen.ok_or_else(|| match ask.outlook(now) {
                    Outlook::Open(trial) => breaker_open(&ask.addresses, trial),
                    _ => pause(&ask.addresses, Duration::ZERO),
                })
            };
            let admitted = chosen.map(|chosen| {
                state.rate.take(now);
                state.running += 1;
                Permit {
                    chosen: Some(chosen),
                    limiter: Arc::downgrade(self),
                }
            });
            drop(state);
            // If the call has left meanwhile, the permit comes back when it is dropped.
            let _ = admission.send(admitted);
        }
    }

    /// Refuses calls whose addresses rest until it is too late for them.
    fn refuse_resting(&self, state: &mut LimiterQueue, now: Instant) {
        let usual = state.latency.usual();
        let late = |asking: &Asking| match asking.ask.outlook(now) {
            Outlook::From(at) => at + usual > asking.ask.deadline,
            _ => false,
        };
        for Asking { ask, admission } in state.queue.take_if(late) {
            let wait = match ask.outlook(now) {
                Outlook::From(at) => at.saturating_duration_since(now),
                _ => Duration::ZERO,
            };
            let _ = admission.send(Err(pause(&ask.addresses, wait)));
        }
    }

    fn wake_after(self: &Arc<Self>, state: &mut LimiterQueue, wait: Duration) {
        // Timers are exact to the millisecond; one that fires too early would fire again at once.
        let at = Instant::now() + wait.max(Duration::from_micros(1));
        if state.wake_at.is_some_and(|planned| planned <= at) {
            return;
        }
        state.wake_at = Some(at);
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            if let Some(shared) = shared.upgrade() {
                {
                    let mut state = shared.state();
                    if state.wake_at == Some(at) {
                        state.wake_at = None;
                    }
                }
                shared.admit_next();
            }
        });
    }
}

/// Refuses the call with `ticket`, whose turn would come after `wait`.
fn shed(state: &mut LimiterQueue, caller: Caller, ticket: u64, wait: Duration) {
    let waiting = state.queue.len();
    if let Some(left) = state.queue.leave(caller, ticket) {
        // The call may have left meanwhile.
        let _ = left
            .item
            .admission
            .send(Err(refusal(no_call_left(waiting), wait)));
    }
}

#[cfg(test)]
mod tests;
