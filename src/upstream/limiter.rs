//! What an upstream may be burdened with: calls a second, calls at once, calls that wait; and
//! whose call is next.
//!
//! Those who wait stand in one line for each caller, and the lines take turns: a dashboard of 500
//! panels delays the poll of a check by one call, not by 500. Within a line the lanes take turns,
//! so that a long range of many calls delays no other by more than one. A call that cannot be
//! admitted before its deadline is refused at once.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::state::LimiterState;
use crate::model::{Error, Kind, Limits};

/// Who asks: the address of a client, or Heliostat itself.
pub type Caller = Option<IpAddr>;

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
pub(super) struct Limiter(Arc<SharedLimiter>);

struct SharedLimiter {
    rate: RateLimiter<NotKeyed, InMemoryState, RuntimeClock, NoOpMiddleware<Nanos>>,
    clock: RuntimeClock,
    limits: Limits,
    // A plain mutex: it is held to change the queue and never across an await.
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    /// Calls under way.
    running: usize,
    /// How many may be, if that adapts.
    adapted: Option<Adapted>,
    /// One line for each caller who waits; the first is next, and goes to the end then.
    lines: VecDeque<CallerQueue>,
    /// How many wait in all lines.
    waiting: usize,
    /// No call before this, as the upstream asked.
    paused_until: Option<Instant>,
    /// How far apart calls must be, and until when, as the upstream asked.
    spacing: Option<(Duration, Instant)>,
    /// When the last call was admitted.
    last_admitted: Option<Instant>,
    /// When the queue is looked at again.
    wake_at: Option<Instant>,
    last_ticket: u64,
}

/// Those who wait for one caller; the first lane is next, and goes to the end then.
struct CallerQueue {
    caller: Caller,
    lanes: VecDeque<LaneQueue>,
}

/// Those who wait for data of one lane, by its number.
struct LaneQueue {
    number: u64,
    waiting: VecDeque<(u64, oneshot::Sender<Permit>)>,
}

impl CallerQueue {
    fn len(&self) -> usize {
        self.lanes.iter().map(|l| l.waiting.len()).sum()
    }
}

/// How many calls may run at once, found by trying: a little more after each that goes well, a
/// third less when one does not (additive increase, multiplicative decrease).
#[derive(Clone, Copy, Debug)]
struct Adapted {
    limit: f64,
    /// The shortest time of a call, forgotten slowly.
    shortest: Duration,
    /// When the limit was last lowered.
    lowered: Option<Instant>,
}

/// A call that takes so many times as long as the shortest is one of an upstream that is strained.
const SLOW: u32 = 3;

/// The limit is lowered at most once in this time: calls that fail together are one failure.
const ONE_FAILURE: Duration = Duration::from_secs(1);

impl Adapted {
    fn learn(&mut self, failed: bool, took: Duration, most: usize) {
        let slow = took > self.shortest * SLOW + Duration::from_millis(50);
        // A hundredth a call, so that an upstream that has become slower is not slow for ever.
        self.shortest = (self.shortest + self.shortest / 100).min(took);
        if !failed && !slow {
            self.limit = (self.limit + 1.0 / self.limit).min(most as f64);
            return;
        }
        let now = Instant::now();
        if self
            .lowered
            .is_none_or(|at| now.duration_since(at) >= ONE_FAILURE)
        {
            self.lowered = Some(now);
            self.limit = (self.limit * 0.7).max(1.0);
        }
    }
}

/// Leave to make one call, which is under way until this is dropped.
pub(super) struct Permit(Weak<SharedLimiter>);

