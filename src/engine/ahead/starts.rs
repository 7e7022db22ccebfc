//! The times at which refreshes begin: as late as they can, and far enough apart.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most refreshes of one upstream that are looked at to find a time for another.
const MOST: usize = 1000;

/// The times at which refreshes that are planned begin, by the identity of their upstream.
#[derive(Default)]
pub(super) struct Starts(Mutex<BTreeSet<(u64, Duration)>>);

impl Starts {
    fn planned(&self) -> MutexGuard<'_, BTreeSet<(u64, Duration)>> {
        // Times are added and removed one by one, and each is sound by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the latest time of `within` that is at least `apart` from every other of `upstream`, if
    /// there is one.
    pub(super) fn take(
        &self,
        upstream: u64,
        within: RangeInclusive<Duration>,
        apart: Duration,
    ) -> Option<Duration> {
        let mut planned = self.planned();
        let mut start = *within.end();
        let near = (upstream, Duration::ZERO)..(upstream, start + apart);
        for (_, other) in planned.range(near).rev().take(MOST) {
            if *other + apart <= start {
                break;
            }
            if start + apart > *other {
                start = other.checked_sub(apart)?;
            }
        }
        let free = within.contains(&start) && planned.insert((upstream, start));
        free.then_some(start)
    }

    /// Gives `start` back, which has come.
    pub(super) fn begun(&self, upstream: u64, start: Duration) {
        self.planned().remove(&(upstream, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_millis(50);

    fn take(starts: &Starts, upstream: u64, within: RangeInclusive<u64>) -> Option<u64> {
        let at = Duration::from_millis;
        let within = at(*within.start())..=at(*within.end());
        let start = starts.take(upstream, within, APART)?;
        Some(u64::try_from(start.as_millis()).unwrap())
    }

    #[test]
    fn refreshes_for_one_moment_begin_one_after_the_other() {
        let starts = Starts::default();
        let begun: Vec<_> = (0..5).map(|_| take(&starts, 1, 800..=1000)).collect();
        assert_eq!(begun, [1000, 950, 900, 850, 800].map(Some));
        assert_eq!(take(&starts, 1, 800..=1000), None, "no time is left");
        assert_eq!(take(&starts, 2, 800..=1000), Some(1000), "another upstream");
        starts.begun(1, Duration::from_millis(900));
        assert_eq!(take(&starts, 1, 800..=1000), Some(900));
    }

    #[test]
    fn a_refresh_begins_in_a_gap_that_is_large_enough() {
        let starts = Starts::default();
        for taken in [1000, 910, 700] {
            assert_eq!(take(&starts, 1, taken..=taken), Some(taken));
        }
        assert_eq!(take(&starts, 1, 0..=990), Some(860));
        assert_eq!(take(&starts, 1, 0..=2000), Some(2000));
        assert_eq!(take(&starts, 1, 0..=740), Some(650));
    }
}
