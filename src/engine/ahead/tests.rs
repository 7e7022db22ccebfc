//! Polls at a steady pace in front of a slow store, in simulated time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, sleep, sleep_until};

use super::*;
use crate::adapters::Response;
use crate::adapters::mirror::Mirror;
use crate::clock::Clock;
use crate::engine::tests::{Keeping, RuntimeClock, engine_of, upstream_over};
use crate::engine::{Lookup, Memory};
use crate::model::{
    Aggregate, Condition, Error, Layout, Limits, MetricQuery, Scalar, Selector, Test,
};
use crate::upstream::{AnswerShare, BoxFuture, Identity, Outgoing, Transport};
use crate::wire::encoding::Encoding;
use crate::wire::mirror::request::{RequestBounds, read_metric};
use crate::wire::mirror::response::{METRIC_HEAD, metric_tail};
use crate::wire::number::write_point;

/// The time that the store takes for an answer.
const LATENCY: Duration = Duration::from_millis(400);

/// The distance of its points, in milliseconds.
const DISTANCE: Millis = 30_000;

/// A store in which every series has a point every half a minute.
#[derive(Default)]
struct Store {
    calls: AtomicUsize,
}

impl Transport for Store {
    fn send(
        &self,
        request: Outgoing,
        _: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            sleep(LATENCY).await;
            let range = read_metric(&request.body, RequestBounds::default())?
                .query
                .range;
            let mut body = METRIC_HEAD.to_vec();
            let first = (range.start() + DISTANCE - 1) / DISTANCE * DISTANCE;
            for time in (first..range.end()).step_by(DISTANCE as usize) {
                if body.len() > METRIC_HEAD.len() {
                    body.push(b',');
                }
                write_point(&mut body, time, 1.0);
            }
            body.extend_from_slice(metric_tail(false, false));
            Ok(Response {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: Bytes::from(body),
            })
        })
    }
}

/// Some clients that poll a lane each, at one pace.
#[derive(Clone, Copy)]
struct Polling {
    name: &'static str,
    lanes: u32,
    pace: Duration,
    /// Whether all poll at one moment, as the panels of a dashboard do.
    at_once: bool,
    /// The most by which a poll is late, in milliseconds.
    late: u64,
    /// Clients of each lane, evenly apart.
    clients: u32,
}

#[derive(Debug, Default)]
struct Outcome {
    polls: usize,
    /// The polls after the third of a client that waited for more than 5 ms: when, and for how long.
    waits: Vec<(String, f64, f64)>,
    calls: usize,
    /// Calls after the polls had ended.
    after: usize,
    /// The longest that something was waited for that is not cached.
    cold: Duration,
}

impl Outcome {
    fn waited(&self) -> f64 {
        self.waits.len() as f64 / self.polls as f64
    }
}

struct World {
    clock: Arc<dyn Clock>,
    store: Arc<Store>,
    engine: Arc<Engine>,
}

