//! Budgets of calls, or of units, by the hour, day and month, kept across restarts where there is a
//! file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use super::budget_file::{BudgetFile, Saved};
use super::state::BudgetState;
use crate::model::Millis;

const HOUR: Millis = 3_600_000;
const DAY: Millis = 24 * HOUR;

/// A period of the calendar of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Period {
    Hour,
    Day,
    Month,
}

impl Period {
    /// Returns its name for clients.
    fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// Returns its greatest length, in milliseconds; its name in the file.
    fn millis(self) -> Millis {
        match self {
            Self::Hour => HOUR,
            Self::Day => DAY,
            Self::Month => 31 * DAY,
        }
    }

    /// Returns its index at `now`, counted from the epoch.
    fn index(self, now: Millis) -> i64 {
        match self {
            Self::Hour | Self::Day => now.div_euclid(self.millis()),
            Self::Month => month(now.div_euclid(DAY)),
        }
    }

    /// Returns the end of number `index`.
    fn end(self, index: i64) -> Millis {
        match self {
            Self::Hour | Self::Day => (index + 1) * self.millis(),
            Self::Month => first_day(index + 1) * DAY,
        }
    }
}

/// Returns the month of `day`, in months since January 1970 and days since the epoch; by the
/// proleptic Gregorian calendar (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms",
/// `civil_from_days`).
fn month(day: i64) -> i64 {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // Counted from March.
    let month = (5 * of_year + 2) / 153;
    (era * 400 + year) * 12 + month + 2 - 1970 * 12
}

