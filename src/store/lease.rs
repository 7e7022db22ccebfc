//! The leases of budgets that replicas keep together: how much of an hour, day or month is this
//! replica's.
//!
//! Usage and leases do not sum above what is allowed while replies are lost, the level is away, or
//! replicas end, with these exceptions. A share never lapses: a replica that the level cannot hear for
//! longer than `forget_after` begins each further window with the share that it had, which belongs to
//! others by then. What turns out to have been billed after a call, as that of a search expression,
//! counts as used even beyond what is leased or allowed. The rules are those of the level's script
//! (`redis::limits::budget_scripts`).
//!
//! The level divides what is left among the live replicas with each heartbeat; a replica uses only what
//! it holds, so it needs nobody's leave for a call, and goes on while the level is away. A window of
//! which the level has told nothing yet begins with the least share that the replica had lately, if the
//! level knows the budget.

use super::standing::{OwnShare, WHOLE};
use crate::model::Millis;

/// A request that lacked something is told with so many beats.
const WANTED_FOR: u32 = 8;

/// An hour, day or month of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetWindow {
    /// `hour`, `day` or `month`.
    pub per: &'static str,
    /// Its number since the epoch.
    pub index: i64,
    /// When it begins, in milliseconds of Unix time.
    pub start: Millis,
    /// When it ends.
    pub end: Millis,
    /// Calls or units that all replicas may use in it.
    pub allowed: u32,
}

/// The numbers of some processes; 0 is none.
pub type Predecessors = [u64; 4];

/// A lease as a beat reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseReport {
    /// The window that it is of.
    pub window: BudgetWindow,
    /// Calls or units that this replica has used.
    pub used: u32,
    /// The calls or units that it holds, the used ones among them.
    pub leased: u32,
    /// The calls or units that it would begin the next window with, if nothing more is heard.
    pub begins: u32,
    /// `leased` and `begins` if a share of it that has lapsed is nobody else's.
    pub unless_lapsed: (u32, u32),
    /// The calls or units that it lacked for a call lately; 0 for none.
    pub want: u32,
    /// The processes of which it is known what they used, as it was read from a file: the last first.
    pub restored: Predecessors,
}

/// The level's reply to a [`LeaseReport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// The calls or units that this replica holds from now on.
    pub leased: u32,
    /// The calls or units that all replicas together have left; `None` if the level shares none with
    /// this replica, whose clock is wrong.
    pub left: Option<u32>,
    /// The calls or units that it holds of the window after this one; `None` if there is nothing to tell.
    pub next: Option<u32>,
}

/// The lease of one budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    index: Option<i64>,
    leased: u32,
    next: Option<u32>,
    /// The calls or units that all had left, as told last.
    left: Option<u32>,
    want: u32,
    /// The number of beats that still tell `want`.
    beats: u32,
    /// The latest window that it was of; of an earlier one nothing is known.
    latest: Option<i64>,
    /// Set once the level has told of the budget.
    known: bool,
    /// The share of this replica, as it was known last.
    share: OwnShare,
    /// Set if it began with a share that others may have had by then, until the level tells of it.
    lapsed: bool,
    ended: bool,
}

impl Lease {
    /// Goes on to `window`, if that is another one, with this replica's `share`.
    pub fn open(&mut self, window: &BudgetWindow, share: OwnShare) {
        self.share = share;
        if self.index == Some(window.index) {
            return;
        }
        let later = self.latest.is_some_and(|index| index < window.index);
        let told = self.next.filter(|_| self.index == Some(window.index - 1));
        let leased = told.unwrap_or_else(|| self.by_share(window.allowed));
        *self = Self {
            index: Some(window.index),
            // What was used of an earlier one is not known.
            leased: if later { leased } else { 0 },
            latest: self.latest.max(Some(window.index)),
            known: self.known,
            share,
            lapsed: told.is_none() && share.lapsed,
            ended: self.ended,
            ..Self::default()
        };
    }

