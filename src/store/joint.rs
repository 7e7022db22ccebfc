//! Limits that replicas keep together: what an upstream's limiter and budgets ask, and what they go
//! by.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};

use super::LevelFailure;
use super::lease::{LeaseGrant, LeaseReport};
use super::standing::{Mode, OwnShare, Report, SKEW, ShareVerdict, Standing, WHOLE};
use crate::clock::Clock;
use crate::telemetry::metrics;

/// Asks for permits that wait to be sent; there is one of each upstream at most.
const ASKS: usize = 1024;

/// A request to the level.
pub enum JointAsk {
    /// Permits for calls.
    Permits(PermitAsk),
    /// To take note that this replica ends; told once it has.
    Leave(oneshot::Sender<()>),
}

/// A wish for permits of one upstream.
pub struct PermitAsk {
    /// The name of the upstream.
    pub upstream: String,
    /// Calls a second of all replicas.
    pub per_second: f64,
    /// Calls at once of all replicas.
    pub burst: f64,
    /// Number of calls that are wanted.
    pub want: u32,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Permits, LevelFailure>>,
}

/// The answer of the level to a [`PermitAsk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permits {
    /// Number of calls that may be made.
    pub granted: u32,
    /// If none: when one may be.
    pub wait: Duration,
}

/// The limits of all upstreams that replicas keep together.
pub struct JointLimits {
    /// The number of this process.
    instance: u64,
    clock: Arc<dyn Clock>,
    standing: Mutex<Standing>,
    /// Calls a second to each upstream before the level was ever met.
    without: f64,
    asks: mpsc::Sender<JointAsk>,
    limits: Mutex<Vec<Weak<JointLimit>>>,
    budgets: Mutex<Vec<Weak<JointBudget>>>,
    rests: Mutex<Vec<Weak<JointRests>>>,
    /// Told after each grant: to all, as a budget may have taken the place of the one that a call
    /// waits for.
    granted: Notify,
}

impl JointLimits {
    /// Limits of a replica that never met its level, and what its limiters ask of it. No other process has
    /// the number `instance`. A share of
    /// which nothing was heard for `forget_after` belongs to others; before the level was met,
    /// `without` calls a second may be made to each upstream.
    pub fn new(
        instance: u64,
        forget_after: Duration,
        without: f64,
        clock: Arc<dyn Clock>,
    ) -> (Arc<Self>, mpsc::Receiver<JointAsk>) {
        let (asks, asked) = mpsc::channel(ASKS);
        let joint = Self {
            instance,
            standing: Mutex::new(Standing::new(forget_after, SKEW, clock.monotonic())),
            clock,
            without,
            asks,
            limits: Mutex::default(),
            budgets: Mutex::default(),
            rests: Mutex::default(),
            granted: Notify::new(),
        };
        (Arc::new(joint), asked)
    }

    /// Returns the number of this process.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        // Each change is made whole.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self) -> Vec<Arc<JointLimit>> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.retain(|limit| limit.strong_count() > 0);
        limits.iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns the limit of the upstream `name`: `per_second` calls a second and `burst` at once, of
    /// all replicas.
    pub fn limit(self: &Arc<Self>, name: &str, per_second: f64, burst: u32) -> Arc<JointLimit> {
        let limit = Arc::new(JointLimit {
            name: name.to_owned(),
            per_second,
            burst: f64::from(burst.max(1)),
            joint: self.clone(),
            wanted: Notify::new(),
        });
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.push(Arc::downgrade(&limit));
        limit
    }

    /// Returns the upstreams whose rests are told and taken over.
    pub fn rests(&self) -> Vec<Arc<JointRests>> {
        let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        rests.retain(|rests| rests.strong_count() > 0);
        rests.iter().filter_map(Weak::upgrade).collect()
    }

    /// Returns what to go by now.
    pub fn mode(&self) -> Mode {
        self.standing().mode(self.clock.monotonic())
    }

    /// Returns the share of this replica, in millionths.
    pub fn share(&self) -> u32 {
        self.standing().share()
    }

    fn own_share(&self) -> OwnShare {
        self.standing().own_share(self.clock.monotonic())
    }

    /// Returns how many replicas were live when the level was heard last; at least 1.
    pub fn live(&self) -> u32 {
        self.standing().live()
    }

    /// Gives up the share of this replica, which makes no call from now on, so that others have it at
    /// once. Takes half a second at most.
    pub async fn leave(&self) {
        let (done, told) = oneshot::channel();
        if self.asks.try_send(JointAsk::Leave(done)).is_ok() {
            // Otherwise it is free after a while.
            let _ = told.await;
        }
    }

