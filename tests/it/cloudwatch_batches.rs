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

/// So long that all that is asked at once meets, on however busy a machine.
const LONG: &str = "batch = { window = \"1s\" }\nretries = 1";

/// So many metrics, each with a sample a minute of its own value for an hour.
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

async fn ask_all(server: &Arc<Server>, queries: Vec<Value>) -> Vec<Reply> {
    let asked = queries.into_iter().map(|query| {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, &query).await })
    });
    let replies = join_all(asked).await.into_iter();
    replies.map(Result::unwrap).collect()
}

async fn server(
    store: &CloudWatchStore,
    name: &str,
    more: &str,
    clock: &Arc<TestClock>,
) -> Arc<Server> {
    let config = format!("{}{ADMIN}", store.section(name, more));
    Arc::new(Server::start_at(&config, clock.clone()).await)
}

#[tokio::test]
async fn panels_that_open_at_once_share_a_few_calls() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "panels", LONG, &clock).await;
    let metrics = functions(&store, 0, 500);
    store.gate(true);
    let asking = {
        let (server, queries) = (server.clone(), metrics.iter().map(hour).collect());
        tokio::spawn(async move { ask_all(&server, queries).await })
    };
    // All calls are made before any is answered: it takes one round trip.
    store.peer.asked(4).await;
    for _ in 0..4 {
        store.peer.open();
    }
    for (n, reply) in asking.await.unwrap().iter().enumerate() {
        let points = read(reply);
        assert!(
            points.len() >= 12 && points.iter().all(|p| p.1 == n as f64),
            "{n}: {points:?}"
        );
    }
    assert_eq!(store.metered(), (500, 4, 0));
    let asked = state(&server).await["units"]["asked"].clone();
    assert_eq!(asked, 500);
}

#[tokio::test]
async fn a_bad_query_fails_alone_and_is_asked_alone_from_then_on() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "bad", LONG, &clock).await;
    let metrics = functions(&store, 0, 100);
    store.refuse("Bad");
    let bad = metric_of("AWS/Lambda", "Bad", &[("FunctionName", "f")]);
    let all = || metrics.iter().chain([&bad]).map(hour).collect();
    let fail_alone = |replies: &[Reply]| {
        let (last, others) = replies.split_last().unwrap();
        for (n, reply) in others.iter().enumerate() {
            assert_eq!(read(reply).last().unwrap().1, n as f64);
        }
        assert_eq!(last.status, 400, "{}", last.text);
        assert!(
            last.text
                .contains("InvalidParameterValue: The metric is not"),
            "{}",
            last.text
        );
    };
    fail_alone(&ask_all(&server, all()).await);
    let (units, calls, _) = store.metered();
    // Each metric is billed once: a call that is refused brings nothing.
    assert_eq!(units, 100);
    // Two calls for each time that 101 can be halved.
    assert!(calls <= 1 + 2 * 7, "{calls}");
    clock.pass(2 * MINUTE as u64 + 1000);
    fail_alone(&ask_all(&server, all()).await);
    assert_eq!(store.metered(), (200, calls + 2, 0));
}

#[tokio::test]
async fn one_failed_query_of_many_is_sent_again() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "failure", LONG, &clock).await;
    let metrics = functions(&store, 0, 10);
    store.trouble([Some(Trouble::InternalError)]);
    for (n, reply) in ask_all(&server, metrics.iter().map(hour).collect())
        .await
        .iter()
        .enumerate()
    {
        assert_eq!(read(reply)[0].1, n as f64);
    }
    // All of them, and then the one again.
    assert_eq!(store.metered(), (11, 2, 0));
    // What one is refused is no other's failure.
    let others = functions(&store, 10, 20);
    store.trouble([Some(Trouble::Forbidden)]);
    let replies = ask_all(&server, others.iter().map(hour).collect()).await;
    let status: Vec<u16> = replies.iter().map(|r| r.status).collect();
    assert_eq!(
        status.iter().filter(|s| **s == 502).count(),
        1,
        "{status:?}"
    );
    assert_eq!(
        status.iter().filter(|s| **s == 200).count(),
        9,
        "{status:?}"
    );
}

