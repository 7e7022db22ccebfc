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

/// The clocks of replicas and of the level differ by so much at most.
pub const SKEW: Duration = Duration::from_secs(300);

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

/// The share that a replica may begin a window of a budget with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnShare {
    /// The least share that it had lately, in millionths.
    pub millionths: u32,
    /// Set if nothing was heard of it for so long that it may be another's.
    pub lapsed: bool,
}

/// The contents of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Numbers the beats of a process.
    pub sequence: u64,
    /// The share that it goes by, in millionths.
    pub share: u32,
    /// Set if nothing was heard of that for so long that it may be another's.
    pub lapsed: bool,
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
    /// The epoch; another begins when the level has lost data. 0 while the level waits for others to
    /// say whether a share that has lapsed is still this replica's, which goes on as if alone.
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
    /// By how much clocks differ at most.
    skew: Duration,
    /// The least share until `since`, for long, and the least from then on.
    least: (u32, u32),
    since: Duration,
    /// When the beat was sent that this replies to, by the monotonic clock.
    sent: Duration,
}

impl Standing {
    /// Returns the standing of a process that begins `now`, where clocks differ by `skew` at most.
    pub fn new(forget_after: Duration, skew: Duration, now: Duration) -> Self {
        Self {
            forget_after,
            began: now,
            sequence: 0,
            held: false,
            last: None,
            skew,
            least: (0, 0),
            since: now,
            sent: now,
        }
    }

    /// Returns what to tell with the next beat, which is sent `now`.
    pub fn report(&mut self, now: Duration) -> Report {
        self.sequence += 1;
        let last = self.last;
        Report {
            sequence: self.sequence,
            share: self.share(),
            lapsed: self.has_lapsed(now),
            epoch: last.map_or(0, |last| last.epoch),
            acked: last.map_or(0, |last| last.time),
            held: self.held,
        }
    }

    fn has_lapsed(&self, now: Duration) -> bool {
        // A little sooner than others take it: clocks step.
        now.saturating_sub(self.sent) > self.forget_after * 4 / 5
    }

    /// Returns what it may begin a window with at `now`: the least share that it had for three times the
    /// difference of clocks at least. Replicas begin a window within that time of each other, and a replica
    /// whose share grows after data was lost does not use that for what was divided before. So all have
    /// had what they begin it with at one time, at which shares sum to 1.
    pub fn own_share(&self, now: Duration) -> OwnShare {
        let (before, after) = self.least;
        let lasting = now.saturating_sub(self.since) >= self.skew * 3;
        OwnShare {
            millionths: if lasting { after } else { before.min(after) },
            lapsed: self.has_lapsed(now),
        }
    }

    /// Takes in the share that it has from `now` on.
    fn has_share(&mut self, share: u32, now: Duration) {
        let (before, after) = self.least;
        let lasting = now.saturating_sub(self.since) >= self.skew * 3;
        self.least = match self.last {
            Some(_) if lasting => (after.min(share), share),
            Some(_) => (before, after.min(share)),
            None => (0, share),
        };
        if lasting || self.last.is_none() {
            self.since = now;
        }
    }

    /// Returns whether the reply counts to a beat that was sent and returned at these times.
    pub fn counts(sent: Duration, back: Duration) -> bool {
        back.saturating_sub(sent) <= LATEST_REPLY
    }

    /// Takes over the reply to the last beat, sent and returned at these times. Returns whether it
    /// counts.
    pub fn replied(&mut self, verdict: ShareVerdict, sent: Duration, back: Duration) -> bool {
        let counts = Self::counts(sent, back) && verdict.epoch != 0;
        if counts {
            self.has_share(verdict.share, back);
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_window_is_begun_with_the_least_share_of_lately() {
        let mut standing = Standing::new(60 * SECOND, 10 * SECOND, 100 * SECOND);
        let begins = |standing: &Standing, at: u32| standing.own_share(at * SECOND).millionths;
        let share = |standing: &mut Standing, share, at: u32| {
            let verdict = ShareVerdict {
                time: 0,
                epoch: 1,
                share,
                live: 1,
            };
            assert!(standing.replied(verdict, at * SECOND, at * SECOND));
        };
        assert_eq!(begins(&standing, 100), 0);
        share(&mut standing, 250_000, 140);
        assert_eq!(
            [begins(&standing, 169), begins(&standing, 170)],
            [0, 250_000]
        );
        share(&mut standing, 500_000, 180);
        assert_eq!(
            [begins(&standing, 209), begins(&standing, 210)],
            [250_000, 500_000]
        );
        // One that goes down counts at once, and goes on counting when it is over.
        share(&mut standing, 100_000, 215);
        assert_eq!(begins(&standing, 215), 100_000);
        share(&mut standing, 500_000, 216);
        assert_eq!(
            [begins(&standing, 244), begins(&standing, 245)],
            [100_000, 100_000]
        );
        share(&mut standing, 500_000, 246);
        assert_eq!(begins(&standing, 275), 100_000);
        assert_eq!(begins(&standing, 276), 500_000);
        assert!(!standing.own_share(294 * SECOND).lapsed);
        assert!(standing.own_share(295 * SECOND).lapsed);
    }
}