    /// Returns what to tell with the next beat, with the leases of all budgets; if this replica
    /// `leaves`, they end.
    pub fn report(&self, leaves: bool) -> (Report, Vec<(Arc<JointBudget>, LeaseReport)>) {
        // The share first: leases that begin after it was read go by the same or are told.
        let report = self.standing().report(self.clock.monotonic());
        let budgets = {
            let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
            budgets.retain(|budget| budget.strong_count() > 0);
            budgets.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        let leases = budgets.into_iter().flat_map(|budget| {
            let leases = (budget.leases.report)(leaves);
            leases.into_iter().map(move |lease| (budget.clone(), lease))
        });
        (report, leases.collect())
    }

    /// Takes over the reply to the beat that was sent at `sent`, by the monotonic clock, with what
    /// it grants for each lease that was told. Returns whether it counts.
    pub fn replied(
        &self,
        verdict: ShareVerdict,
        leases: &[((Arc<JointBudget>, LeaseReport), LeaseGrant)],
        sent: Duration,
    ) -> bool {
        let back = self.clock.monotonic();
        if !Standing::counts(sent, back) {
            return false;
        }
        // Before the share: a lease that is told is not begun by a share that came with it.
        for ((budget, report), grant) in leases {
            (budget.leases.granted)(report, grant);
        }
        self.granted.notify_waiters();
        let counts = self.standing().replied(verdict, sent, back);
        for limit in self.limits() {
            metrics::limit_share(&limit.name, f64::from(self.share()) / f64::from(WHOLE));
        }
        counts
    }
}

/// The limit of one upstream.
pub struct JointLimit {
    name: String,
    /// Calls a second, of all replicas.
    pub per_second: f64,
    /// Calls at once, of all replicas.
    pub burst: f64,
    joint: Arc<JointLimits>,
    /// Told when somebody waits for permits.
    wanted: Notify,
}

impl std::fmt::Debug for JointLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JointLimit({})", self.name)
    }
}

/// Returns what to tell of each lease; ends them if the replica leaves.
type TellLeases = dyn Fn(bool) -> Vec<LeaseReport> + Send + Sync;

/// Takes over what was granted to a report.
type TakeGrant = dyn Fn(&LeaseReport, &LeaseGrant) + Send + Sync;

/// The leases of the windows of one budget.
pub struct Leases {
    /// Tells them.
    pub report: Box<TellLeases>,
    /// Takes over what was granted.
    pub granted: Box<TakeGrant>,
}

/// Returns, by the positions of addresses, for how long each has asked this replica to rest.
type TellRests = dyn Fn() -> Vec<(usize, Duration)> + Send + Sync;

/// Lets an address, by its position, rest for so long, as it has asked another replica.
type TakeRest = dyn Fn(usize, Duration) + Send + Sync;

/// The rests that the addresses of one upstream ask for, which hold for all replicas.
pub struct JointRests {
    /// The name of the upstream.
    pub upstream: String,
    /// The URLs of its addresses.
    pub urls: Vec<String>,
    /// Tells those that this replica was asked for.
    pub told: Box<TellRests>,
    /// Takes over one that another was asked for.
    pub take: Box<TakeRest>,
}

/// A budget of one upstream that replicas keep together.
pub struct JointBudget {
    upstream: String,
    of: &'static str,
    leases: Leases,
    joint: Arc<JointLimits>,
}

impl JointBudget {
    /// Returns the name of the upstream.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Has its leases told from now on, in the place of those of the same budget that were before.
    pub fn start(self: &Arc<Self>) {
        let budgets = self.joint.budgets.lock();
        let mut budgets = budgets.unwrap_or_else(PoisonError::into_inner);
        let other = |b: &Weak<Self>| {
            let before = b.upgrade();
            before.is_some_and(|b| b.upstream != self.upstream || b.of != self.of)
        };
        budgets.retain(other);
        budgets.push(Arc::downgrade(self));
    }

    /// Returns its unit: `calls` or `units`.
    pub fn of(&self) -> &'static str {
        self.of
    }

    /// Returns the share of this replica, with which it begins windows.
    pub fn share(&self) -> OwnShare {
        self.joint.own_share()
    }

    /// Returns whether the level can be asked for more now.
    pub fn may_grow(&self) -> bool {
        self.joint.mode() == Mode::Together
    }

    /// Waits for the next grant.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.joint.granted.notified()
    }
}

