//! Budgets of calls, or of units, by the hour, day and month, kept across restarts where there is a
//! file, and together with other replicas where those share limits.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::budget_file::{BudgetFile, BudgetPath, Saved};
use super::period::Period;
use super::state::BudgetState;
use crate::clock::Clock;
use crate::model::Millis;
use crate::store::joint::{JointBudget, JointLimit, Leases};
use crate::store::lease::{BudgetWindow, Lease, LeaseGrant, LeaseReport, Predecessors};
use crate::store::standing::OwnShare;

/// Most time that a call waits for a lease of what other replicas have left.
pub(super) const LEASE_WAIT: Duration = Duration::from_secs(1);

/// The time after which a client may try again that lacked a lease.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The budgets of each hour, day and month of UTC.
pub(super) struct Budgets {
    /// The unit of the budgets: `calls` or `units`.
    of: &'static str,
    used: Arc<Used>,
    file: Option<BudgetFile>,
    joint: Option<Arc<JointBudget>>,
}

/// The reason why something cannot be taken out of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacking {
    /// It is spent, or as good as spent; the time until it is worth trying again.
    Until(Duration),
    /// This replica holds too little of it, and may be granted more soon.
    Lease,
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
    /// The earlier processes whose usage is known.
    restored: Predecessors,
    /// The calls or units that this replica may use, if replicas keep the budget together.
    lease: Option<Lease>,
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

    /// Moves on to the window at `now`; `share` is this replica's.
    fn go_on(&mut self, now: Millis, share: OwnShare) {
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
        let window = self.window();
        if let Some(lease) = &mut self.lease {
            lease.open(&window, share);
        }
    }

    fn window(&self) -> BudgetWindow {
        BudgetWindow {
            per: self.period.name(),
            index: self.index,
            start: self.period.start(self.index),
            end: self.period.end(self.index),
            allowed: self.allowed,
        }
    }

    /// Checks that `n` can be taken at `now`; `may_grow` says whether leases may.
    fn check(&mut self, n: u32, now: Millis, may_grow: bool) -> Result<(), Lacking> {
        let left = self.period.end(self.index) - now;
        let renewed = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        let spent = self.used.saturating_add(n) > self.allowed;
        let (room, used) = (self.allowed - self.used.min(self.allowed), self.used);
        let Some(lease) = self.lease.as_mut().filter(|_| !spent) else {
            return if spent {
                Err(Lacking::Until(renewed))
            } else {
                Ok(())
            };
        };
        if lease.room(used).min(room) >= n {
            return Ok(());
        }
        Err(match (lease.lack(n), may_grow) {
            (true, true) => Lacking::Lease,
            // The level may be back any moment.
            (true, false) => Lacking::Until(renewed.min(TRY_AGAIN)),
            (false, _) => Lacking::Until(renewed),
        })
    }
}

impl Budgets {
    /// Returns the budgets of `windows`, which are of calls or units, with what `file` says of them;
    /// those of all replicas that share `joint`, if there is that. The others hear of them once they are
    /// started.
    pub(super) fn new(
        windows: &[(Period, Option<u32>)],
        of: &'static str,
        file: Option<BudgetPath>,
        joint: Option<&Arc<JointLimit>>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let now = clock.now();
        let window = |(period, allowed): &(Period, Option<u32>)| {
            allowed.map(|allowed| Window {
                period: *period,
                allowed,
                index: 0,
                used: 0,
                written: 0,
                before: (0, 0),
                restored: Predecessors::default(),
                lease: joint.map(|_| Lease::default()),
            })
        };
        let windows: Vec<Window> = windows.iter().filter_map(window).collect();
        let file = file.filter(|_| !windows.is_empty());
        let joint = joint.filter(|_| !windows.is_empty());
        let used = Arc::new(Used {
            windows: Mutex::new(windows),
            instance: joint.map_or(0, |limit| limit.instance()),
            next: OnceLock::new(),
        });
        let file = file.map(|path| {
            let (restored, saved) = (used.clone(), used.clone());
            let restore = move |said: &[Saved]| restored.restore(said, now);
            BudgetFile::open(path, Box::new(restore), Box::new(move || saved.save()))
        });
        let joint = joint.map(|limit| limit.budget(of, leases(limit, &used, clock)));
        Self {
            of,
            used,
            file,
            joint,
        }
    }