impl World {
    fn new(ahead: bool, limits: Limits) -> Arc<Self> {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::starting_now());
        Self::over(clock, Memory::new(64 << 20), ahead, limits, None)
    }

    /// Returns the world after a reload in which a new upstream has the place of the one before, perhaps
    /// with the same data.
    fn reloaded(&self, same_data: bool) -> Arc<Self> {
        let identity = self.engine.upstreams()[0].identity.clone();
        let identity = same_data.then_some(identity);
        let (clock, memory) = (self.clock.clone(), self.engine.memory());
        Self::over(clock, memory, true, Limits::default(), identity)
    }

    fn over(
        clock: Arc<dyn Clock>,
        memory: Arc<Memory>,
        ahead: bool,
        limits: Limits,
        identity: Option<Identity>,
    ) -> Arc<Self> {
        let store = Arc::new(Store::default());
        let mirror = Mirror {
            api_key: None,
            page: 100_000,
        };
        let keeping = Keeping {
            recheck: 0,
            refresh: 10_000,
            while_revalidating: 0,
            aggregate: Aggregate::Auto,
        };
        let adapter = Box::new(mirror);
        let mut upstream = upstream_over(store.clone(), &clock, adapter, keeping, limits, ahead);
        upstream.identity = identity.unwrap_or_default();
        Arc::new(Self {
            engine: engine_of(upstream, memory, &clock),
            clock,
            store,
        })
    }

    /// Asks for the last ten minutes of `name`, and returns how long it took.
    async fn ask(&self, name: &str) -> Duration {
        let began = Instant::now();
        let deadline = began + Duration::from_secs(30);
        let wall = self.clock.now();
        let context = RequestContext {
            arrived: self.clock.monotonic(),
            wall,
            deadline,
            call: CallContext::new(None, deadline, Trace::default()),
            encoding: Encoding::Identity,
            max_age: None,
            level_wait: None,
        };
        let name = Condition {
            key: "name".to_owned(),
            test: Test::Is(Scalar::String(name.to_owned())),
        };
        let query = MetricQuery {
            selector: Selector::new(vec![name]),
            metric_field: None,
            range: TimeRange::new(wall - 600_000, wall).unwrap(),
            limit: None,
            layout: Layout::Raw,
        };
        let answer = self.engine.answer(&query, &context).await.unwrap();
        let took = began.elapsed();
        let hit = answer.cache.lookup == Lookup::Hit;
        assert_eq!(hit, took < Duration::from_millis(1), "{took:?}");
        took
    }

    fn calls(&self) -> usize {
        self.store.calls.load(Ordering::SeqCst)
    }
}

/// Lets each client of `all` poll for so long, and once in a while another ask for something else.
async fn run(ahead: bool, limits: Limits, all: &[Polling], lasts: Duration) -> Outcome {
    let world = World::new(ahead, limits);
    let began = Instant::now() + Duration::from_secs(3);
    let mut clients = tokio::task::JoinSet::new();
    for polling in all {
        for (lane, client) in
            (0..polling.lanes).flat_map(|lane| (0..polling.clients).map(move |c| (lane, c)))
        {
            let (world, polling) = (world.clone(), *polling);
            let name = format!("{} {lane}", polling.name);
            let phase = match polling.at_once {
                true => Duration::ZERO,
                false => polling.pace * lane / polling.lanes,
            };
            let phase = phase + polling.pace * client / polling.clients;
            clients.spawn(async move {
                let mut outcome = Outcome::default();
                let mut random = u64::from(lane * 31 + client * 7 + 1);
                for poll in 0u32.. {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let late = Duration::from_millis((random >> 33) % (polling.late + 1));
                    let at = polling.pace * poll + phase;
                    if at >= lasts {
                        break;
                    }
                    sleep_until(began + at + late).await;
                    let took = world.ask(&name).await.as_secs_f64() * 1000.0;
                    if poll >= 3 {
                        outcome.polls += 1;
                        if took > 5.0 {
                            outcome.waits.push((name.clone(), at.as_secs_f64(), took));
                        }
                    }
                }
                outcome
            });
        }
    }
    let ended = Arc::new(AtomicBool::new(false));
    let cold = {
        let (world, ended) = (world.clone(), ended.clone());
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for number in 0u32.. {
                sleep_until(began + Duration::from_millis(1700) * number).await;
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                longest = longest.max(world.ask(&format!("cold {number}")).await);
            }
            longest
        })
    };
    let mut outcome = Outcome::default();
    while let Some(one) = clients.join_next().await {
        let one = one.unwrap();
        outcome.polls += one.polls;
        outcome.waits.extend(one.waits);
    }
    outcome.calls = world.calls();
    ended.store(true, Ordering::SeqCst);
    outcome.cold = cold.await.unwrap();
    sleep(Duration::from_secs(600)).await;
    outcome.after = world.calls() - outcome.calls;
    outcome
}

/// Most requests for what is not cached.
const COLD: u32 = 177;

const STREAMS: Polling = Polling {
    name: "stream",
    lanes: 200,
    pace: Duration::from_secs(60),
    at_once: false,
    late: 0,
    clients: 1,
};

const DASHBOARD: Polling = Polling {
    name: "panel",
    lanes: 12,
    pace: Duration::from_secs(10),
    at_once: true,
    late: 0,
    clients: 1,
};