/// Permits may be used for so long after they were asked for. So a second sees at most what is
/// granted in it and in this time before, which the depth of the bucket leaves room for.
pub const PERMITS_LAST: Duration = Duration::from_millis(200);

impl JointLimit {
    /// Returns the number of this process.
    pub fn instance(&self) -> u64 {
        self.joint.instance
    }

    /// Returns what to go by now.
    pub fn mode(&self) -> Mode {
        self.joint.mode()
    }

    /// Returns the rests of the same upstream at `urls`, which are told and taken over as long as this
    /// is kept.
    pub fn rests(
        &self,
        urls: Vec<String>,
        told: Box<TellRests>,
        take: Box<TakeRest>,
    ) -> Arc<JointRests> {
        let rests = Arc::new(JointRests {
            upstream: self.name.clone(),
            urls,
            told,
            take,
        });
        let all = self.joint.rests.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        all.push(Arc::downgrade(&rests));
        rests
    }

    /// Returns the budget `of` calls or units of the same upstream, whose `leases` are told once it is
    /// started.
    pub fn budget(&self, of: &'static str, leases: Leases) -> Arc<JointBudget> {
        Arc::new(JointBudget {
            upstream: self.name.clone(),
            of,
            leases,
            joint: self.joint.clone(),
        })
    }

    /// Returns the share of this replica, in millionths.
    pub fn share(&self) -> u32 {
        self.joint.share()
    }

    /// Returns the share of this replica, with which windows of its budgets begin.
    pub fn own_share(&self) -> OwnShare {
        self.joint.own_share()
    }

    /// Returns the share of this replica, in millionths; what it will be among those that are live,
    /// while it has less.
    pub fn likely_share(&self) -> u32 {
        self.joint.share().max(WHOLE / self.joint.live())
    }

    /// Returns calls a second that may be made before the level was ever met.
    pub fn without(&self) -> f64 {
        self.joint.without
    }

    /// Returns how many replicas were live when the level was heard last; at least 1.
    pub fn live(&self) -> u32 {
        self.joint.live()
    }

    /// Signals that somebody waits for permits.
    pub fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits until somebody waits for permits.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Asks for permits for `want` calls.
    pub async fn permits(&self, want: u32) -> Result<Permits, LevelFailure> {
        let (answer, answered) = oneshot::channel();
        let room = PERMITS_LAST.as_secs_f64() * self.per_second;
        let ask = PermitAsk {
            upstream: self.name.clone(),
            per_second: self.per_second,
            burst: (self.burst - room).max(1.0),
            want,
            answer,
        };
        let gone = || LevelFailure::Error("it is not asked any more".into());
        let ask = JointAsk::Permits(ask);
        self.joint.asks.try_send(ask).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::store::lease::BudgetWindow;

    #[test]
    fn what_is_granted_of_a_budget_is_known_before_the_share_that_came_with_it() {
        let clock = Arc::new(SystemClock::default());
        let (limits, _asked) = JointLimits::new(7, Duration::from_secs(60), 0.0, clock);
        let report = LeaseReport {
            window: BudgetWindow {
                per: "hour",
                index: 1,
                start: 0,
                end: 1,
                allowed: 100,
            },
            used: 0,
            leased: 0,
            begins: 0,
            unless_lapsed: (0, 0),
            want: 0,
            restored: [0; 4],
        };
        let shares = Arc::new(Mutex::new(Vec::new()));
        let (noted, of) = (shares.clone(), limits.clone());
        let leases = Leases {
            report: Box::new(move |_| vec![report]),
            granted: Box::new(move |_, _| noted.lock().unwrap().push(of.share())),
        };
        let budget = limits.limit("way", 1.0, 1).budget("calls", leases);
        budget.start();
        let beat = |share| {
            let grant = LeaseGrant {
                leased: 50,
                left: Some(50),
                next: None,
            };
            let told = limits.report(false).1.into_iter();
            let leases: Vec<_> = told.map(|told| (told, grant)).collect();
            assert_eq!(leases.len(), 1);
            let verdict = ShareVerdict {
                time: 1,
                epoch: 1,
                share,
                live: 1,
            };
            assert!(limits.replied(verdict, &leases, limits.clock.monotonic()));
        };
        beat(500_000);
        beat(250_000);
        assert_eq!(*shares.lock().unwrap(), [0, 500_000]);
        assert_eq!(limits.share(), 250_000);
    }
}