    fn windows(&self) -> MutexGuard<'_, Vec<Window>> {
        self.used.windows()
    }

    /// Returns for how long there has been something that its file does not say; zero without a file.
    pub(super) fn unsaved(&self) -> Duration {
        let file = self.file.as_ref();
        file.map_or(Duration::ZERO, BudgetFile::unsaved)
    }

    /// Takes the place of `before`, if there is that, and tells the other replicas of what is used and
    /// held from now on, where they keep budgets together.
    pub(super) fn start(&self, before: Option<&Self>) {
        if let Some(before) = before {
            self.continue_from(before);
        }
        // Only now: what it told before would not be what it has used and holds.
        if let Some(joint) = &self.joint {
            joint.start();
            // The file is this process' from now on.
            if let Some(file) = &self.file {
                file.changed();
            }
        }
    }

    /// Takes over the counts of `before`, which this replaces: what is still taken out of that is
    /// taken out of this.
    fn continue_from(&self, before: &Self) {
        let counted = before.windows();
        if Arc::ptr_eq(&self.used, &before.used) || before.used.next.get().is_some() {
            return;
        }
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
            if let Some(same) = same
                && window.lease.is_some()
                && same.lease.is_some()
            {
                window.lease = same.lease;
            }
        }
        let _ = before.used.next.set(self.used.clone());
    }

    /// Returns the state of each, at the wall time `now`.
    pub(super) fn state(&self, now: Millis) -> Vec<BudgetState> {
        let windows = self.windows();
        let state = |window: &Window| {
            let index = window.index_at(now);
            let used = if index > window.index { 0 } else { window.used };
            let unused = window.allowed.saturating_sub(used);
            let lease = window.lease.filter(|_| index == window.index);
            BudgetState {
                of: self.of,
                per: window.period.name(),
                allowed: window.allowed,
                used,
                leased: lease.map(|lease| lease.held(used)),
                left: lease.map_or(unused, |lease| lease.left(used).min(unused)),
                renewed_seconds: (window.period.end(index) - now) as f64 / 1000.0,
            }
        };
        windows.iter().map(state).collect()
    }

    /// Returns the time until it is worth trying again where a budget is spent at the wall time `now`.
    pub(super) fn spent(&self, now: Millis) -> Option<Duration> {
        let (may_grow, share) = self.standing();
        let mut windows = self.windows().clone();
        let checked = windows.iter_mut().map(|window| {
            window.go_on(now, share);
            window.check(1, now, may_grow)
        });
        checked
            .filter_map(Result::err)
            .find_map(|lacking| match lacking {
                Lacking::Until(wait) => Some(wait),
                Lacking::Lease => None,
            })
    }

    /// Returns whether leases may grow now, and the share of this replica.
    fn standing(&self) -> (bool, OwnShare) {
        let joint = self.joint.as_ref();
        joint.map_or_else(Default::default, |joint| (joint.may_grow(), joint.share()))
    }

    /// Takes `n` out of every budget at the wall time `now`, whether it has so many left or not: they
    /// have been spent.
    pub(super) fn add(&self, n: u32, now: Millis) {
        let (_, share) = self.standing();
        let write = self.used.take(n, now, None, share);
        if write == Ok(true)
            && let Some(file) = &self.file
        {
            file.changed();
        }
    }

    /// Takes `n` out of every budget, at the wall time `now`. A clock that steps back renews nothing.
    pub(super) fn take(&self, n: u32, now: Millis) -> Result<(), Lacking> {
        let (may_grow, share) = self.standing();
        let write = self.used.take(n, now, Some(may_grow), share)?;
        if write && let Some(file) = &self.file {
            file.changed();
        }
        Ok(())
    }

    /// Gives back `n` that were taken at the wall time `now` for a call that is not made.
    pub(super) fn give_back(&self, n: u32, now: Millis) {
        self.used.give_back(n, now);
    }

    /// Waits, `until` then at most, as long as `n` cannot be taken for lack of a lease, by `clock`. Fails
    /// with the time until it is worth trying again.
    pub(super) async fn leased(
        &self,
        n: u32,
        clock: &dyn Clock,
        until: Instant,
    ) -> Result<(), Duration> {
        let Some(joint) = &self.joint else {
            return Ok(());
        };
        loop {
            // Before it is checked: a grant that comes meanwhile is not missed.
            let changed = joint.changed();
            let (may_grow, share) = self.standing();
            let checked = self.used.check(n, clock.now(), may_grow, share);
            if checked != Err(Lacking::Lease) {
                return Ok(());
            }
            let granted = timeout_at(until, changed).await;
            granted.map_err(|_| TRY_AGAIN)?;
        }
    }
}

/// Returns what beats tell of the windows of `used`, and what becomes of their replies.
fn leases(limit: &Arc<JointLimit>, used: &Arc<Used>, clock: &Arc<dyn Clock>) -> Leases {
    let (limit, clock, told, granted) = (limit.clone(), clock.clone(), used.clone(), used.clone());
    Leases {
        report: Box::new(move |leaves| told.report(clock.now(), limit.own_share(), leaves)),
        granted: Box::new(move |report, grant| granted.granted(report, grant)),
    }
}