#[tokio::test]
async fn queries_that_do_not_fit_get_a_call_of_their_own() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "beside", LONG, &clock).await;
    let metrics = functions(&store, 0, 2);
    let old = lambda("old");
    store.put_now(&old, [(NOW - 2 * DAY, 7.0)]);
    let replies = ask_all(
        &server,
        vec![
            hour(&metrics[0]),
            query(
                &metrics[0],
                (NOW - HOUR, NOW),
                Some(("PERCENTILE_95", 10 * MINUTE)),
            ),
            query(&metrics[1], (NOW - 2 * HOUR, NOW), Some(("MAX", MINUTE))),
            // Of another age, and far from the others.
            query(
                &old,
                (NOW - 2 * DAY - HOUR, NOW - 2 * DAY + HOUR),
                Some(("SUM", HOUR)),
            ),
        ],
    )
    .await;
    assert_eq!(read(&replies[3])[0].1, 7.0);
    assert_eq!(read(&replies[2]).len(), 60);
    assert!(
        read(&replies[1])
            .iter()
            .all(|p| p.1 == 0.0 && p.0 % (10 * MINUTE) == 0)
    );
    // The summaries of two metrics, and percentiles of another period.
    assert_eq!(store.metered(), (4, 2, 0));
    // Statistics of one metric and period are one unit.
    let metric = lambda("both");
    store.put_now(
        &metric,
        (0..60).map(|k| (NOW - HOUR + k * MINUTE, k as f64)),
    );
    let p95 = query(&metric, (NOW - HOUR, NOW), Some(("PERCENTILE_95", MINUTE)));
    let mean = query(&metric, (NOW - HOUR, NOW), Some(("MEAN", MINUTE)));
    for reply in ask_all(&server, vec![p95, mean]).await {
        assert_eq!(read(&reply).len(), 60);
    }
    assert_eq!(store.metered(), (5, 3, 0));
    assert_eq!(state(&server).await["units"]["asked"], 5);
}

#[tokio::test]
async fn pages_are_read_to_the_end_whatever_becomes_of_a_token() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "pages", LONG, &clock).await;
    store.page(1000);
    for (trouble, calls) in [(vec![], 3), (vec![None, Some(Trouble::BadToken)], 5)] {
        let before = store.metered().1;
        let metrics = functions(&store, 100 * calls, 100 * calls + 10);
        store.trouble(trouble);
        let replies = ask_all(&server, metrics.iter().map(hour).collect()).await;
        for (n, reply) in replies.iter().enumerate() {
            let points = read(reply);
            let value = (100 * calls + n) as f64;
            assert!(
                points.len() >= 12 && points.iter().all(|p| p.1 == value),
                "{points:?}"
            );
        }
        // 2,400 points are three pages; after the token has expired, all of them again.
        assert_eq!(store.metered().1 - before, calls as u64);
    }
}

#[tokio::test]
async fn a_budget_is_spent_to_the_last_unit() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let more = format!("{LONG}\nunits = {{ per_day = 7 }}");
    let server = server(&store, "budget", &more, &clock).await;
    let metrics = functions(&store, 0, 10);
    let replies = ask_all(&server, metrics.iter().map(hour).collect()).await;
    let statuses = |wanted: u16| replies.iter().filter(|r| r.status == wanted).count();
    assert_eq!((statuses(200), statuses(429)), (7, 3));
    assert_eq!(store.metered(), (7, 1, 0));
}

#[tokio::test]
async fn queries_that_nobody_waits_for_are_not_sent() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = server(&store, "left", LONG, &clock).await;
    let metrics = functions(&store, 0, 4);
    let asked = |n: usize, seconds: u64| {
        let (server, query) = (server.clone(), hour(&metrics[n]));
        tokio::spawn(async move {
            let asked = ask(&server, &query);
            tokio::time::timeout(Duration::from_millis(seconds), asked)
                .await
                .is_ok()
        })
    };
    // Two leave before the second is over for which the batch waits.
    let [a, b, c, d] = [
        asked(0, 100_000),
        asked(1, 200),
        asked(2, 200),
        asked(3, 100_000),
    ];
    let answered = [a.await, b.await, c.await, d.await].map(Result::unwrap);
    assert_eq!(answered, [true, false, false, true]);
    assert_eq!(store.metered(), (2, 1, 0));
    let body = store.peer.seen()[0].json();
    let names: BTreeSet<String> = body["MetricDataQueries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|q| {
            q["MetricStat"]["Metric"]["Dimensions"][0]["Value"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["f0", "f3"].map(str::to_owned).into());
    // Where all leave, nothing is sent.
    let gone = [lambda("x"), lambda("y")].map(|metric| {
        let (server, query) = (server.clone(), hour(&metric));
        tokio::spawn(async move {
            let asked = ask(&server, &query);
            let _ = tokio::time::timeout(Duration::from_millis(100), asked).await;
        })
    });
    for gone in gone {
        gone.await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(store.metered().1, 1);
}
