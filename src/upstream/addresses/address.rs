//! One address of an upstream: whether a call may go to it.
//!
//! An address that failed several times in a row gets no calls for a while (its breaker is open),
//! and then one call as a trial. One that cannot take more calls for now rests for as long as it
//! asks, or for a second, then for half of the time that it has been away. Either comes back with one call
//! first. After a good one a failed address gets more calls step by step, and one that rested as many
//! as the limits allow, unless it has just refused these.

use std::time::Duration;

use tokio::time::Instant;

use super::outages::Outages;
use crate::model::Millis;

/// The shortest rest of an address that does not say how long it needs. One that refuses calls again sooner
/// than that after it came back cannot take as many as the limits allow.
const REST: Duration = Duration::from_secs(1);

/// The longest that an address rests because it asks for it.
pub(crate) const LONGEST_REST: Duration = Duration::from_secs(300);

/// The greatest distance of calls to an address that says how many are left: it still gets a call
/// now and then, and can say that there are more.
const LONGEST_SPACING: Duration = Duration::from_secs(60);

/// An address that comes back slowly may have one more concurrent call after each that succeeds, up to
/// this number; then any number.
const BACK: usize = 16;

/// An address that has answered no call for this many times the usual latency, and for `SILENT` at
/// least, is asked last until it fails or answers.
const SILENT_TIMES: u32 = 4;
pub(crate) const SILENT: Duration = Duration::from_millis(500);

/// The conditions for opening a breaker.
#[derive(Clone, Copy, Debug)]
pub(super) struct BreakerPolicy {
    /// Number of failures in a row.
    pub(super) failures: u32,
    /// Time for which it stays open.
    pub(super) open: Duration,
    /// Set if there is no other address.
    pub(super) alone: bool,
}

/// The evidence of a call about the address that it went to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It works: it answered, if only that the query has no answer.
    Works,
    /// It does not work, for this reason.
    Fails(String),
    /// The call ran out of time. That shows something only if no other call was answered meanwhile.
    TimedOut(String),
    /// It cannot take more calls, for as long as it says.
    Busy(Option<Duration>, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    /// Its breaker is open, until a trial succeeds.
    Failed,
    /// It rests.
    Resting,
}

/// The readiness of an address for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Ready.
    Ready,
    /// Not before the given time.
    From(Instant),
    /// When a call in flight has ended.
    Later,
    /// Not until a trial that can be made at the given time has succeeded.
    Open(Instant),
}

/// The state of an address.
#[derive(Debug)]
pub(super) struct AddressState {
    /// Calls in flight to it.
    pub(super) running: usize,
    /// Failures in a row.
    pub(super) failures: u32,
    /// The message of the last failure.
    pub(super) last_error: Option<String>,
    /// The times at which it was away, of which it may have no data.
    pub(super) outages: Outages,
    away: Option<Away>,
    /// The time at which it went away, and the time from which it may be called again.
    went: Instant,
    until: Instant,
    /// Until when it has asked this replica to rest.
    asked_until: Option<Instant>,
    /// The time since which it has refused all calls.
    busy_since: Option<Instant>,
    /// The time at which it came back from its last rest.
    back: Option<Instant>,
    /// Number of calls that may run while it comes back, of those sent since.
    slots: Option<usize>,
    /// Such calls in flight, and the number of times that it went away.
    since: usize,
    round: u64,
    /// Set if it gets more calls step by step when it comes back.
    slowly: bool,
    /// The distance that calls must keep, and until when.
    spacing: Option<(Duration, Instant)>,
    last_sent: Option<Instant>,
    last_answer: Option<Instant>,
    /// The time of its last failure, if it has not answered since.
    last_failure: Option<Instant>,
    /// The time since which calls are in flight of which none has been answered.
    silent_since: Instant,
}