    /// Returns what a window begins with of which nothing was told.
    fn by_share(&self, allowed: u32) -> u32 {
        let share = if self.known { self.share.millionths } else { 0 };
        let part = u64::from(allowed) * u64::from(share) / u64::from(WHOLE);
        u32::try_from(part).unwrap_or(u32::MAX)
    }

    /// Returns what this replica may still use, of which it has `used` so much.
    pub fn room(&self, used: u32) -> u32 {
        match self.ended {
            true => 0,
            false => self.leased.saturating_sub(used),
        }
    }

    /// Returns what it holds, of which it has `used` so much.
    pub fn held(&self, used: u32) -> u32 {
        self.leased.max(used)
    }

    /// Returns what all replicas have left, as far as it is known, of which this one has `used` so
    /// much.
    pub fn left(&self, used: u32) -> u32 {
        self.left.unwrap_or(0).max(self.room(used))
    }

    /// Takes note that a call lacked `n`. Returns whether the level may grant so much.
    pub fn lack(&mut self, n: u32) -> bool {
        self.want = n;
        self.beats = WANTED_FOR;
        !self.ended && self.left.is_none_or(|left| left >= n)
    }

    /// Returns what to tell with the next beat.
    pub fn report(
        &mut self,
        window: BudgetWindow,
        used: u32,
        restored: Predecessors,
    ) -> LeaseReport {
        self.beats = self.beats.saturating_sub(1);
        if self.beats == 0 {
            self.want = 0;
        }
        let begins = self.next.unwrap_or_else(|| self.by_share(window.allowed));
        LeaseReport {
            window,
            used,
            leased: match self.lapsed {
                true => used,
                false => self.held(used),
            },
            begins: match self.next {
                None if self.share.lapsed => 0,
                _ => begins,
            },
            unless_lapsed: (self.held(used), begins),
            want: self.want,
            restored,
        }
    }

    /// Takes over the reply to the report of window `index`; `used` is what has been used of the
    /// window that is open.
    pub fn granted(&mut self, index: i64, grant: &LeaseGrant, used: u32) {
        self.known = grant.left.is_some();
        let (leased, left) = if self.index == Some(index) {
            self.next = grant.next.or(self.next);
            (grant.leased, Some(grant.left.unwrap_or(0)))
        } else if self.index == Some(index + 1)
            && let Some(leased) = grant.next
        {
            (leased, None)
        } else {
            return;
        };
        self.leased = leased.max(used);
        self.lapsed = false;
        self.left = left;
        if self.room(used) >= self.want {
            self.want = 0;
        }
    }

