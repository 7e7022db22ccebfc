//! Calls to CloudWatch that several fetches share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;

use crate::cloudwatch::{ask, lambda, query, read, state};
use crate::cloudwatch_store::{CloudWatchStore, DAY, HOUR, MINUTE, Metric, Trouble, metric_of};
use crate::support::{ADMIN, Reply, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;

/// Calls are made one by one, and do not time out.
const ONE: &str = "max_concurrency = 1\nretries = 1\ntimeout = \"100s\"";

/// Returns metrics, each with a sample per minute of its own value for an hour.
fn functions(store: &CloudWatchStore, from: usize, to: usize) -> Vec<Metric> {
    let metric = |n: usize| {
        let metric = lambda(&format!("f{n}"));
        let samples = (0..60).map(|k| (NOW - HOUR + k * MINUTE, n as f64));
        store.put_now(&metric, samples);
        metric
    };
    (from..to).map(metric).collect()
}

fn hour(metric: &Metric) -> Value {
    query(metric, (NOW - HOUR, NOW), Some(("MEAN", 5 * MINUTE)))
}

/// Waits until this many `queries` wait for their calls.
async fn waiting(server: &Server, queries: usize) {
    until(server, |state| state["units"]["waiting"] == queries).await;
}

/// Waits until the state of the upstream satisfies `holds`.
async fn until(server: &Server, holds: impl Fn(&Value) -> bool) {
    let looking = async { while !holds(&state(server).await) {} };
    let most = Duration::from_secs(60);
    let looked = tokio::time::timeout(most, looking).await;
    assert!(looked.is_ok(), "{}", state(server).await);
}

/// Occupies all `calls` that may run at once, until that many answers are let through.
async fn hold(server: &Arc<Server>, store: &CloudWatchStore, calls: usize) {
    store.gate(true);
    for _ in 0..calls {
        let seen = store.peer.seen().len();
        let other = functions(store, 10_000 + seen, 10_001 + seen).remove(0);
        let server = server.clone();
        tokio::spawn(async move { ask(&server, &hour(&other)).await });
        store.peer.asked(seen + 1).await;
    }
    store.gate(false);
}

/// Sends all `queries` while no call can be made, so that they gather. Then the calls have these
/// `troubles`. Returns the replies, and the units and calls used.
async fn ask_all(
    server: &Arc<Server>,
    store: &CloudWatchStore,
    queries: Vec<Value>,
    troubles: Vec<Option<Trouble>>,
) -> (Vec<Reply>, u64, u64) {
    hold(server, store, 1).await;
    store.trouble(troubles);
    let before = store.metered();
    let all = queries.len();
    let asked = queries.into_iter().map(|query| {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, &query).await })
    });
    let asked: Vec<_> = asked.collect();
    waiting(server, all).await;
    store.peer.open();
    let replies = join_all(asked).await.into_iter().map(Result::unwrap);
    let replies = replies.collect();
    let after = store.metered();
    (replies, after.0 - before.0, after.1 - before.1)
}

async fn server(
    store: &CloudWatchStore,
    name: &str,
    more: &str,
    clock: &Arc<TestClock>,
) -> Arc<Server> {
    let config = format!(
        "[server]\nrequest_timeout = \"100s\"\n{}{ADMIN}",
        store.section(name, more)
    );
    Arc::new(Server::start_at(&config, clock.clone()).await)
}