/// Returns the first day, since the epoch, of month `index` since January 1970 (`days_from_civil`,
/// ibidem).
fn first_day(index: i64) -> i64 {
    let months = index + 1970 * 12 - 2;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The budgets of each hour, day and month of UTC.
pub(super) struct Budgets {
    /// The unit of the budgets: `calls` or `units`.
    of: &'static str,
    used: Arc<Used>,
    file: Option<BudgetFile>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Window {
    period: Period,
    allowed: u32,
    /// The index of the hour, day or month since the epoch.
    index: i64,
    used: u32,
    /// The usage in the file: ahead of the real one, so that a crash does not lose calls and not
    /// every call is written.
    written: u32,
    /// The window before this one, and its usage.
    before: (i64, u32),
}

impl Window {
    /// Returns the index of the window at `now`. A clock that steps back a little renews nothing;
    /// one that steps back by more than a window was wrong before.
    fn index_at(&self, now: Millis) -> i64 {
        let index = self.period.index(now);
        match index < self.index - 1 {
            true => index,
            false => index.max(self.index),
        }
    }

    /// Moves on to the window at `now`.
    fn go_on(&mut self, now: Millis) {
        let index = self.index_at(now);
        if index > self.index {
            self.before = (self.index, self.used);
            self.index = index;
            self.used = 0;
            self.written = 0;
        } else if index < self.index {
            // Calls made while the clock was wrong count, too.
            if self.before.0 == index {
                self.used = self.used.saturating_add(self.before.1);
            }
            self.index = index;
            self.written = 0;
        }
    }
}

impl Budgets {
    /// Returns the budgets of `windows`, which are of calls or units, with what `file` says of them, at
    /// the wall time `now`.
    pub(super) fn new(
        windows: &[(Period, Option<u32>)],
        of: &'static str,
        file: Option<PathBuf>,
        now: Millis,
    ) -> Self {
        let window = |(period, allowed): &(Period, Option<u32>)| {
            allowed.map(|allowed| Window {
                period: *period,
                allowed,
                index: 0,
                used: 0,
                written: 0,
                before: (0, 0),
            })
        };
        let windows: Vec<Window> = windows.iter().filter_map(window).collect();
        let file = file.filter(|_| !windows.is_empty());
        let used = Arc::new(Used(Mutex::new(windows)));
        let file = file.map(|path| {
            let (restored, saved) = (used.clone(), used.clone());
            let restore = move |said: &[Saved]| restored.restore(said, now);
            BudgetFile::open(path, Box::new(restore), Box::new(move || saved.save()))
        });
        Self { of, used, file }
    }

    fn windows(&self) -> MutexGuard<'_, Vec<Window>> {
        self.used.windows()
    }

    /// Returns for how long there has been something that its file does not say; zero without a file.
    pub(super) fn unsaved(&self) -> Duration {
        let file = self.file.as_ref();
        file.map_or(Duration::ZERO, BudgetFile::unsaved)
    }

    /// Takes over the counts of `before`, which this replaces.
    pub(super) fn continue_from(&self, before: &Self) {
        let counted = before.windows().clone();
        let mut windows = self.windows();
        for window in windows.iter_mut() {
            let same = counted.iter().find(|w| w.period == window.period);
            // Its own file may know of more, where that is another.
            if let Some(same) = same
                && (same.index, same.used) > (window.index, window.used)
            {
                window.index = same.index;
                window.used = same.used;
                window.written = same.written;
            }
        }
    }

    /// Returns the state of each, at the wall time `now`.
    pub(super) fn state(&self, now: Millis) -> Vec<BudgetState> {
        let windows = self.windows();
        let state = |window: &Window| {
            let index = window.index_at(now);
            BudgetState {
                of: self.of,
                per: window.period.name(),
                allowed: window.allowed,
                used: if index > window.index { 0 } else { window.used },
                renewed_seconds: (window.period.end(index) - now) as f64 / 1000.0,
            }
        };
        windows.iter().map(state).collect()
    }

    /// Returns the time until the budget that is spent at the wall time `now` is renewed, if one
    /// is.
    pub(super) fn spent(&self, now: Millis) -> Option<Duration> {
        let spent = self.state(now).into_iter().find(|b| b.used >= b.allowed);
        spent.map(|budget| Duration::try_from_secs_f64(budget.renewed_seconds).unwrap_or_default())
    }

    /// Takes `n` out of every budget, at the wall time `now`, or returns the time until one that
    /// does not have so much left is renewed. A clock that steps back renews nothing.
    pub(super) fn take(&self, n: u32, now: Millis) -> Result<(), Duration> {
        let mut windows = self.windows();
        for window in windows.iter_mut() {
            window.go_on(now);
        }
        let lacks = |w: &&Window| w.used.saturating_add(n) > w.allowed;
        if let Some(spent) = windows.iter().find(lacks) {
            let left = spent.period.end(spent.index) - now;
            return Err(Duration::from_millis(u64::try_from(left).unwrap_or(0)));
        }
        let mut write = false;
        for window in windows.iter_mut() {
            window.used = window.used.saturating_add(n);
            if window.used > window.written {
                let ahead = (window.allowed / 100).max(1);
                window.written = window.used.saturating_add(ahead - 1).min(window.allowed);
                write = true;
            }
        }
        drop(windows);
        if write && let Some(file) = &self.file {
            file.changed();
        }
        Ok(())
    }
}

/// The usage of each window, and the usage in the file.
struct Used(Mutex<Vec<Window>>);

impl Used {
    fn windows(&self) -> MutexGuard<'_, Vec<Window>> {
        // Counts are changed one by one, and each is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what the file is to say.
    fn save(&self) -> Vec<Saved> {
        let windows = self.windows();
        let saved = windows.iter().map(|w| Saved {
            millis: w.period.millis(),
            index: w.index,
            used: w.written,
        });
        saved.collect()
    }

    /// Takes over what was `saved`, on top of what has been used since; at the wall time `now`. What is
    /// more than one window ahead was written by a clock that was wrong.
    fn restore(&self, saved: &[Saved], now: Millis) {
        for window in self.windows().iter_mut() {
            let latest = window.period.index(now) + 1;
            let millis = window.period.millis();
            let Some(saved) = saved.iter().find(|s| s.millis == millis) else {
                continue;
            };
            if saved.index > latest {
                warn!(
                    "the saved state of a budget is from the future and is ignored: was the clock wrong?"
                );
            } else if saved.index >= window.index {
                let since = match saved.index == window.index {
                    true => window.used,
                    false => 0,
                };
                window.index = saved.index;
                window.used = saved.used.saturating_add(since);
                window.written = saved.used;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(per_hour: Option<u32>, per_day: Option<u32>, file: Option<PathBuf>) -> Budgets {
        let windows = [(Period::Hour, per_hour), (Period::Day, per_day)];
        Budgets::new(&windows, "calls", file, 500_000 * HOUR)
    }

    fn taken(budgets: &Budgets, now: Millis) -> usize {
        let taken = (0..10_000)
            .take_while(|_| budgets.take(1, now).is_ok())
            .count();
        settle(budgets);
        taken
    }

    /// Waits until the file says what is used.
    fn settle(budgets: &Budgets) {
        if let Some(file) = &budgets.file {
            file.settle();
        }
    }

    #[test]
    fn each_hour_and_each_day_has_its_calls() {
        let budgets = budgets(Some(100), Some(250), None);
        let day = 20_000 * DAY;
        assert_eq!(taken(&budgets, day + 60_000), 100);
        assert_eq!(
            budgets.take(1, day + 60_000),
            Err(Duration::from_secs(59 * 60))
        );
        assert_eq!(taken(&budgets, day + HOUR), 100);
        assert_eq!(taken(&budgets, day + 2 * HOUR), 50);
        assert_eq!(
            budgets.take(1, day + 2 * HOUR),
            Err(Duration::from_secs(22 * 3600))
        );
        assert_eq!(taken(&budgets, day + DAY), 100);
    }

    #[test]
    fn of_a_file_and_what_was_counted_before_the_greater_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prom.budget");
        let now = 500_000 * HOUR;
        let left = |in_file: usize, counted: usize| {
            let make = |file| budgets(Some(100), None, file);
            let [file, before] = [make(Some(path.clone())), make(None)];
            (0..in_file).for_each(|_| file.take(1, now).unwrap());
            settle(&file);
            (0..counted).for_each(|_| before.take(1, now).unwrap());
            let after = make(Some(path.clone()));
            after.continue_from(&before);
            let left = taken(&after, now);
            std::fs::remove_file(&path).unwrap();
            left
        };
        assert_eq!(left(90, 0), 10);
        assert_eq!(left(90, 20), 10);
        assert_eq!(left(20, 90), 10);
    }

    #[test]
    fn a_clock_that_steps_back_renews_nothing() {
        let budgets = budgets(Some(10), None, None);
        let now = 500_000 * HOUR;
        assert_eq!(taken(&budgets, now), 10);
        assert_eq!(taken(&budgets, now - 5 * HOUR), 0);
        assert_eq!(taken(&budgets, now + HOUR), 10);
    }

    #[test]
    fn a_clock_that_was_far_ahead_for_a_moment_spends_nothing_else() {
        let budgets = budgets(Some(10), None, None);
        let now = 500_000 * HOUR;
        for _ in 0..3 {
            budgets.take(1, now).unwrap();
        }
        for _ in 0..2 {
            budgets.take(1, now + 30 * DAY).unwrap();
        }
        assert_eq!(taken(&budgets, now), 5);
        assert!(budgets.take(1, now).unwrap_err() <= Duration::from_secs(3600));
    }

    #[test]
    fn what_a_file_says_of_the_future_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prom.budget");
        let now = 500_000 * HOUR;
        let left = |ahead: i64| {
            let file = format!(
                r#"{{"version":1,"windows":[{{"millis":{HOUR},"index":{},"used":10}}]}}"#,
                500_000 + ahead
            );
            std::fs::write(&path, file).unwrap();
            taken(&budgets(Some(10), None, Some(path.clone())), now)
        };
        assert_eq!((left(0), left(1), left(2), left(90_000)), (0, 0, 10, 10));
        std::fs::write(&path, vec![b' '; 70_000]).unwrap();
        assert_eq!(taken(&budgets(Some(10), None, Some(path.clone())), now), 10);
    }

    #[test]
    fn what_a_file_says_late_counts_on_top_of_what_was_used_since() {
        let budgets = budgets(Some(100), Some(200), None);
        let now = 500_000 * HOUR;
        (0..10).for_each(|_| budgets.take(1, now).unwrap());
        let saved = |millis, index, used| Saved {
            millis,
            index,
            used,
        };
        // Of this hour, and of the day before this one.
        let day = now.div_euclid(DAY);
        let said = [saved(HOUR, 500_000, 40), saved(DAY, day - 1, 150)];
        budgets.used.restore(&said, now);
        let used: Vec<_> = budgets.state(now).iter().map(|b| b.used).collect();
        assert_eq!(used, [50, 10]);
    }

    #[test]
    fn no_budget_is_no_limit() {
        assert_eq!(taken(&budgets(None, None, None), 0), 10_000);
    }

    #[test]
    fn what_was_used_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prom.budget");
        let now = 500_000 * HOUR;
        let make = || budgets(Some(1000), None, Some(path.clone()));
        let first = make();
        for _ in 0..495 {
            first.take(1, now).unwrap();
        }
        settle(&first);
        drop(first);
        // At most a hundredth of the budget is lost to a crash, and none is gained.
        let left = taken(&make(), now);
        assert!((495..=505).contains(&left), "{left}");
        assert_eq!(taken(&make(), now), 0);
        assert_eq!(taken(&make(), now + HOUR), 1000);
        std::fs::write(&path, b"nonsense").unwrap();
        assert_eq!(taken(&make(), now + HOUR), 1000);
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        let day = |text: &str| {
            let time = humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).unwrap();
            let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
            since.as_millis() as Millis
        };
        for (within, next, number) in [
            ("1970-01-31", "1970-02-01", 0),
            ("2024-02-29", "2024-03-01", 54 * 12 + 1),
            ("2026-11-26", "2026-12-01", 56 * 12 + 10),
            ("2026-12-31", "2027-01-01", 56 * 12 + 11),
            ("2100-02-28", "2100-03-01", 130 * 12 + 1),
        ] {
            let index = Period::Month.index(day(within));
            assert_eq!(index, number, "{within}");
            assert_eq!(Period::Month.end(index), day(next), "{within}");
            assert_eq!(Period::Month.index(day(next)), number + 1);
        }
    }

    #[test]
    fn calls_beyond_the_budget_are_not_taken_from_it() {
        let windows = [(Period::Day, Some(10)), (Period::Month, Some(15))];
        let budgets = Budgets::new(&windows, "units", None, 20_000 * DAY);
        let now = 20_000 * DAY;
        assert_eq!(budgets.take(8, now), Ok(()));
        assert!(budgets.take(3, now).is_err());
        assert_eq!(budgets.take(2, now), Ok(()));
        assert!(budgets.spent(now).is_some());
        assert!(
            budgets.take(6, now + DAY).is_err(),
            "of the month five are left"
        );
        assert_eq!(budgets.take(5, now + DAY), Ok(()));
        let state = budgets.state(now + DAY);
        let used: Vec<_> = state.iter().map(|b| (b.of, b.per, b.used)).collect();
        assert_eq!(used, [("units", "day", 5), ("units", "month", 15)]);
    }
}
