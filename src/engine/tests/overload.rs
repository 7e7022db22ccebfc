//! More polls than the limits allow, in simulated time: those that are not answered fresh are answered with
//! expired data at once. A minute begins meanwhile, so that queries reach beyond the calls that wait.

use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;

use tokio::time::sleep_until;

use super::*;
use crate::model::{Condition, Scalar, Test};

const MINUTE: Millis = 60_000;

/// The calls a second that the limits allow.
const ALLOWED: f64 = 50.0;
/// The time that a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The streams that clients poll in turn.
const STREAMS: u64 = 600;

/// A store whose answers take 60 to 100 ms.
#[derive(Default)]
struct Store {
    calls: AtomicUsize,
    ended: AtomicUsize,
}

impl Transport for Store {
    fn send(
        &self,
        request: Outgoing,
        _: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(60 + hash(call as i64) % 41)).await;
            let range = read_metric(&request.body, RequestBounds::default())?
                .query
                .range;
            let mut body = METRIC_HEAD.to_vec();
            for time in (range.start()..range.end()).step_by(15_000) {
                if body.len() > METRIC_HEAD.len() {
                    body.push(b',');
                }
                write_point(&mut body, time, 1.0);
            }
            body.extend_from_slice(metric_tail(false, false));
            self.ended.fetch_add(1, Ordering::SeqCst);
            Ok(Response {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: Bytes::from(body),
            })
        })
    }
}

/// A load.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Polls a second, over those that are allowed.
    ratio: f64,
    by_rate: bool,
    callers: u8,
}

/// The end of a poll: when it came, how long it took, and the answer's time to live and detail, or the
/// error.
#[derive(Debug)]
struct End {
    at: Duration,
    took: Duration,
    answer: Result<(i64, Option<String>), Error>,
}

/// The length of a load.
const SECONDS: u64 = 12;

/// Polls streams that have all been fetched before, for a while.
async fn polls(load: Load) -> Vec<End> {
    let limits = match load.by_rate {
        true => Limits {
            per_second: ALLOWED,
            burst: 50,
            max_concurrency: 16,
            queue: 1024,
            ..Limits::for_tests()
        },
        false => Limits {
            max_concurrency: 4,
            queue: 1024,
            ..Limits::for_tests()
        },
    };
    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::starting_now());
    let store = Arc::new(Store::default());
    let mirror = Mirror {
        api_key: None,
        page: 100_000,
    };
    let keeping = Keeping {
        recheck: 0,
        refresh: 1000,
        while_revalidating: 0,
        aggregate: Aggregate::Auto,
    };
    let memory = Memory::new(256 << 20);
    let engine = engine_limited(
        store.clone(),
        &clock,
        Box::new(mirror),
        keeping,
        memory,
        limits,
        false,
    );
    let asking = clock.clone();
    let ask = move |stream: u64| {
        let (engine, clock) = (engine.clone(), asking.clone());
        async move {
            let now = clock.now();
            let deadline = Instant::now() + PATIENCE;
            let caller = IpAddr::from([10, 0, 0, (stream % u64::from(load.callers)) as u8]);
            let context = RequestContext {
                arrived: clock.monotonic(),
                wall: now,
                deadline,
                call: CallContext::new(
                    Some(caller),
                    deadline,
                    crate::telemetry::trace::Trace::default(),
                ),
                encoding: Encoding::Identity,
                max_age: None,
                level_wait: None,
            };
            let query = MetricQuery {
                selector: Selector::new(vec![Condition {
                    key: "stream".to_owned(),
                    test: Test::Is(Scalar::String(stream.to_string())),
                }]),
                ..query(now - 10 * MINUTE, now, buckets(Statistic::Mean, MINUTE))
            };
            let asked = Instant::now();
            let answer = engine.answer(&query, &context).await;
            let answer = answer.map(|a| (a.cache.ttl_seconds, a.cache.detail));
            (asked.elapsed(), answer)
        }
    };
    for some in (0..STREAMS).collect::<Vec<_>>().chunks(100) {
        let some = some.iter().map(|stream| ask(*stream));
        for (_, answer) in futures_util::future::join_all(some).await {
            answer.unwrap();
        }
    }
    // The next minute begins after the first half of the load.
    let passed = clock.now().rem_euclid(MINUTE) as u64;
    let lead = (2 * MINUTE as u64 - passed - 500 * SECONDS) % MINUTE as u64;
    tokio::time::sleep(Duration::from_millis(lead)).await;
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..(SECONDS as f64 * ALLOWED * load.ratio) as u64 {
        sleep_until(begun + Duration::from_secs_f64(n as f64 / (ALLOWED * load.ratio))).await;
        let asked = ask(n % STREAMS);
        tasks.push(tokio::spawn(async move {
            let (took, answer) = asked.await;
            End {
                at: begun.elapsed(),
                took,
                answer,
            }
        }));
    }
    let ends = futures_util::future::join_all(tasks).await;
    let (calls, ended) = (&store.calls, &store.ended);
    assert_eq!(
        ended.load(Ordering::SeqCst),
        calls.load(Ordering::SeqCst),
        "calls that were abandoned"
    );
    ends.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_not_answered_fresh_is_answered_with_expired_data_at_once() {
    for by_rate in [true, false] {
        for callers in [1, 16] {
            let load = Load {
                ratio: 10.0,
                by_rate,
                callers,
            };
            let ends = polls(load).await;
            let is_fresh = |end: &&End| matches!(end.answer, Ok((ttl, _)) if ttl >= 0);
            for window in (0..SECONDS).step_by(4) {
                let within = |end: &&End| (window..window + 4).contains(&end.at.as_secs());
                let fresh = ends.iter().filter(is_fresh).filter(within).count();
                assert!(
                    fresh as f64 >= 0.95 * 4.0 * ALLOWED,
                    "{load:?}: {fresh} fresh answers from {window} s on"
                );
            }
            let others: Vec<_> = ends.iter().filter(|end| !is_fresh(end)).collect();
            let refused = others.iter().find(|end| end.answer.is_err());
            assert!(refused.is_none(), "{load:?}: {refused:?}");
            let late = |end: &&&End| end.took > Duration::from_millis(5);
            let late: Vec<_> = others.iter().filter(late).collect();
            // Until each caller has a line, the first ones get longer lines than they can keep.
            assert!(
                late.len() as f64 <= 0.005 * others.len() as f64,
                "{load:?}: {} of {} late, such as {:?}",
                late.len(),
                others.len(),
                late.last()
            );
        }
    }
}