    /// Ends it: nothing more is used.
    pub fn end(&mut self) {
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(index: i64) -> BudgetWindow {
        BudgetWindow {
            per: "hour",
            index,
            start: index * 1000,
            end: (index + 1) * 1000,
            allowed: 1000,
        }
    }

    fn share(millionths: u32) -> OwnShare {
        OwnShare {
            millionths,
            lapsed: false,
        }
    }

    fn grant(leased: u32, next: Option<u32>) -> LeaseGrant {
        LeaseGrant {
            leased,
            left: Some(500),
            next,
        }
    }

    #[test]
    fn a_window_of_which_nothing_was_told_begins_with_the_share() {
        let mut lease = Lease::default();
        lease.open(&window(7), share(250_000));
        assert_eq!(lease.room(0), 0, "others may have used all of it");
        lease.granted(7, &grant(300, None), 0);
        assert_eq!(lease.room(20), 280);
        lease.open(&window(7), share(250_000));
        lease.open(&window(8), share(250_000));
        assert_eq!(lease.room(0), 250);
        lease.granted(8, &grant(100, Some(77)), 0);
        lease.open(&window(9), share(250_000));
        assert_eq!(lease.room(0), 77, "as it was told");
        lease.open(&window(8), share(250_000));
        assert_eq!(lease.room(0), 0, "a clock that steps back");
        lease.open(&window(9), share(250_000));
        assert_eq!(lease.room(0), 0, "it may have used some of it");
        lease.open(&window(10), share(250_000));
        assert_eq!(lease.room(0), 250);
    }

    #[test]
    fn no_window_of_a_budget_that_the_level_does_not_know_begins_with_the_share() {
        let mut lease = Lease::default();
        lease.open(&window(7), share(250_000));
        lease.open(&window(8), share(250_000));
        assert_eq!(lease.room(0), 0, "it was never told of it");
        lease.granted(8, &grant(300, None), 0);
        lease.open(&window(9), share(250_000));
        assert_eq!(lease.room(0), 250);
        let none = LeaseGrant {
            leased: 0,
            left: None,
            next: None,
        };
        lease.granted(9, &none, 0);
        lease.open(&window(10), share(250_000));
        assert_eq!(lease.room(0), 0, "its clock is wrong");
    }

    #[test]
    fn a_lease_that_began_with_a_lapsed_share_is_reported_as_used() {
        let mut lease = Lease::default();
        lease.open(&window(7), share(0));
        lease.granted(7, &grant(300, None), 0);
        let lapsed = OwnShare {
            millionths: 250_000,
            lapsed: true,
        };
        assert_eq!(lease.report(window(7), 20, [0; 4]).leased, 300);
        lease.open(&window(8), lapsed);
        assert_eq!(lease.room(20), 230);
        let report = lease.report(window(8), 20, [0; 4]);
        assert_eq!((report.leased, report.begins), (20, 0));
        assert_eq!(report.unless_lapsed, (250, 250));
        lease.granted(8, &grant(100, None), 20);
        assert_eq!(lease.report(window(8), 20, [0; 4]).leased, 100);
    }

    #[test]
    fn what_was_told_of_the_next_window_outlives_a_loss_of_data() {
        let mut lease = Lease::default();
        lease.open(&window(7), share(250_000));
        assert_eq!(lease.report(window(7), 0, [0; 4]).begins, 0);
        lease.granted(7, &grant(300, None), 0);
        assert_eq!(lease.report(window(7), 0, [0; 4]).begins, 250);
        lease.granted(7, &grant(300, Some(40)), 0);
        lease.granted(7, &grant(300, None), 0);
        assert_eq!(lease.report(window(7), 0, [0; 4]).begins, 40);
        lease.open(&window(8), share(250_000));
        assert_eq!(lease.room(0), 40);
    }

    #[test]
    fn a_reply_may_take_what_is_not_used_yet() {
        let mut lease = Lease::default();
        lease.open(&window(7), share(0));
        lease.granted(7, &grant(300, None), 0);
        lease.granted(7, &grant(100, None), 180);
        assert_eq!((lease.room(180), lease.held(180)), (0, 180));
        // The reply to a beat that was sent before the window turned.
        lease.open(&window(8), share(500_000));
        lease.granted(7, &grant(900, None), 0);
        assert_eq!(lease.room(0), 500);
        lease.granted(7, &grant(900, Some(40)), 10);
        assert_eq!(lease.room(10), 30);
    }

    #[test]
    fn what_is_lacked_is_told_for_a_while() {
        let mut lease = Lease::default();
        lease.open(&window(7), share(0));
        assert!(lease.lack(5));
        for _ in 1..WANTED_FOR {
            assert_eq!(lease.report(window(7), 0, [0; 4]).want, 5);
        }
        assert_eq!(lease.report(window(7), 0, [0; 4]).want, 0);
        lease.granted(7, &grant(3, None), 0);
        assert!(lease.lack(5));
        lease.granted(7, &grant(5, None), 0);
        assert_eq!(lease.report(window(7), 0, [0; 4]).want, 0);
        assert!(!lease.lack(501), "all have less left");
        lease.end();
        assert_eq!((lease.room(0), lease.lack(1)), (0, false));
    }
}
