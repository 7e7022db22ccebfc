//! Budgets of calls, or of units, by the hour, day and month, kept across restarts where there is a
//! file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::state::BudgetState;
use crate::model::Millis;

const HOUR: Millis = 3_600_000;
const DAY: Millis = 24 * HOUR;

/// Most bytes of the file.
const LONGEST_FILE: u64 = 64 << 10;

/// The format of the file; a file of another is not read.
const VERSION: u32 = 1;

/// A stretch of the calendar of UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Period {
    Hour,
    Day,
    Month,
}

impl Period {
    /// Its name for clients.
    fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// How long it is at most, in milliseconds; its name in the file.
    fn millis(self) -> Millis {
        match self {
            Self::Hour => HOUR,
            Self::Day => DAY,
            Self::Month => 31 * DAY,
        }
    }

    /// Which one it is at `now`, counted from the epoch.
    fn index(self, now: Millis) -> i64 {
        match self {
            Self::Hour | Self::Day => now.div_euclid(self.millis()),
            Self::Month => month(now.div_euclid(DAY)),
        }
    }

    /// When number `index` ends.
    fn end(self, index: i64) -> Millis {
        match self {
            Self::Hour | Self::Day => (index + 1) * self.millis(),
            Self::Month => first_day(index + 1) * DAY,
        }
    }
}

/// The month that `day` since the epoch lies in, in months since January 1970; by the proleptic
/// Gregorian calendar (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
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

/// The first day, since the epoch, of month `index` since January 1970 (`days_from_civil`, ibidem).
fn first_day(index: i64) -> i64 {
    let months = index + 1970 * 12 - 2;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12));
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// What may be used in each hour, day and month of UTC.
pub(super) struct Budgets {
    /// What it is of: `calls` or `units`.
    of: &'static str,
    windows: Arc<Mutex<Vec<Window>>>,
    file: Option<PathBuf>,
    /// Whether there is something that the file does not say, and whether a thread writes it.
    unwritten: Arc<AtomicBool>,
    writing: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Window {
    period: Period,
    allowed: u32,
    /// Which hour, day or month since the epoch.
    index: i64,
    used: u32,
    /// The usage in the file: ahead of the real one, so that a crash does not lose calls and not
    /// every call is written.
    written: u32,
    /// The window before this one, and what was used of it.
    before: (i64, u32),
}

impl Window {
    /// Which window it is at `now`. A clock that steps back a little renews nothing; one that does so
    /// by more than a window was wrong before.
    fn index_at(&self, now: Millis) -> i64 {
        let index = self.period.index(now);
        match index < self.index - 1 {
            true => index,
            false => index.max(self.index),
        }
    }

    /// Goes on to the window that it is at `now`.
    fn go_on(&mut self, now: Millis) {
        let index = self.index_at(now);
        if index > self.index {
            self.before = (self.index, self.used);
            self.index = index;
            self.used = 0;
            self.written = 0;
        } else if index < self.index {
            // What was used while the clock was wrong counts, too.
            if self.before.0 == index {
                self.used = self.used.saturating_add(self.before.1);
            }
            self.index = index;
            self.written = 0;
        }
    }
}

#[derive(Deserialize, Serialize)]
struct BudgetFile {
    version: u32,
    windows: Vec<Saved>,
}

#[derive(Deserialize, Serialize)]
struct Saved {
    millis: Millis,
    index: i64,
    used: u32,
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
        let mut windows: Vec<Window> = windows.iter().filter_map(window).collect();
        if let Some(path) = &file
            && !windows.is_empty()
        {
            match read(path) {
                Ok(saved) => restore(&mut windows, &saved, now),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => warn!(path = %path.display(), "a budget's state cannot be read: {e}"),
            }
        }
        Self {
            of,
            windows: Arc::new(Mutex::new(windows)),
            file,
            unwritten: Arc::default(),
            writing: Arc::default(),
        }
    }

    fn windows(&self) -> MutexGuard<'_, Vec<Window>> {
        // Counts are changed one by one, and each is sound.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what `before` has counted, whose place this takes.
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

