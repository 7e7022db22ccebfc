//! The rate of an upstream: one of this process alone, or one that replicas keep together. Of the
//! latter permits are asked for as calls wait; while the level cannot be asked, this replica keeps to
//! its share.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::SharedLimiter;
use super::rate::Rate;
use crate::model::Limits;
use crate::store::joint::{JointLimit, PERMITS_LAST};
use crate::store::standing::{Mode, WHOLE};

/// Permits are asked for that last so long, in seconds, at most.
const BATCH: f64 = 0.2;

/// When a queue is looked at again that waits for permits, which may not come.
const LOOK: Duration = Duration::from_millis(100);

/// Shortest and longest time until permits are asked for again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

/// When permits are asked for again after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The rate of an upstream.
#[derive(Debug)]
pub(super) enum LimiterPace {
    /// Of this process.
    Own(Rate),
    /// Of all replicas.
    Joint(JointPace),
}

/// A rate that replicas keep together.
#[derive(Debug)]
pub(super) struct JointPace {
    limit: Arc<JointLimit>,
    /// Calls that may be made until then.
    permits: u32,
    until: Instant,
    /// The basis of `rate`: the mode, and the share that is assumed.
    mode: Mode,
    share: u32,
    /// The rate of this replica's share: kept to while it is alone, else to reckon when calls will be
    /// made. `None` if it has no share.
    rate: Option<Rate>,
}

impl LimiterPace {
    pub(super) fn new(limits: &Limits, joint: Option<Arc<JointLimit>>) -> Self {
        let Some(limit) = joint else {
            return Self::Own(Rate::new(limits.per_second, limits.burst));
        };
        let mode = Mode::Together;
        Self::Joint(JointPace {
            permits: 0,
            until: Instant::now(),
            rate: rate(&limit, mode),
            mode,
            share: limit.likely_share(),
            limit,
        })
    }

    /// Returns the time from `now` that the call after `ahead` others has to wait, as far as it is
    /// known.
    pub(super) fn wait(&self, now: Instant, ahead: usize) -> Duration {
        match self {
            Self::Own(rate) => rate.wait(now, ahead),
            Self::Joint(joint) => match &joint.rate {
                Some(rate) => rate.wait(now, ahead),
                None => NO_SHARE,
            },
        }
    }

    /// Makes sure that a call may be made at `now`; the error is how long it has to wait.
    pub(super) fn ready(&mut self, now: Instant) -> Result<(), Duration> {
        match self {
            Self::Own(rate) => rate.ready(now),
            Self::Joint(joint) => joint.ready(now),
        }
    }

    /// Makes the call at `now` that [`LimiterPace::ready`] has allowed.
    pub(super) fn take(&mut self, now: Instant) {
        match self {
            Self::Own(rate) => rate.take(now),
            Self::Joint(joint) => {
                joint.permits = joint.permits.saturating_sub(1);
                if let Some(rate) = &mut joint.rate {
                    rate.take(now);
                }
            }
        }
    }

    /// Whether half of a burst is left at `now`.
    pub(super) fn has_spare(&self, now: Instant) -> bool {
        self.rate()
            .is_some_and(|rate| rate.wait(now, (rate.burst() / 2) as usize).is_zero())
    }

    /// Returns whether a whole burst is left at `now`. A replica without a share has none to lose.
    pub(super) fn has_whole_burst(&self, now: Instant) -> bool {
        self.rate()
            .is_none_or(|rate| rate.wait(now, (rate.burst() - 1) as usize).is_zero())
    }

    fn rate(&self) -> Option<&Rate> {
        match self {
            Self::Own(rate) => Some(rate),
            Self::Joint(joint) => joint.rate.as_ref(),
        }
    }

    /// Returns the time between two calls.
    pub(super) fn period(&self) -> Duration {
        match self {
            Self::Own(rate) => rate.period(),
            Self::Joint(joint) => joint.rate.as_ref().map_or(NO_SHARE, Rate::period),
        }
    }

    /// Returns the part of `calls` at once that may be this replica's.
    pub(super) fn at_once(&self, calls: usize) -> usize {
        match self {
            Self::Own(_) => calls,
            Self::Joint(joint) => (calls / joint.limit.live() as usize).max(1),
        }
    }

    /// The part, from 0 to 1, of the limit that is this replica's, if replicas keep it together.
    pub(super) fn share(&self) -> Option<f64> {
        match self {
            Self::Own(_) => None,
            Self::Joint(joint) => Some(f64::from(joint.limit.share()) / f64::from(WHOLE)),
        }
    }