/// A mirror without fields.
struct NoFields;

impl Transport for NoFields {
    fn send(&self, _: Outgoing, _: Arc<AnswerShare>) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async {
            Ok(Response {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: crate::wire::mirror::response::write_field_names(&[], false).into(),
            })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_is_as_old_as_its_call_and_not_as_its_wait() {
    let clock: Arc<dyn Clock> = Arc::new(RuntimeClock::starting_now());
    let mirror = Mirror {
        api_key: None,
        page: 100_000,
    };
    let keeping = Keeping {
        recheck: 0,
        refresh: 1000,
        while_revalidating: 0,
        aggregate: Aggregate::Auto,
    };
    let limits = Limits {
        per_second: 1.0 / 50.0,
        burst: 1,
        ..Limits::for_tests()
    };
    let memory = Memory::new(1 << 20);
    let adapter = Box::new(mirror);
    let engine = engine_limited(
        Arc::new(NoFields),
        &clock,
        adapter,
        keeping,
        memory,
        limits,
        false,
    );
    let lookup = async |limit| {
        let deadline = Instant::now() + Duration::from_secs(600);
        let context = RequestContext {
            arrived: clock.monotonic(),
            wall: clock.now(),
            deadline,
            call: CallContext::new(None, deadline, crate::telemetry::trace::Trace::default()),
            encoding: Encoding::Identity,
            max_age: None,
            level_wait: None,
        };
        let mut query = crate::model::FieldNamesQuery::default();
        query.scope.limit = Some(limit);
        let details = Details::default();
        let names = engine.field_names(&details, &query, &context);
        let cache = names.await.unwrap().cache;
        cache.lookup
    };
    let begun = Instant::now();
    assert_eq!(lookup(1).await, Lookup::Miss);
    assert_eq!(lookup(2).await, Lookup::Miss);
    let waited = begun.elapsed();
    assert!((49..=51).contains(&waited.as_secs()), "{waited:?}");
    // Lists are fresh for a minute.
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(lookup(2).await, Lookup::Hit);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(lookup(2).await, Lookup::Stale);
}