    /// The state of each, at the wall time `now`.
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

    /// When the budget that is spent at the wall time `now` is renewed, if one is.
    pub(super) fn spent(&self, now: Millis) -> Option<Duration> {
        let spent = self.state(now).into_iter().find(|b| b.used >= b.allowed);
        spent.map(|budget| Duration::try_from_secs_f64(budget.renewed_seconds).unwrap_or_default())
    }

    /// Takes `n` out of every budget, at the wall time `now`, or says when the one that does not have
    /// so much left is renewed. A clock that steps back renews nothing.
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
        if write {
            self.write();
        }
        Ok(())
    }

    /// Writes the file, on a thread of its own, as the folder may be on a network that is away.
    /// Changes that come while it writes are written by the same thread.
    fn write(&self) {
        let Some(path) = self.file.clone() else {
            return;
        };
        if tokio::runtime::Handle::try_current().is_err() {
            save_all(&path, &self.windows);
            return;
        }
        self.unwritten.store(true, Ordering::SeqCst);
        if self.writing.swap(true, Ordering::SeqCst) {
            return;
        }
        let (windows, unwritten) = (self.windows.clone(), self.unwritten.clone());
        let writing = self.writing.clone();
        std::thread::spawn(move || {
            loop {
                while unwritten.swap(false, Ordering::SeqCst) {
                    save_all(&path, &windows);
                }
                writing.store(false, Ordering::SeqCst);
                // Someone may have come between the two.
                if !unwritten.load(Ordering::SeqCst) || writing.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }
}

/// Takes over what was `saved`, at the wall time `now`. What is more than one window ahead was
/// written by a clock that was wrong.
fn restore(windows: &mut [Window], saved: &[Saved], now: Millis) {
    for window in windows {
        let latest = window.period.index(now) + 1;
        let millis = window.period.millis();
        let found = saved.iter().find(|s| s.millis == millis);
        if found.is_some_and(|s| s.index > latest) {
            warn!("a budget's state is of the future, and not used: was a clock wrong?");
        }
        if let Some(saved) = found.filter(|s| s.index <= latest) {
            window.index = saved.index;
            window.used = saved.used;
            window.written = saved.used;
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Saved>> {
    let about = std::fs::metadata(path)?;
    if !about.is_file() || about.len() > LONGEST_FILE {
        let message = "it is no regular file, or too long to be one of ours";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let file: BudgetFile = serde_json::from_slice(&std::fs::read(path)?)?;
    if file.version == VERSION {
        Ok(file.windows)
    } else {
        let message = format!("version {} is not known", file.version);
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

fn save_all(path: &Path, windows: &Mutex<Vec<Window>>) {
    // A copy: writing may take long.
    let windows = windows
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    if let Err(e) = save(path, &windows) {
        warn!(path = %path.display(), "a budget's state cannot be written: {e}");
    }
}

/// Writes beside and renames, so that the file is always whole.
fn save(path: &Path, windows: &[Window]) -> io::Result<()> {
    let saved = windows.iter().map(|w| Saved {
        millis: w.period.millis(),
        index: w.index,
        used: w.written,
    });
    let file = BudgetFile {
        version: VERSION,
        windows: saved.collect(),
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    // Whatever is there, such as a link, is not written to.
    match std::fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut new = std::fs::OpenOptions::new();
    let mut to = new.write(true).create_new(true).open(&beside)?;
    to.write_all(&serde_json::to_vec(&file)?)?;
    drop(to);
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(per_hour: Option<u32>, per_day: Option<u32>, file: Option<PathBuf>) -> Budgets {
        let windows = [(Period::Hour, per_hour), (Period::Day, per_day)];
        Budgets::new(&windows, "calls", file, 500_000 * HOUR)
    }

    fn taken(budgets: &Budgets, now: Millis) -> usize {
        (0..10_000)
            .take_while(|_| budgets.take(1, now).is_ok())
            .count()
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
    fn what_does_not_fit_is_not_taken() {
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