/// The usage of each window, and the usage in the file.
struct Used {
    windows: Mutex<Vec<Window>>,
    /// The number of this process, where replicas keep the budget together.
    instance: u64,
    /// The budget that has taken its place, if one has.
    next: OnceLock<Arc<Used>>,
}

impl Used {
    fn windows(&self) -> MutexGuard<'_, Vec<Window>> {
        // Counts are changed one by one, and each is sound.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `n` out of every budget at `now`; without `may_grow`, whether it has so many left or not.
    /// Returns whether the file has to be written.
    fn take(
        &self,
        n: u32,
        now: Millis,
        may_grow: Option<bool>,
        share: OwnShare,
    ) -> Result<bool, Lacking> {
        let mut windows = self.windows();
        if let Some(next) = self.next.get() {
            drop(windows);
            return next.take(n, now, may_grow, share);
        }
        for window in windows.iter_mut() {
            window.go_on(now, share);
        }
        if let Some(may_grow) = may_grow {
            for window in windows.iter_mut() {
                window.check(n, now, may_grow)?;
            }
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
        Ok(write)
    }

    /// Checks that `n` can be taken at `now`; the next beats tell of what a lease lacks for it.
    fn check(&self, n: u32, now: Millis, may_grow: bool, share: OwnShare) -> Result<(), Lacking> {
        let mut windows = self.windows();
        if let Some(next) = self.next.get() {
            drop(windows);
            return next.check(n, now, may_grow, share);
        }
        windows.iter_mut().try_for_each(|window| {
            window.go_on(now, share);
            window.check(n, now, may_grow)
        })
    }

    /// Gives back `n` that were taken at `now`, as far as those windows have not ended.
    fn give_back(&self, n: u32, now: Millis) {
        let mut windows = self.windows();
        if let Some(next) = self.next.get() {
            drop(windows);
            return next.give_back(n, now);
        }
        for window in windows.iter_mut() {
            if window.index == window.period.index(now) {
                window.used = window.used.saturating_sub(n);
            }
        }
    }

    /// Returns what the next beat tells of each lease, at `now`; they end if the replica leaves.
    fn report(&self, now: Millis, share: OwnShare, leaves: bool) -> Vec<LeaseReport> {
        let mut windows = self.windows();
        if let Some(next) = self.next.get() {
            drop(windows);
            return next.report(now, share, leaves);
        }
        let reports = windows.iter_mut().filter_map(|window| {
            window.go_on(now, share);
            let (about, used, restored) = (window.window(), window.used, window.restored);
            let lease = window.lease.as_mut()?;
            if leaves {
                lease.end();
            }
            Some(lease.report(about, used, restored))
        });
        reports.collect()
    }

    /// Takes over what was granted to `report`.
    fn granted(&self, report: &LeaseReport, grant: &LeaseGrant) {
        let mut windows = self.windows();
        if let Some(next) = self.next.get() {
            drop(windows);
            return next.granted(report, grant);
        }
        let about = &report.window;
        let same = windows.iter_mut().find(|w| w.period.name() == about.per);
        if let Some(window) = same
            && let Some(lease) = &mut window.lease
        {
            lease.granted(about.index, grant, window.used);
        }
    }

    /// Returns this process, if it has a number, and those before it whose usage `window` has.
    fn written_by(&self, window: &Window) -> Predecessors {
        let [first, second, third, _] = window.restored;
        match self.instance {
            0 => window.restored,
            this => [this, first, second, third],
        }
    }

    /// Returns what the file is to say.
    fn save(&self) -> Vec<Saved> {
        let windows = self.windows();
        if let Some(next) = self.next.get() {
            drop(windows);
            return next.save();
        }
        let saved = windows.iter().map(|w| Saved {
            millis: w.period.millis(),
            index: w.index,
            used: w.written,
            written_by: self.written_by(w),
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
                window.restored = saved.written_by;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::store::joint::JointLimits;
    use crate::store::standing::ShareVerdict;
    use crate::upstream::period::{DAY, HOUR};

    #[derive(Debug)]
    struct Fixed(Millis);

    impl Clock for Fixed {
        fn now(&self) -> Millis {
            self.0
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn budgets(per_hour: Option<u32>, per_day: Option<u32>, file: Option<PathBuf>) -> Budgets {
        let file = file.map(|path| BudgetPath {
            path,
            written: true,
        });
        let windows = [(Period::Hour, per_hour), (Period::Day, per_day)];
        let clock: Arc<dyn Clock> = Arc::new(Fixed(500_000 * HOUR));
        Budgets::new(&windows, "calls", file, None, &clock)
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
            Err(Lacking::Until(Duration::from_secs(59 * 60)))
        );
        assert_eq!(taken(&budgets, day + HOUR), 100);
        assert_eq!(taken(&budgets, day + 2 * HOUR), 50);
        assert_eq!(
            budgets.take(1, day + 2 * HOUR),
            Err(Lacking::Until(Duration::from_secs(22 * 3600)))
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
            after.start(Some(&before));
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
        assert!(budgets.spent(now).unwrap() <= Duration::from_secs(3600));
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
            written_by: Predecessors::default(),
        };
        // Of this hour, and of the day before this one.
        let day = now.div_euclid(DAY);
        let said = [saved(HOUR, 500_000, 40), saved(DAY, day - 1, 150)];
        budgets.used.restore(&said, now);
        let used: Vec<_> = budgets.state(now).iter().map(|b| b.used).collect();
        assert_eq!(used, [50, 10]);
    }

    #[test]
    fn a_budget_takes_the_place_of_another_once_it_is_started() {
        let now = 500_000 * HOUR;
        let clock: Arc<dyn Clock> = Arc::new(Fixed(now));
        let (limits, _asked) = JointLimits::new(7, Duration::from_secs(60), 0.0, clock.clone());
        let make = || {
            let limit = limits.limit("prom", 10.0, 10);
            let windows = [(Period::Hour, Some(100))];
            Budgets::new(&windows, "calls", None, Some(&limit), &clock)
        };
        let told = || {
            let told = limits.report(false).1.into_iter();
            told.map(|(_, lease)| (lease.used, lease.leased))
                .collect::<Vec<_>>()
        };
        let reply = |told: Vec<(_, LeaseReport)>, leased| {
            let grant = LeaseGrant {
                leased,
                left: Some(100),
                next: None,
            };
            let leases: Vec<_> = told.into_iter().map(|lease| (lease, grant)).collect();
            let verdict = ShareVerdict {
                time: now,
                epoch: 1,
                share: 0,
                live: 2,
            };
            assert!(limits.replied(verdict, &leases, Duration::ZERO));
        };
        let old = make();
        assert_eq!(told(), []);
        old.start(None);
        reply(limits.report(false).1, 50);
        (0..20).for_each(|_| old.take(1, now).unwrap());
        drop(make());
        let next = make();
        assert_eq!(told(), [(20, 50)], "of the old one");
        old.take(1, now).unwrap();
        // A beat that was sent before is answered after.
        let beat = limits.report(false).1;
        next.start(Some(&old));
        assert_eq!(told(), [(21, 50)], "of the new one");
        reply(beat, 23);
        assert_eq!(told(), [(21, 23)]);
        assert_eq!(next.take(1, now), Ok(()));
        assert_eq!(old.take(1, now), Ok(()));
        assert_eq!(next.take(1, now), Err(Lacking::Lease));
        drop(old);
        assert_eq!(told(), [(23, 23)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_for_a_lease_gets_it_of_the_budget_that_takes_the_place() {
        let now = 500_000 * HOUR;
        let clock: Arc<dyn Clock> = Arc::new(Fixed(now));
        let (limits, _asked) = JointLimits::new(7, Duration::from_secs(60), 0.0, clock.clone());
        let make = || {
            let limit = limits.limit("prom", 10.0, 10);
            let windows = [(Period::Hour, Some(100))];
            Budgets::new(&windows, "calls", None, Some(&limit), &clock)
        };
        let old = make();
        old.start(None);
        assert_eq!(old.take(1, now), Err(Lacking::Lease));
        let until = Instant::now() + LEASE_WAIT;
        let reloaded = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let next = make();
            next.start(Some(&old));
            let grant = LeaseGrant {
                leased: 50,
                left: Some(100),
                next: None,
            };
            let told = limits.report(false).1.into_iter();
            let leases: Vec<_> = told.map(|lease| (lease, grant)).collect();
            let verdict = ShareVerdict {
                time: now,
                epoch: 1,
                share: 0,
                live: 2,
            };
            assert!(limits.replied(verdict, &leases, Duration::ZERO));
            next
        };
        let (leased, _next) = tokio::join!(old.leased(1, clock.as_ref(), until), reloaded);
        assert_eq!(leased, Ok(()));
        assert_eq!(Instant::now(), until - Duration::from_millis(700));
        assert_eq!(old.take(1, now), Ok(()));
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
    fn calls_beyond_the_budget_are_not_taken_from_it() {
        let windows = [(Period::Day, Some(10)), (Period::Month, Some(15))];
        let clock: Arc<dyn Clock> = Arc::new(Fixed(20_000 * DAY));
        let budgets = Budgets::new(&windows, "units", None, None, &clock);
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