/// Runs `all` with and without refreshes ahead, and fails if one poll in a hundred waits, if a call in
/// twenty is made on top, if more than one call a lane comes after the last poll, or if what is not cached is waited
/// for longer.
async fn hold(all: &[Polling], least: f64) -> Outcome {
    let lasts = Duration::from_secs(240);
    let [with, without] = [true, false].map(|ahead| run(ahead, Limits::default(), all, lasts));
    let (with, without) = (with.await, without.await);
    assert!(with.waited() < 0.01, "{:?}", with.waits);
    assert!(without.waited() > least, "{}", without.waited());
    let (calls, plain) = (with.calls as f64, without.calls as f64);
    // Polls that a browser's timer delays are hits now and then without them, by chance.
    if all.iter().all(|polling| polling.late == 0) {
        assert!(calls <= 1.05 * plain, "{calls} calls, {plain} without");
    }
    let polls: u32 = all.iter().map(polls_in(lasts)).sum();
    assert!(calls <= 1.05 * f64::from(polls + COLD), "{calls} calls");
    let lanes: u32 = all.iter().map(|polling| polling.lanes).sum();
    assert!(with.after <= lanes as usize, "{} afterwards", with.after);
    assert_eq!(without.after, 0);
    let most = without.cold + Duration::from_millis(1);
    assert!(with.cold <= most, "{:?} instead of {most:?}", with.cold);
    with
}

fn polls_in(lasts: Duration) -> impl Fn(&Polling) -> u32 {
    move |polling| {
        let each = (lasts.as_secs_f64() / polling.pace.as_secs_f64()).ceil() as u32;
        polling.lanes * polling.clients * each
    }
}

#[tokio::test(start_paused = true)]
async fn streams_and_a_dashboard_do_not_wait_for_a_slow_store() {
    for late in [0, 20] {
        let all = [STREAMS, DASHBOARD].map(|polling| Polling { late, ..polling });
        hold(&all, 0.8).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_due_at_one_moment_is_refreshed_one_after_the_other() {
    let wall = Polling {
        lanes: 100,
        pace: Duration::from_secs(30),
        ..DASHBOARD
    };
    hold(&[wall], 0.8).await;
}

#[tokio::test(start_paused = true)]
async fn each_of_several_clients_is_refreshed_for() {
    let shared = Polling {
        lanes: 20,
        clients: 3,
        ..STREAMS
    };
    hold(&[shared], 0.8).await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_refreshed_in_time_is_left_to_the_polls() {
    let limits = Limits {
        per_second: 4.0,
        burst: 4,
        ..Limits::default()
    };
    let wall = Polling {
        lanes: 100,
        pace: Duration::from_secs(60),
        ..DASHBOARD
    };
    let outcome = run(true, limits, &[wall], Duration::from_secs(300)).await;
    // Two a second, over the time that data is fresh.
    let hits = outcome.polls - outcome.waits.len();
    assert!((20..=80).contains(&hits), "{hits} of {}", outcome.polls);
    assert!(
        outcome.calls <= 500 + COLD as usize,
        "{} calls",
        outcome.calls
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_was_planned_before_a_reload_is_made_after_it_as_it_says() {
    for same_data in [true, false] {
        let before = World::new(true, Limits::default());
        let began = Instant::now();
        for poll in 0..3 {
            sleep_until(began + Duration::from_secs(10 * poll)).await;
            before.ask("polled").await;
        }
        let planned = Arc::downgrade(&before.engine);
        sleep_until(began + Duration::from_secs(25)).await;
        let after = before.reloaded(same_data);
        assert_eq!(before.calls(), 3);
        let store = before.store.clone();
        drop(before);
        assert!(planned.upgrade().is_none(), "nothing else holds it");
        sleep_until(began + Duration::from_secs(30)).await;
        assert_eq!(store.calls.load(Ordering::SeqCst), 3);
        assert_eq!(after.calls(), usize::from(same_data));
        let waited = after.ask("polled").await >= LATENCY;
        assert_eq!(waited, !same_data);
        // And what is planned then is dropped with the last one.
        drop(after);
        sleep(Duration::from_secs(60)).await;
    }
}
