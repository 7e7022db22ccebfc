//! The pace at which something is polled.

use std::collections::VecDeque;
use std::time::Duration;

/// The paces that count: shorter ones are hits anyway, and longer ones are not worth a waiting
/// task.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

/// Two intervals that differ by at most one part in this many are a steady pace.
const TOLERANCE: u32 = 5;

/// Polls that are remembered: of four clients two each, at phases of their own.
const REMEMBERED: usize = 8;

/// The pace of the polls of something, of one client or of several that poll it at one pace.
#[derive(Default)]
pub(super) struct Pace {
    /// The last polls, oldest first.
    polls: VecDeque<Duration>,
    /// Set while it has been refreshed, or is, for a poll that has not come yet.
    pub(super) refreshed: bool,
}

/// Returns by how much an interval may differ from another of one pace, where data is served for
/// `refresh`. What is refreshed for a poll that comes later than that has expired by then.
pub(super) fn tolerance(interval: Duration, refresh: Duration) -> Duration {
    (interval / TOLERANCE).min(refresh)
}

/// Returns whether a poll that finds data which is fresh for `left` of `refresh` says at which pace
/// a refresh is needed. One of a client that polls a moment after another does not; one that is a
/// hit by chance, as it came a little early, does.
pub(super) fn counts(left: Option<Duration>, refresh: Duration) -> bool {
    left.is_none_or(|left| left < refresh / TOLERANCE)
}

impl Pace {
    /// Takes in a poll at `now` of data that is served for `refresh`, and returns the interval if it
    /// is at least the third at a steady pace: two polls lie one interval, and two of them, before
    /// it. What other clients polled in between does not matter, and several at once are one.
    pub(super) fn learn(&mut self, now: Duration, refresh: Duration) -> Option<Duration> {
        let last = self.polls.back();
        if last.is_some_and(|last| now < *last + SHORTEST / 2) {
            return None;
        }
        let intervals = self.polls.iter().rev().filter_map(|last| {
            let interval = now.checked_sub(*last)?;
            let steady = |first: &&Duration| {
                let before = last.saturating_sub(**first);
                before.abs_diff(interval) <= tolerance(interval, refresh)
            };
            let first = self.polls.iter().find(steady)?;
            // A poll that is a little early or late does not move the next one by as much.
            Some(now.saturating_sub(*first) / 2)
        });
        let interval = { intervals }.find(|interval| (SHORTEST..=LONGEST).contains(interval));
        if self.polls.len() == REMEMBERED {
            self.polls.pop_front();
        }
        self.polls.push_back(now);
        interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_at_nearly_the_same_distance_are_a_pace() {
        let within = |refresh: u64, times: &[u64]| {
            let mut pace = Pace::default();
            let refresh = Duration::from_secs(refresh);
            let learn = |s: &u64| pace.learn(Duration::from_secs(*s), refresh);
            let asked = times.iter().map(learn);
            asked.last().flatten().map(|interval| interval.as_secs())
        };
        let steady = |times: &[u64]| within(10, times);
        assert_eq!(steady(&[100]), None);
        assert_eq!(steady(&[100, 110]), None);
        assert_eq!(steady(&[100, 110, 120]), Some(10));
        assert_eq!(steady(&[100, 110, 122]), Some(11));
        assert_eq!(steady(&[100, 110, 123]), None);
        assert_eq!(steady(&[100, 110, 123, 136]), Some(13));
        assert_eq!(steady(&[100, 100, 100]), None, "three at once");
        assert_eq!(steady(&[100, 110, 120, 120]), None, "planned already");
        assert_eq!(steady(&[100, 103, 110]), None);
        assert_eq!(steady(&[100, 103, 110, 113]), None);
        assert_eq!(
            steady(&[100, 103, 110, 113, 120]),
            Some(10),
            "the first of two"
        );
        assert_eq!(
            steady(&[100, 103, 110, 113, 120, 123]),
            Some(10),
            "the second"
        );
        assert_eq!(steady(&[100, 110, 114, 120]), Some(10), "and a stray one");
        assert_eq!(steady(&[100, 5000, 9900]), None, "longer than an hour");
        assert_eq!(steady(&[100, 160, 229]), Some(64));
        assert_eq!(steady(&[100, 160, 231]), None, "later than data lasts");
        assert_eq!(within(60, &[100, 160, 231]), Some(65));
    }

    #[test]
    fn a_hit_by_chance_counts_and_one_that_another_client_made_does_not() {
        let refresh = Duration::from_secs(10);
        assert!(counts(None, refresh));
        assert!(counts(Some(Duration::from_millis(1)), refresh));
        assert!(!counts(Some(Duration::from_secs(2)), refresh));
    }
}