    /// Returns the limit that allows calls, if replicas keep limits together: `shared` or `share`.
    pub(super) fn source(&self) -> Option<&'static str> {
        match self {
            Self::Own(_) => None,
            Self::Joint(joint) => Some(match joint.limit.mode() {
                Mode::Together => "shared",
                Mode::Alone(_) => "share",
            }),
        }
    }
}

/// The wait of a replica that has no share and may make no call.
const NO_SHARE: Duration = Duration::from_secs(86_400);

impl JointPace {
    fn ready(&mut self, now: Instant) -> Result<(), Duration> {
        let mode = self.limit.mode();
        let share = self.limit.likely_share();
        if mode != self.mode || share != self.share {
            self.mode = mode;
            self.share = share;
            self.permits = 0;
            self.rate = rate(&self.limit, mode);
        }
        if mode != Mode::Together {
            return match &mut self.rate {
                // The level may be back any moment.
                Some(rate) => rate.ready(now).map_err(|wait| wait.min(LOOK)),
                None => Err(LOOK),
            };
        }
        if self.permits > 0 && now < self.until {
            return Ok(());
        }
        self.permits = 0;
        self.limit.want();
        Err(LOOK)
    }
}

/// The rate of this replica's share of `limit`.
fn rate(limit: &JointLimit, mode: Mode) -> Option<Rate> {
    let part = |share: u32| f64::from(share) / f64::from(WHOLE);
    match mode {
        Mode::Together => {
            let part = part(limit.likely_share());
            Some(Rate::new(
                limit.per_second * part,
                at_least_one(limit.burst * part),
            ))
        }
        Mode::Alone(None) if limit.without() > 0.0 => {
            Some(Rate::empty(limit.without(), at_least_one(limit.without())))
        }
        Mode::Alone(None | Some(0)) => None,
        Mode::Alone(Some(share)) => {
            let part = part(share);
            let burst = at_least_one(limit.burst * part);
            // Where a share is less than a call at once, the rate gives way: in each second all
            // replicas together make no more calls than one would.
            let second = (limit.per_second + limit.burst) * part - f64::from(burst);
            let per_second = second.min(limit.per_second * part);
            (per_second > 0.0).then(|| Rate::empty(per_second, burst))
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped"
)]
fn at_least_one(calls: f64) -> u32 {
    calls.clamp(1.0, 1e9) as u32
}

/// Asks for permits as calls wait, until `shared` is gone.
pub(super) async fn refill(shared: Weak<SharedLimiter>, limit: Arc<JointLimit>) {
    loop {
        // Whether the limiter is gone has to be looked at now and then.
        let _ = tokio::time::timeout(Duration::from_secs(1), limit.wanted()).await;
        loop {
            let Some(want) = shared.upgrade().map(|shared| shared.wanted()) else {
                return;
            };
            if want == 0 {
                break;
            }
            let until = Instant::now() + PERMITS_LAST;
            let again = match limit.permits(want).await {
                Ok(permits) if permits.granted > 0 => {
                    if let Some(shared) = shared.upgrade() {
                        shared.permitted(permits.granted, until);
                    }
                    continue;
                }
                Ok(permits) => permits.wait.clamp(AGAIN.0, AGAIN.1),
                Err(_) => AFTER_FAILURE,
            };
            tokio::time::sleep(again).await;
        }
    }
}

impl SharedLimiter {
    /// For how many calls permits are wanted now.
    fn wanted(&self) -> u32 {
        let state = self.state();
        let LimiterPace::Joint(pace) = &state.rate else {
            return 0;
        };
        let has = pace.permits > 0 && Instant::now() < pace.until;
        if has || pace.limit.mode() != Mode::Together {
            return 0;
        }
        let free = self.at_once(&state).saturating_sub(state.running);
        let waiting = u32::try_from(state.queue.len().min(free)).unwrap_or(u32::MAX);
        waiting.min(at_least_one((pace.limit.per_second * BATCH).ceil()))
    }

    /// Takes `permits` over, which are good `until` then, and makes the calls that wait for them.
    fn permitted(self: &Arc<Self>, permits: u32, until: Instant) {
        if let LimiterPace::Joint(pace) = &mut self.state().rate {
            pace.permits = permits;
            pace.until = until;
        }
        self.admit_next();
    }
}

#[cfg(test)]
mod tests;