#[tokio::test]
async fn panels_that_open_at_once_share_a_few_calls() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let four = ONE.replace("= 1\n", "= 4\n");
    let server = server(&store, "panels", &four, &clock).await;
    let metrics = functions(&store, 0, 500);
    hold(&server, &store, 4).await;
    let before = store.metered();
    store.gate(true);
    let asking = metrics.iter().map(|metric| {
        let (server, query) = (server.clone(), hour(metric));
        tokio::spawn(async move { ask(&server, &query).await })
    });
    let asking: Vec<_> = asking.collect();
    // Three calls are full, and the fourth takes the rest.
    waiting(&server, 500).await;
    until(&server, |state| state["limiter"]["waiting"] == 4).await;
    (0..4).for_each(|_| store.peer.open());
    // All calls are made before any is answered: it takes one round trip more.
    store.peer.asked(8).await;
    store.gate(false);
    (0..4).for_each(|_| store.peer.open());
    for (n, reply) in join_all(asking).await.into_iter().enumerate() {
        let points = read(&reply.unwrap());
        let right = points.len() >= 12 && points.iter().all(|p| p.1 == n as f64);
        assert!(right, "{n}: {points:?}");
    }
    let after = store.metered();
    let sizes = store.peer.seen().into_iter().skip(4);
    let sizes = sizes.map(|seen| seen.json()["MetricDataQueries"].as_array().unwrap().len());
    assert_eq!(sizes.collect::<Vec<_>>(), [500; 4]);
    assert_eq!((after.0 - before.0, after.1 - before.1), (500, 4));
    assert_eq!(state(&server).await["units"]["asked"], after.0);
}

#[tokio::test]
async fn a_bad_query_fails_alone_and_is_asked_alone_from_then_on() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "bad", ONE, &clock).await;
    let metrics = functions(&store, 0, 100);
    store.refuse("Bad");
    let bad = metric_of("AWS/Lambda", "Bad", &[("FunctionName", "f")]);
    let all = || metrics.iter().chain([&bad]).map(hour).collect();
    let fails_alone = |replies: &[Reply]| {
        let (last, others) = replies.split_last().unwrap();
        for (n, reply) in others.iter().enumerate() {
            assert_eq!(read(reply).last().unwrap().1, n as f64);
        }
        assert_eq!(last.status, 400, "{}", last.text);
        let said = "InvalidParameterValue: The metric is not";
        assert!(last.text.contains(said), "{}", last.text);
    };
    let (replies, units, calls) = ask_all(&server, &store, all(), vec![]).await;
    fails_alone(&replies);
    // Each metric is billed once: a refused call returns nothing.
    assert_eq!(units, 100);
    // Two calls for each time that 101 can be halved.
    assert!(calls <= 1 + 2 * 7, "{calls}");
    clock.pass(2 * MINUTE as u64 + 1000);
    let (replies, units, calls) = ask_all(&server, &store, all(), vec![]).await;
    fails_alone(&replies);
    assert_eq!((units, calls), (100, 2));
}

#[tokio::test]
async fn one_failed_query_of_many_is_sent_again() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "failure", ONE, &clock).await;
    let all = functions(&store, 0, 10).iter().map(hour).collect();
    let trouble = vec![Some(Trouble::InternalError)];
    let (replies, units, calls) = ask_all(&server, &store, all, trouble).await;
    for (n, reply) in replies.iter().enumerate() {
        assert_eq!(read(reply)[0].1, n as f64);
    }
    // All of them, and then the failed one again.
    assert_eq!((units, calls), (11, 2));
    // One refused query does not fail the others.
    let all = functions(&store, 10, 20).iter().map(hour).collect();
    let trouble = vec![Some(Trouble::Forbidden)];
    let (replies, _, _) = ask_all(&server, &store, all, trouble).await;
    let of = |status: u16| replies.iter().filter(|r| r.status == status).count();
    assert_eq!((of(200), of(502)), (9, 1));
}

