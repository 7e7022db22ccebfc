//! The knowledge of a replica about its part of the limits that all keep together, and whether it
//! may go by the level's answers or has to keep to its part.
//!
//! The parts of all replicas never sum above the whole, whatever is lost on the way. For each the
//! level counts the larger of the part that it says it believes in and the part that it was granted
//! last, and grants only what the others leave. With each beat a replica says which reply it got
//! last: once that is [`SILENT`] old, the level takes its part off the common limit, and only after
//! [`AWAY`] does the replica begin to use it by itself. A reply that took longer than
//! [`LATEST_REPLY`] does not count, so the first always comes before the second.

use std::time::Duration;

use crate::model::Millis;

/// The whole of a limit, in the unit of shares.
pub const WHOLE: u32 = 1_000_000;

/// So long after the last reply that it got, a replica uses its share by itself.
pub const AWAY: Duration = Duration::from_millis(1750);

/// A reply that takes longer counts as lost.
pub const LATEST_REPLY: Duration = Duration::from_millis(500);

/// So long after the last reply that a replica is known to have got, in milliseconds, its share is
/// taken off what all use together. Less than [`AWAY`] without [`LATEST_REPLY`]: the level's clock
/// may step by the rest unnoticed.
pub const SILENT: Millis = 1000;

/// A replica that was heard within so many milliseconds is live.
pub const LIVE: Millis = 3000;

/// The limit that a replica may go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The limits that the level keeps for all.
    Together,
    /// Its share alone, in millionths; `None` if it has never had one.
    Alone(Option<u32>),
}

/// The contents of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Numbers the beats of a process.
    pub sequence: u64,
    /// The share that it goes by, in millionths.
    pub share: u32,
    /// The epoch that this is of; 0 for none.
    pub epoch: u64,
    /// The level's time in the last reply.
    pub acked: Millis,
    /// Set if it ever had a share.
    pub held: bool,
}

/// The reply of the level to a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareVerdict {
    /// The level's time.
    pub time: Millis,
    /// The epoch; another begins when the level has lost data.
    pub epoch: u64,
    /// The share from now on, in millionths.
    pub share: u32,
    /// Number of live replicas.
    pub live: u32,
}

/// The standing of a replica among those that share a level.
#[derive(Clone, Debug)]
pub struct Standing {
    /// A share of which nothing was heard for so long belongs to others.
    forget_after: Duration,
    /// When the process began, by the monotonic clock.
    began: Duration,
    sequence: u64,
    /// Set if it ever had a share.
    held: bool,
    last: Option<ShareVerdict>,
    /// When the beat was sent that this replies to, by the monotonic clock.
    sent: Duration,
}

impl Standing {
    /// Returns the standing of a process that begins `now`.
    pub fn new(forget_after: Duration, now: Duration) -> Self {
        Self {
            forget_after,
            began: now,
            sequence: 0,
            held: false,
            last: None,
            sent: now,
        }
    }

    /// Returns what to tell with the next beat, which is sent `now`.
    pub fn report(&mut self, now: Duration) -> Report {
        self.sequence += 1;
        // A little sooner than others take it: clocks step.
        let lapsed = now.saturating_sub(self.sent) > self.forget_after * 4 / 5;
        let last = self.last;
        Report {
            sequence: self.sequence,
            share: last.filter(|_| !lapsed).map_or(0, |last| last.share),
            epoch: last.map_or(0, |last| last.epoch),
            acked: last.map_or(0, |last| last.time),
            held: self.held,
        }
    }

    /// Returns whether the reply counts to a beat that was sent and returned at these times.
    pub fn counts(sent: Duration, back: Duration) -> bool {
        back.saturating_sub(sent) <= LATEST_REPLY
    }

    /// Takes over the reply to the last beat, sent and returned at these times. Returns whether it
    /// counts.
    pub fn replied(&mut self, verdict: ShareVerdict, sent: Duration, back: Duration) -> bool {
        let counts = Self::counts(sent, back);
        if counts {
            self.last = Some(verdict);
            self.held |= verdict.share > 0;
            self.sent = sent;
        }
        counts
    }

    /// Returns what to go by `now`.
    pub fn mode(&self, now: Duration) -> Mode {
        // A process that has just begun waits for its first reply.
        let since = self.last.map_or(self.began, |_| self.sent);
        match now.saturating_sub(since) <= AWAY {
            true => Mode::Together,
            false => Mode::Alone(self.last.map(|last| last.share)),
        }
    }

    /// Returns the share that it had last, in millionths.
    pub fn share(&self) -> u32 {
        self.last.map_or(0, |last| last.share)
    }

    /// Returns how many replicas were live when the level was heard last; at least 1.
    pub fn live(&self) -> u32 {
        self.last.map_or(1, |last| last.live.max(1))
    }
}
