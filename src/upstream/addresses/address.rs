//! One address of an upstream: whether a call may go to it.
//!
//! An address that failed several times in a row gets no calls for a while (its breaker is open),
//! and then one call as a trial. One that cannot take more calls for now rests for as long as it
//! asks, or for a second, longer each time. Either comes back with one call first, then with more.

use std::time::Duration;

use tokio::time::Instant;

use super::outages::Outages;
use crate::model::Millis;

/// The rest of an address that does not say how long it needs.
const REST: Duration = Duration::from_secs(1);

/// The longest that an address rests because it asks for it.
pub(crate) const LONGEST_REST: Duration = Duration::from_secs(300);

/// The greatest distance of calls to an address that says how many are left: it still gets a call
/// now and then, and can say that there are more.
const LONGEST_SPACING: Duration = Duration::from_secs(60);

/// An address that comes back may have one more concurrent call after each that succeeds, up to
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
    /// Rests in a row.
    rests: u32,
    /// Number of calls that may run while it comes back.
    slots: Option<usize>,
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
            rests: 0,
            slots: None,
            spacing: None,
            last_sent: None,
            last_answer: None,
            last_failure: None,
            silent_since: now,
        }
    }

    /// Returns whether a call may go to it at `now`.
    pub(super) fn readiness(&self, now: Instant) -> Readiness {
        let full = self.slots.is_some_and(|slots| self.running >= slots);
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
            Some(Away::Failed) if self.running > 0 && self.until <= now => ("probing", None),
            Some(Away::Failed) => ("open", Some(self.until.saturating_duration_since(now))),
            _ => ("closed", None),
        }
    }

    /// Takes in that a call goes to it at `now`.
    pub(super) fn sent(&mut self, now: Instant) {
        if self.running == 0 {
            self.silent_since = now;
        }
        self.running += 1;
        self.last_sent = Some(now);
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
                self.rests = 0;
                self.away = None;
                self.last_answer = Some(now);
                self.last_failure = None;
                self.silent_since = now;
                self.slots = self.slots.map(|n| n + 1).filter(|n| *n < BACK);
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
                    self.slots = Some(1);
                }
                if !(old && self.is_open()) {
                    self.failures = self.failures.saturating_add(1);
                    if self.is_open() || self.failures >= policy.failures {
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
                    self.rests = self.rests.saturating_add(1);
                }
                // Never longer than a breaker would be open, unless the address asks for it.
                let longest = policy.open.max(REST);
                let usual = REST.saturating_mul(1 << (self.rests.saturating_sub(1)).min(16));
                let rest = asked.unwrap_or(usual.min(longest)).min(LONGEST_REST);
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
        self.slots = Some(1);
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
            if !self.is_open() {
                self.leave(Away::Resting, now, reset);
            }
        } else {
            self.spacing = Some((spacing.min(LONGEST_SPACING), now + reset));
        }
    }
}