impl AddressState {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            running: 0,
            failures: 0,
            last_error: None,
            outages: Outages::default(),
            away: None,
            went: now,
            until: now,
            asked_until: None,
            busy_since: None,
            back: None,
            slots: None,
            since: 0,
            round: 0,
            slowly: false,
            spacing: None,
            last_sent: None,
            last_answer: None,
            last_failure: None,
            silent_since: now,
        }
    }

    /// Returns whether a call may go to it at `now`.
    pub(super) fn readiness(&self, now: Instant) -> Readiness {
        let full = self.slots.is_some_and(|slots| self.since >= slots);
        match self.away {
            Some(Away::Failed) if full || now < self.until => return Readiness::Open(self.until),
            Some(Away::Resting) if now < self.until => return Readiness::From(self.until),
            _ if full => return Readiness::Later,
            _ => {}
        }
        match self.spaced(now) {
            Some(next) if next > now => Readiness::From(next),
            _ => Readiness::Ready,
        }
    }

    /// Returns the time of the next call by the distance that calls must keep.
    fn spaced(&self, now: Instant) -> Option<Instant> {
        let (spacing, until) = self.spacing.filter(|(_, until)| *until > now)?;
        Some((self.last_sent? + spacing).min(until))
    }

    /// Returns the distance that calls must keep, if the address asked for one.
    pub(super) fn spacing(&self, now: Instant) -> Option<Duration> {
        let (spacing, _) = self.spacing.filter(|(_, until)| *until > now)?;
        Some(spacing)
    }

    /// Returns whether calls are in flight of which none has been answered for long, where calls
    /// usually take `usual`.
    pub(super) fn is_silent(&self, now: Instant, usual: Duration) -> bool {
        self.running > 0 && now > self.silent_from(usual)
    }

    /// Returns from when on it is silent if it answers none of the calls under way.
    pub(super) fn silent_from(&self, usual: Duration) -> Instant {
        self.silent_since + SILENT.max(usual.saturating_mul(SILENT_TIMES))
    }

    /// Returns whether it has failed since its last answer, no longer ago than a breaker stays
    /// open.
    pub(super) fn is_suspect(&self, now: Instant, policy: BreakerPolicy) -> bool {
        let fails = |at| now.saturating_duration_since(at) < policy.open;
        self.last_failure.is_some_and(fails)
    }

    /// Returns when Heliostat itself asks it whether it is well, if it is not: clients' calls go to others
    /// then.
    pub(super) fn trial_at(&self, policy: BreakerPolicy) -> Option<Instant> {
        match self.last_failure {
            _ if self.is_open() => Some(self.until),
            Some(failed) if !policy.alone => Some(self.until.max(failed + policy.open.max(REST))),
            _ => None,
        }
    }

    /// Returns whether its breaker is open.
    pub(super) fn is_open(&self) -> bool {
        self.away == Some(Away::Failed)
    }

    /// Returns the time for which it rests.
    pub(super) fn resting(&self, now: Instant) -> Option<Duration> {
        let rests = self.away == Some(Away::Resting) && self.until > now;
        rests.then(|| self.until.saturating_duration_since(now))
    }

    /// Returns the state of its breaker by name, and the time until a trial.
    pub(super) fn breaker(&self, now: Instant) -> (&'static str, Option<Duration>) {
        match self.away {
            Some(Away::Failed) if self.since > 0 && self.until <= now => ("probing", None),
            Some(Away::Failed) => ("open", Some(self.until.saturating_duration_since(now))),
            _ => ("closed", None),
        }
    }

    /// Takes in that a call goes to it at `now`. Returns the number to [end](Self::ended) it with.
    pub(super) fn sent(&mut self, now: Instant) -> u64 {
        if self.running == 0 {
            self.silent_since = now;
        }
        self.running += 1;
        self.since += 1;
        self.last_sent = Some(now);
        self.round
    }

    /// Takes in that a call is no longer in flight that was sent in `round`.
    pub(super) fn ended(&mut self, round: u64) {
        self.running -= 1;
        if round == self.round {
            self.since -= 1;
        }
    }

    /// Lets one call go first, however many are in flight that may say nothing any more.
    fn one_first(&mut self) {
        self.slots = Some(1);
        self.since = 0;
        self.round += 1;
    }

    /// Takes in the `verdict` of a call that was sent at `sent` and ended at `now`, which is `wall`
    /// by the wall clock. Returns whether it is a failure of the address.
    pub(super) fn learn(
        &mut self,
        policy: BreakerPolicy,
        sent: Instant,
        now: Instant,
        wall: Millis,
        verdict: Verdict,
    ) -> bool {
        // The result of a call that was sent before it went away says little about now.
        let old = self.away.is_some() && sent < self.went;
        match verdict {
            Verdict::Works if old => false,
            Verdict::Works => {
                self.failures = 0;
                self.busy_since = None;
                if self.away.take() == Some(Away::Resting) {
                    self.back = Some(now);
                }
                self.last_answer = Some(now);
                self.last_failure = None;
                self.silent_since = now;
                let more = self.slots.map(|n| n + 1);
                self.slots = more.filter(|n| self.slowly && *n < BACK);
                self.outages.answered(wall);
                false
            }
            Verdict::TimedOut(_) if self.last_answer.is_some_and(|at| at > sent) => false,
            Verdict::Fails(error) | Verdict::TimedOut(error) => {
                self.outages.failed(wall);
                self.last_error = Some(error);
                self.last_failure = Some(now);
                if !policy.alone {
                    // Other addresses are asked; of the calls to this one, one at a time finds out
                    // whether it is back.
                    if self.slots != Some(1) {
                        self.one_first();
                    }
                    self.slowly = true;
                }
                if !(old && self.is_open()) {
                    self.failures = self.failures.saturating_add(1);
                    if self.is_open() || self.failures >= policy.failures {
                        self.slowly = true;
                        self.leave(Away::Failed, now, policy.open);
                    }
                }
                true
            }
            Verdict::Busy(asked, error) => {
                self.outages.failed(wall);
                self.last_error = Some(error);
                self.last_failure = Some(now);
                if !old {
                    // Several calls at once are too many for it, soon after one alone was not; what
                    // refuses one alone is an outage.
                    let soon = |back| sent.saturating_duration_since(back) < REST;
                    let several = self.slots != Some(1);
                    self.slowly = several && (self.slowly || self.back.is_some_and(soon));
                }
                let since = *self.busy_since.get_or_insert(now);
                let usual = now.saturating_duration_since(since) / 2;
                // Never longer than a breaker would be open, unless the address asks for it.
                let usual = usual.min(policy.open).max(REST);
                // One that has refused several calls is not believed that the next one is welcome at once.
                let asked = asked.filter(|rest| !rest.is_zero() || since == now);
                let rest = asked.unwrap_or(usual).min(LONGEST_REST);
                if asked.is_some() {
                    self.asked(now, rest);
                }
                match self.away {
                    // A trial with this answer has not succeeded.
                    Some(Away::Failed) => self.leave(Away::Failed, now, policy.open.max(rest)),
                    _ if old && asked.is_none() => {}
                    _ => self.leave(Away::Resting, now, rest),
                }
                false
            }
        }
    }

    fn leave(&mut self, away: Away, now: Instant, duration: Duration) {
        let until = now + duration;
        // An earlier request for a pause stays in force.
        self.until = match self.away {
            Some(before) if before == away => self.until.max(until),
            _ => until,
        };
        self.away = Some(away);
        self.went = now;
        self.one_first();
    }

    fn asked(&mut self, now: Instant, rest: Duration) {
        self.asked_until = self.asked_until.max(Some(now + rest));
    }

    /// Returns for how long from `now` it has asked this replica to rest.
    pub(super) fn asked_rest(&self, now: Instant) -> Option<Duration> {
        let rest = self.asked_until?.saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }

    /// Takes in that it has asked another replica for a `rest` from `now` on.
    pub(super) fn asked_elsewhere(&mut self, now: Instant, rest: Duration) {
        let until = now + rest.min(LONGEST_REST);
        // The same is heard again and again.
        let known = self.away.is_some() && self.until + REST / 2 >= until;
        if known || self.is_open() {
            return;
        }
        self.last_error = Some("it asked another replica for a pause (Retry-After)".to_owned());
        self.leave(Away::Resting, now, until.duration_since(now));
    }

    /// Takes in that it said at `now` that `remaining` calls are left until `reset` is over.
    pub(super) fn advised(
        &mut self,
        now: Instant,
        remaining: u64,
        spacing: Duration,
        reset: Duration,
    ) {
        let reset = reset.min(LONGEST_REST);
        if remaining == 0 {
            self.asked(now, reset);
            if !self.is_open() {
                self.leave(Away::Resting, now, reset);
            }
        } else {
            self.spacing = Some((spacing.min(LONGEST_SPACING), now + reset));
        }
    }
}