impl Permit {
    /// How the call went, for a limit that adapts.
    pub(super) fn report(&self, failed: bool, took: Duration) {
        if let Some(shared) = self.0.upgrade() {
            let most = shared.limits.max_concurrency;
            if let Some(adapted) = &mut shared.state().adapted {
                adapted.learn(failed, took, most);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.state().running -= 1;
            shared.admit_next();
        }
    }
}

/// A place in line, given up when dropped.
struct QueuePlace<'a> {
    shared: &'a Arc<SharedLimiter>,
    caller: Caller,
    ticket: u64,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.shared.state().leave(self.caller, self.ticket);
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
        Self(Arc::new(SharedLimiter {
            rate: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
            limits: *limits,
            state: Mutex::new(QueueState {
                adapted: limits.adaptive_concurrency.then_some(Adapted {
                    limit: limits.max_concurrency as f64,
                    shortest: Duration::from_secs(3600),
                    lowered: None,
                }),
                ..QueueState::default()
            }),
        }))
    }

    /// Waits until a call of `caller` may be made; the permit is held while it is under way. At
    /// once an error where as many wait already as may, or where `deadline` would pass first.
    pub(super) async fn admit(
        &self,
        caller: Caller,
        lane: u64,
        deadline: Instant,
    ) -> Result<Permit, Error> {
        let shared = &self.0;
        let (place, admitted) = {
            let mut state = shared.state();
            shared.admissible(&state, caller, deadline)?;
            let (ticket, admitted) = state.enter(caller, lane);
            let place = QueuePlace {
                shared,
                caller,
                ticket,
            };
            (place, admitted)
        };
        shared.admit_next();
        let permit = admitted.await;
        drop(place);
        // The sender lives in the queue until it has sent.
        permit.map_err(|_| Error::new(Kind::Internal, "the queue was lost"))
    }

    /// How many have stood in line so far; each that was not refused is admitted in the end.
    #[cfg(test)]
    pub(super) fn admitted(&self) -> u64 {
        self.0.state().last_ticket
    }

    /// The error with which a call of `caller` would be refused now, if it would be.
    pub(super) fn check(&self, caller: Caller, deadline: Instant) -> Result<(), Error> {
        self.0.admissible(&self.0.state(), caller, deadline)
    }

    /// What it allows, and who waits.
    pub(super) fn state(&self) -> LimiterState {
        let state = self.0.state();
        let limits = &self.0.limits;
        let now = Instant::now();
        let left = |until: Instant| until.saturating_duration_since(now);
        let paused = state.paused_until.map(left).filter(|d| !d.is_zero());
        let spacing = state.spacing.filter(|(_, until)| *until > now);
        LimiterState {
            per_second: limits.per_second,
            burst: limits.burst,
            running: state.running,
            may_run: self.0.at_once(&state),
            waiting: state.waiting,
            queue: limits.queue,
            paused_seconds: paused.map(|d| d.as_secs_f64()),
            spacing_seconds: spacing.map(|(apart, _)| apart.as_secs_f64()),
        }
    }

    /// Admits no call for `pause`, as the upstream asked. A pause that ends later stays.
    pub(super) fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut state = self.0.state();
        state.paused_until = Some(state.paused_until.map_or(until, |p| p.max(until)));
    }

    /// Lets calls come no nearer together than `spacing`, for `duration`; then that is forgotten.
    pub(super) fn space_out(&self, spacing: Duration, duration: Duration) {
        self.0.state().spacing = Some((spacing, Instant::now() + duration));
    }
}

fn refusal(message: String, wait: Duration) -> Error {
    let wait = wait.clamp(Duration::from_secs(1), Duration::from_secs(3600));
    Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait))
}

impl QueueState {
    fn enter(&mut self, caller: Caller, number: u64) -> (u64, oneshot::Receiver<Permit>) {
        let (sender, admitted) = oneshot::channel();
        self.last_ticket += 1;
        self.waiting += 1;
        let entry = (self.last_ticket, sender);
        let lane = |entry| LaneQueue {
            number,
            waiting: VecDeque::from([entry]),
        };
        match self.lines.iter_mut().find(|l| l.caller == caller) {
            Some(line) => match line.lanes.iter_mut().find(|l| l.number == number) {
                Some(lane) => lane.waiting.push_back(entry),
                None => line.lanes.push_back(lane(entry)),
            },
            None => self.lines.push_back(CallerQueue {
                caller,
                lanes: VecDeque::from([lane(entry)]),
            }),
        }
        (self.last_ticket, admitted)
    }