#[tokio::test]
async fn queries_that_do_not_fit_get_a_call_of_their_own() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "beside", ONE, &clock).await;
    let metrics = functions(&store, 0, 2);
    let old = lambda("old");
    store.put_now(&old, [(NOW - 2 * DAY, 7.0)]);
    let range = (NOW - HOUR, NOW);
    let queries = vec![
        hour(&metrics[0]),
        query(&metrics[0], range, Some(("PERCENTILE_95", 10 * MINUTE))),
        query(&metrics[1], (NOW - 2 * HOUR, NOW), Some(("MAX", MINUTE))),
        // Of another age, and far from the others.
        query(
            &old,
            (NOW - 2 * DAY - HOUR, NOW - 2 * DAY + HOUR),
            Some(("SUM", HOUR)),
        ),
    ];
    let (replies, units, calls) = ask_all(&server, &store, queries, vec![]).await;
    assert_eq!(read(&replies[3])[0].1, 7.0);
    assert_eq!(read(&replies[2]).len(), 60);
    let percentiles = read(&replies[1]);
    assert!(
        percentiles
            .iter()
            .all(|p| p.1 == 0.0 && p.0 % (10 * MINUTE) == 0)
    );
    // The summaries of two metrics with percentiles of another period, and the old one.
    assert_eq!((units, calls), (4, 2));
    // Several statistics of one metric and period are one unit.
    let metric = lambda("both");
    store.put_now(
        &metric,
        (0..60).map(|k| (NOW - HOUR + k * MINUTE, k as f64)),
    );
    let both = ["PERCENTILE_95", "MEAN"].map(|m| query(&metric, range, Some((m, MINUTE))));
    let (replies, units, calls) = ask_all(&server, &store, both.into(), vec![]).await;
    assert!(replies.iter().all(|reply| read(reply).len() == 60));
    assert_eq!((units, calls), (1, 1));
    assert_eq!(state(&server).await["units"]["asked"], store.metered().0);
}

#[tokio::test]
async fn pages_are_read_to_the_end_whatever_becomes_of_a_token() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "pages", ONE, &clock).await;
    store.page(1000);
    for (first, troubles, expected) in [
        (100, vec![], 3),
        (200, vec![None, Some(Trouble::BadToken)], 5),
    ] {
        let all = functions(&store, first, first + 10)
            .iter()
            .map(hour)
            .collect();
        let (replies, _, calls) = ask_all(&server, &store, all, troubles).await;
        for (n, reply) in replies.iter().enumerate() {
            let (points, value) = (read(reply), (first + n) as f64);
            let right = points.len() >= 12 && points.iter().all(|p| p.1 == value);
            assert!(right, "{points:?}");
        }
        // 2,400 points are three pages; after the token has expired, all of them are read again.
        assert_eq!(calls, expected);
    }
}

#[tokio::test]
async fn a_budget_is_spent_to_the_last_unit() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let more = format!("{ONE}\nunits = {{ per_day = 8 }}");
    let server = server(&store, "budget", &more, &clock).await;
    let all = functions(&store, 0, 10).iter().map(hour).collect();
    let (replies, units, calls) = ask_all(&server, &store, all, vec![]).await;
    let of = |status: u16| replies.iter().filter(|r| r.status == status).count();
    // One unit was spent before.
    assert_eq!((of(200), of(429)), (7, 3));
    assert_eq!((units, calls), (7, 1));
}

#[tokio::test]
async fn queries_that_nobody_waits_for_are_not_sent() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "left", ONE, &clock).await;
    let metrics = functions(&store, 0, 4);
    for (staying, calls) in [(vec![0, 3], 1), (vec![], 0)] {
        clock.pass(2 * MINUTE as u64 + 1000);
        hold(&server, &store, 1).await;
        let before = store.metered().1;
        let asked = metrics.iter().map(|metric| {
            let (server, query) = (server.clone(), hour(metric));
            tokio::spawn(async move { ask(&server, &query).await })
        });
        let asked: Vec<_> = asked.collect();
        waiting(&server, 4).await;
        for (n, asked) in asked.iter().enumerate() {
            if !staying.contains(&n) {
                asked.abort();
            }
        }
        waiting(&server, staying.len()).await;
        store.peer.open();
        for (n, asked) in asked.into_iter().enumerate() {
            assert_eq!(asked.await.is_ok(), staying.contains(&n));
        }
        let idle = |state: &Value| {
            ["waiting", "running"]
                .iter()
                .all(|n| state["limiter"][n] == 0)
        };
        until(&server, idle).await;
        assert_eq!(store.metered().1 - before, calls);
        if calls == 1 {
            let body = store.peer.seen().last().unwrap().json();
            let queries = body["MetricDataQueries"].as_array().unwrap().iter();
            let name = |q: &Value| q["MetricStat"]["Metric"]["Dimensions"][0]["Value"].clone();
            let names: BTreeSet<String> = queries.map(|q| name(q).to_string()).collect();
            assert_eq!(names, ["\"f0\"", "\"f3\""].map(str::to_owned).into());
        }
    }
}
