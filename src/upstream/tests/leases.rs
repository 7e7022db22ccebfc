//! Calls of which other replicas hold what they lack.

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::*;
use crate::clock::Clock;
use crate::model::{Millis, Units};
use crate::store::joint::{JointAsk, JointLimits, Permits};
use crate::store::lease::LeaseGrant;
use crate::store::standing::ShareVerdict;

const NOW: Millis = 1_790_000_040_000;

/// A clock that stands: the level is never away.
#[derive(Debug)]
struct Standing;

impl Clock for Standing {
    fn now(&self) -> Millis {
        NOW
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// An upstream that has budgets of calls and of units together with other replicas.
struct Together {
    hosts: Arc<Hosts>,
    upstream: Arc<Upstream>,
    limits: Arc<JointLimits>,
    /// Permits that were granted.
    permits: Arc<AtomicUsize>,
}

impl Together {
    fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(Standing);
        let (limits, mut asked) = JointLimits::new(7, Duration::from_secs(60), 0.0, clock.clone());
        let permits = Arc::new(AtomicUsize::new(0));
        let counted = permits.clone();
        tokio::spawn(async move {
            while let Some(JointAsk::Permits(ask)) = asked.recv().await {
                counted.fetch_add(ask.want as usize, Ordering::SeqCst);
                let granted = Permits {
                    granted: ask.want,
                    wait: Duration::ZERO,
                };
                let _ = ask.answer.send(Ok(granted));
            }
        });
        let hosts = Arc::new(Hosts::default());
        hosts.set("a", QUICK);
        let mine = Limits {
            per_hour: Some(100),
            ..Limits::for_tests()
        };
        let upstream = upstream_with(&hosts, &["a"], mine, |parts| {
            parts.joint = Some(limits.limit("way", mine.per_second, mine.burst));
            parts.units = Some(Units {
                per_hour: Some(100),
                per_day: None,
                per_month: None,
                price: 0.0,
                currency: String::new(),
                statistics: 5,
            });
            parts.clock = clock;
        });
        upstream.client.start(None);
        Self {
            hosts,
            upstream,
            limits,
            permits,
        }
    }

    /// Answers a beat: this replica holds so many calls and units.
    fn grant(&self, calls: u32, units: u32) {
        let told = self.limits.report(false).1.into_iter();
        let leases: Vec<_> = told
            .map(|told| {
                let leased = match told.0.of() {
                    "calls" => calls,
                    _ => units,
                };
                let grant = LeaseGrant {
                    leased,
                    left: Some(100),
                    next: None,
                };
                (told, grant)
            })
            .collect();
        assert_eq!(leases.len(), 2);
        let verdict = ShareVerdict {
            time: NOW,
            epoch: 1,
            share: 0,
            live: 2,
        };
        assert!(self.limits.replied(verdict, &leases, Duration::ZERO));
    }

    /// Makes a call that is billed as five units.
    async fn call(&self) -> Result<(), Kind> {
        let mut exchange = exchange();
        exchange.request.units = 5;
        let answered = self.upstream.client.run(exchange, &call_context()).await;
        answered.map(|a| a.value).map_err(|e| e.kind)
    }

    /// Returns the calls and units that have been used.
    fn used(&self) -> Vec<u32> {
        let state = self.upstream.client.state(NOW);
        state.budgets.iter().map(|budget| budget.used).collect()
    }
}

/// Returns the calls that `source` has allowed, by the metrics of `recorder`.
fn allowed(recorder: &PrometheusHandle, source: &str) -> usize {
    let text = recorder.render();
    let name = "heliostat_limit_calls_total{";
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let line = lines.find(|line| line.contains(&format!("source=\"{source}\"")));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_admitted_again_after_a_lease_counts_once() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let shown = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let together = Together::new();
    together.grant(50, 0);
    let lease = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        together.grant(50, 50);
    };
    let (called, ()) = tokio::join!(together.call(), lease);
    assert_eq!(called, Ok(()));
    let asked = together.permits.load(Ordering::SeqCst);
    assert_eq!(asked, 2, "it was admitted twice");
    assert_eq!(allowed(&shown, "shared"), 1);
    // One that gets no lease is no call.
    together.grant(1, 50);
    assert_eq!(together.call().await, Err(Kind::UpstreamBudget));
    assert_eq!(allowed(&shown, "shared"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_lacks_a_lease_uses_nothing_and_holds_no_permit() {
    let together = Together::new();
    let begun = Instant::now();
    for (calls, units) in [(50, 0), (0, 50), (50, 4)] {
        together.grant(calls, units);
        assert_eq!(together.call().await, Err(Kind::UpstreamBudget));
        assert_eq!(together.used(), [0, 0], "{calls} calls, {units} units");
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(3), "it waits for each");
    assert_eq!(together.hosts.counts(), []);
    let asked = together.permits.swap(0, Ordering::SeqCst);
    assert_eq!(asked, 3, "once each");

    let lease = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(together.upstream.client.state(NOW).limiter.running, 0);
        together.grant(50, 50);
    };
    let (called, ()) = tokio::join!(together.call(), lease);
    assert_eq!(called, Ok(()));
    assert_eq!(together.used(), [1, 5]);
    let asked = together.permits.load(Ordering::SeqCst);
    assert_eq!(asked, 2, "the first was too old by then");
    // The upstream itself answered in 10 ms.
    let usual = together.upstream.client.usual();
    assert!(usual < Duration::from_millis(100), "{usual:?}");
}