    fn leave(&mut self, caller: Caller, ticket: u64) {
        let Some(at) = self.lines.iter().position(|l| l.caller == caller) else {
            return;
        };
        if let Some(line) = self.lines.get_mut(at) {
            let before = line.len();
            for lane in &mut line.lanes {
                lane.waiting.retain(|(t, _)| *t != ticket);
            }
            line.lanes.retain(|l| !l.waiting.is_empty());
            self.waiting -= before - line.len();
            if line.lanes.is_empty() {
                self.lines.remove(at);
            }
        }
    }

    /// Takes out who is next. Work of our own waits until no client does.
    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let client = self.lines.iter().position(|l| l.caller.is_some());
        let mut line = self.lines.remove(client.unwrap_or(0))?;
        let mut lane = line.lanes.pop_front()?;
        let (_, sender) = lane.waiting.pop_front()?;
        self.waiting -= 1;
        if !lane.waiting.is_empty() {
            line.lanes.push_back(lane);
        }
        if !line.lanes.is_empty() {
            self.lines.push_back(line);
        }
        Some(sender)
    }
}

impl SharedLimiter {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        // Each change is made whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error where as many calls wait as may, or where `deadline` would pass before a call's turn.
    fn admissible(
        &self,
        state: &QueueState,
        caller: Caller,
        deadline: Instant,
    ) -> Result<(), Error> {
        if state.waiting >= self.limits.queue {
            let wait = self.shortest_wait(state, caller);
            let message = format!(
                "{} calls wait for the upstream already (queue)",
                state.waiting
            );
            return Err(refusal(message, wait));
        }
        if let Some(until) = state.paused_until.filter(|until| *until > deadline) {
            let wait = until.saturating_duration_since(Instant::now());
            let message = "the upstream asked for a pause (Retry-After)";
            return Err(Error::new(Kind::UpstreamBusy, message).retry_after(Some(wait)));
        }
        let wait = self.shortest_wait(state, caller);
        if Instant::now() + wait > deadline {
            let message = format!(
                "the upstream's limits leave no call before the request's deadline; {} calls wait",
                state.waiting
            );
            return Err(refusal(message, wait));
        }
        Ok(())
    }

    /// The least time that a call of `caller` for another lane, which comes now, will wait for the
    /// rate: its turn comes when each lane of its line has had one, and each other line has moved
    /// as often.
    fn shortest_wait(&self, state: &QueueState, caller: Caller) -> Duration {
        let own = state.lines.iter().find(|l| l.caller == caller);
        let own = own.map_or(0, |l| l.lanes.len());
        let others = state.lines.iter().filter(|l| l.caller != caller);
        let before = own + others.map(|l| l.len().min(own)).sum::<usize>();
        // Who waits for the rate now shows that no burst is left; else some may be.
        let burst = if state.wake_at.is_some() {
            0
        } else {
            self.limits.burst as usize
        };
        let beyond = before.saturating_sub(burst);
        let for_rate = Duration::from_secs_f64(beyond as f64 / self.limits.per_second);
        let pause = state
            .paused_until
            .map(|p| p.saturating_duration_since(Instant::now()));
        for_rate.max(pause.unwrap_or_default())
    }

    /// How many calls may run at once.
    fn at_once(&self, state: &QueueState) -> usize {
        let adapted = state.adapted.map(|a| a.limit as usize);
        adapted.unwrap_or(self.limits.max_concurrency)
    }

    /// Admits whoever is next, as long as a call may be made now; else sees to it that the queue
    /// is looked at when one may.
    fn admit_next(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            if state.running >= self.at_once(&state) || state.waiting == 0 {
                return;
            }
            if let Some(wait) = self.wait(&mut state) {
                self.wake_after(&mut state, wait);
                return;
            }
            let Some(next) = state.next() else { return };
            state.running += 1;
            drop(state);
            // Whoever has left meanwhile gives the permit back by dropping it.
            let _ = next.send(Permit(Arc::downgrade(self)));
        }
    }

    /// For how long no call may be made, or `None`, with a call taken from the rate.
    fn wait(&self, state: &mut QueueState) -> Option<Duration> {
        if let Some(until) = state.paused_until {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Some(left);
            }
            state.paused_until = None;
        }
        if let Some((spacing, until)) = state.spacing {
            let now = Instant::now();
            let next = state
                .last_admitted
                .map_or(now, |last| (last + spacing).min(until));
            let left = next.saturating_duration_since(now);
            if !left.is_zero() {
                return Some(left);
            }
            if now >= until {
                state.spacing = None;
            }
        }
        let Err(not_until) = self.rate.check() else {
            state.last_admitted = Some(Instant::now());
            return None;
        };
        let wait = not_until
            .earliest_possible()
            .duration_since(self.clock.now());
        // Timers are exact to the millisecond; one that rings too early would ring again at once.
        Some(Duration::from(wait).max(Duration::from_micros(1)))
    }

    fn wake_after(self: &Arc<Self>, state: &mut QueueState, wait: Duration) {
        let at = Instant::now() + wait;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_second: f64, burst: u32, max_concurrency: usize, queue: usize) -> Limits {
        Limits {
            per_second,
            burst,
            max_concurrency,
            queue,
            ..Limits::for_tests()
        }
    }

    fn caller(n: u8) -> Caller {
        Some(IpAddr::from([10, 0, 0, n]))
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_keep_to_the_rate_after_a_burst() {
        let limiter = Limiter::new(&limits(10.0, 5, 100, 100));
        let start = Instant::now();
        let mut times = Vec::new();
        for _ in 0..25 {
            drop(limiter.admit(None, 0, later()).await.unwrap());
            times.push(start.elapsed().as_millis());
        }
        assert_eq!(times[4], 0);
        assert!((100..=101).contains(&times[5]), "{times:?}");
        assert!((2000..=2021).contains(&times[24]), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_run_at_once_than_may_and_no_more_wait() {
        let limiter = Arc::new(Limiter::new(&limits(1000.0, 1000, 2, 3)));
        let first = limiter.admit(None, 0, later()).await.unwrap();
        let second = limiter.admit(None, 0, later()).await.unwrap();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move { limiter.admit(None, 0, later()).await.map(|_| ()) })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(limiter.0.state().waiting, 3);
        let refused = limiter
            .admit(None, 0, later())
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(refused.kind, Kind::UpstreamBudget);
        assert!(refused.retry_after.is_some());
        drop((first, second));
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        let state = limiter.0.state();
        assert_eq!((state.waiting, state.running, state.lines.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_greedy_caller_delays_a_modest_one_by_one_call() {
        let limiter = Arc::new(Limiter::new(&limits(10.0, 1, 1000, 1000)));
        let start = Instant::now();
        let enter = |who: u8| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                drop(limiter.admit(caller(who), 0, later()).await.unwrap());
                start.elapsed()
            })
        };
        let greedy: Vec<_> = (0..500).map(|_| enter(1)).collect();
        tokio::task::yield_now().await;
        let modest: Vec<_> = (0..3).map(|_| enter(2)).collect();
        let mut times = Vec::new();
        for task in modest {
            times.push(task.await.unwrap());
        }
        assert!(times[0] <= Duration::from_millis(301), "{times:?}");
        assert!(times[2] <= Duration::from_millis(701), "{times:?}");
        let mut last = Duration::ZERO;
        for task in greedy {
            last = last.max(task.await.unwrap());
        }
        let total = Duration::from_millis(50_200);
        assert!(
            last.abs_diff(total) < Duration::from_millis(200),
            "{last:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_with_many_calls_delays_another_by_one() {
        let limiter = Arc::new(Limiter::new(&limits(10.0, 1, 1000, 1000)));
        let start = Instant::now();
        let enter = |lane: u64| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                drop(limiter.admit(caller(1), lane, later()).await.unwrap());
                start.elapsed()
            })
        };
        let long: Vec<_> = (0..100).map(|_| enter(1)).collect();
        tokio::task::yield_now().await;
        let short = enter(2);
        assert!(short.await.unwrap() <= Duration::from_millis(201));
        for task in long {
            task.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_go_before_work_of_our_own() {
        let limiter = Arc::new(Limiter::new(&limits(10.0, 1, 1000, 1000)));
        let start = Instant::now();
        let enter = |who: Caller| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                drop(limiter.admit(who, 0, later()).await.unwrap());
                start.elapsed()
            })
        };
        let own: Vec<_> = (0..5).map(|_| enter(None)).collect();
        tokio::task::yield_now().await;
        let clients: Vec<_> = (0..5).map(|n| enter(caller(n))).collect();
        let mut last_client = Duration::ZERO;
        for task in clients {
            last_client = last_client.max(task.await.unwrap());
        }
        let mut own_times = Vec::new();
        for task in own {
            own_times.push(task.await.unwrap());
        }
        let after = own_times.iter().filter(|t| **t > last_client).count();
        assert_eq!(after, 4, "all but the one that went before a client came");
    }

    #[tokio::test(start_paused = true)]
    async fn concurrency_adapts_to_what_the_upstream_can_take() {
        let limiter = Limiter::new(&Limits {
            adaptive_concurrency: true,
            max_concurrency: 20,
            ..Limits::for_tests()
        });
        let at_once = || limiter.0.at_once(&limiter.0.state());
        let call = async |failed: bool, millis: u64| {
            let permit = limiter.admit(None, 0, later()).await.unwrap();
            permit.report(failed, Duration::from_millis(millis));
        };
        call(false, 100).await;
        assert_eq!(at_once(), 20);
        call(true, 100).await;
        call(true, 100).await;
        assert_eq!(at_once(), 14, "failures that come together count once");
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(2)).await;
            call(false, 1000).await;
        }
        assert!(at_once() < 14, "slow answers lower it too");
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(2)).await;
            call(true, 100).await;
        }
        assert_eq!(at_once(), 1);
        for _ in 0..500 {
            call(false, 100).await;
        }
        assert_eq!(at_once(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_make_it_is_refused_at_once_and_told_when_to_come() {
        let limiter = Arc::new(Limiter::new(&limits(1.0, 1, 1000, 1000)));
        for lane in 0..20 {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.admit(caller(1), lane, later()).await.map(|_| ()) });
        }
        tokio::task::yield_now().await;
        let begun = Instant::now();
        let soon = begun + Duration::from_secs(5);
        let refused = limiter
            .admit(caller(1), 99, soon)
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(19)));
        // Another caller has a line of its own.
        limiter.admit(caller(2), 0, soon).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_in_line_is_given_up_by_leaving() {
        let limiter = Arc::new(Limiter::new(&limits(1.0, 1, 1000, 1000)));
        drop(limiter.admit(None, 0, later()).await.unwrap());
        let leaving = limiter.admit(None, 0, later());
        let _ = tokio::time::timeout(Duration::from_millis(10), leaving).await;
        assert_eq!(limiter.0.state().waiting, 0);
        let begun = Instant::now();
        drop(limiter.admit(None, 0, later()).await.unwrap());
        assert!(begun.elapsed() <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_spaced_out_as_long_as_asked() {
        let limiter = Limiter::new(&limits(1000.0, 1000, 10, 10));
        drop(limiter.admit(None, 0, later()).await.unwrap());
        limiter.space_out(Duration::from_secs(2), Duration::from_secs(5));
        let begun = Instant::now();
        let mut times = Vec::new();
        for _ in 0..5 {
            drop(limiter.admit(None, 0, later()).await.unwrap());
            times.push(begun.elapsed().as_secs());
        }
        assert_eq!(times, [2, 4, 5, 5, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everyone_and_is_forgotten() {
        let limiter = Limiter::new(&limits(1000.0, 1000, 10, 10));
        limiter.pause(Duration::from_secs(7));
        limiter.pause(Duration::from_secs(2));
        let begun = Instant::now();
        let soon = begun + Duration::from_secs(3);
        let refused = limiter.admit(None, 0, soon).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.retry_after, Some(Duration::from_secs(7)));
        drop(limiter.admit(None, 0, later()).await.unwrap());
        assert!((7000..7010).contains(&begun.elapsed().as_millis()));
        drop(limiter.admit(None, 0, later()).await.unwrap());
        assert!(begun.elapsed().as_millis() < 7010);
    }
}
