//! Upstreams of kind `cloudwatch`, against a scripted CloudWatch and moto.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cloudwatch_store::{
    CloudWatchStore, DAY, HOUR, MINUTE, Metric, SECOND, Sample, Trouble, finest, metric_of,
    statistic,
};
use crate::prometheus::noise;
use crate::support::{Reply, Server, TestClock};

/// Some hours before a multiple of a day and of 7 days, so that no boundary is near.
const NOW: i64 = 1_790_000_000_000;

pub(crate) type Points = Vec<(i64, f64)>;

pub(crate) fn equals(key: &str, value: &str) -> Value {
    json!({
        "_type": "EqualityCondition", "key": key,
        "value": { "_type": "StringValue", "value": value },
    })
}

/// A query of `metric`: its raw points, or buckets of `method` and size.
pub(crate) fn query(metric: &Metric, range: (i64, i64), buckets: Option<(&str, i64)>) -> Value {
    let mut conditions = vec![equals("Namespace", &metric.0)];
    conditions.extend(metric.2.iter().map(|(n, v)| equals(n, v)));
    let mut query = json!({
        "_type": "MetricsQuery", "startTime": range.0, "endTime": range.1,
        "conditions": conditions, "metricField": metric.1,
    });
    if let Some((method, size)) = buckets {
        query["aggregation"] = json!({ "method": method, "bucketSizeMillis": size });
    }
    query
}

pub(crate) async fn ask(server: &Server, query: &Value) -> Reply {
    let body = json!({ "connectionDetails": {}, "query": query });
    server.post("/api/metric", &body).await
}

pub(crate) fn read(reply: &Reply) -> Points {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let value: Value = serde_json::from_str(&reply.text).unwrap();
    let points = value["telemetry"]["points"].as_array();
    let points = points.unwrap_or_else(|| panic!("{}", reply.text)).iter();
    let point = |p: &Value| (p[1].as_i64().unwrap(), p[0].as_f64().unwrap());
    points.map(point).collect()
}

pub(crate) fn lambda(function: &str) -> Metric {
    metric_of("AWS/Lambda", "Duration", &[("FunctionName", function)])
}

/// Samples of a metric, `each` per minute, from `start` to `end`.
fn samples(start: i64, end: i64, each: i64) -> Points {
    let step = MINUTE / each;
    let first = start.div_euclid(step);
    let times = (first..).map(|k| k * step + noise(k).rem_euclid(step));
    let times = times.skip_while(|t| *t < start).take_while(|t| *t < end);
    times
        .map(|t| (t, (noise(t) % 40_000) as f64 / 16.0))
        .collect()
}

/// Returns the values of `samples` that CloudWatch has at `now`, in periods of `period`.
fn periods(samples: &Points, period: i64) -> BTreeMap<i64, Vec<f64>> {
    let mut periods: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (t, v) in samples {
        periods
            .entry(t - t.rem_euclid(period))
            .or_default()
            .push(*v);
    }
    periods
}

pub(crate) const METHODS: [(&str, &str); 7] = [
    ("MEAN", "Average"),
    ("SUM", "Sum"),
    ("EVENT_COUNT", "SampleCount"),
    ("MIN", "Minimum"),
    ("MAX", "Maximum"),
    ("PERCENTILE_50", "p50"),
    ("PERCENTILE_95", "p95"),
];

fn close(what: &str, got: &Points, expected: &Points) {
    for (g, e) in got.iter().zip(expected) {
        let near = (g.1 - e.1).abs() <= 1e-9 * e.1.abs().max(1.0);
        assert!(g.0 == e.0 && near, "{what}: {g:?} where {e:?} was expected");
    }
    assert_eq!(got.len(), expected.len(), "{what}: number of points");
}

/// Returns the buckets that overlap `range` of what is visible, if all of it is of one age.
fn expected(samples: &Points, range: (i64, i64), size: i64, stat: &str) -> Points {
    let (start, end) = (
        range.0.div_euclid(size) * size,
        (range.1 - 1).div_euclid(size) * size + size,
    );
    // If buckets are not whole periods, a summary counts at its time stamp.
    let stamped = |t: i64| {
        if size % MINUTE == 0 {
            t
        } else {
            t - t.rem_euclid(MINUTE)
        }
    };
    let mut buckets: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (t, v) in samples {
        let t = stamped(*t);
        if (start..end).contains(&t) {
            buckets.entry(t - t.rem_euclid(size)).or_default().push(*v);
        }
    }
    buckets
        .into_iter()
        .map(|(t, values)| (t, statistic(stat, &values)))
        .collect()
}

#[tokio::test]
async fn every_method_and_size_is_what_the_samples_make() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    let all = samples(NOW - 2 * DAY, NOW, 7);
    store.put_now(&metric, all.clone());
    let server = Server::start_at(&store.section("sizes", ""), clock).await;
    for size in [
        7 * SECOND,
        MINUTE,
        90 * SECOND,
        5 * MINUTE,
        HOUR,
        DAY,
        7 * DAY,
    ] {
        for (method, stat) in METHODS {
            let range = (NOW - DAY - 12_345, NOW - 3 * HOUR - 77);
            let reply = ask(&server, &query(&metric, range, Some((method, size)))).await;
            let what = format!("{method} of {size}");
            if stat.starts_with('p') && size % MINUTE != 0 {
                assert_eq!(reply.status, 400, "{what}");
                assert!(reply.text.contains("whole minutes"), "{}", reply.text);
                continue;
            }
            close(&what, &read(&reply), &expected(&all, range, size, stat));
        }
    }
    let range = (NOW - 40 * MINUTE, NOW - 20 * MINUTE + 1);
    let raw: Points = periods(&all, MINUTE)
        .into_iter()
        .map(|(t, v)| (t, statistic("Average", &v)))
        .filter(|(t, _)| (range.0..range.1).contains(t))
        .collect();
    close(
        "raw",
        &read(&ask(&server, &query(&metric, range, None)).await),
        &raw,
    );
    // `X_NO_ZEROS` is X.
    let sum = |method| query(&metric, range, Some((method, MINUTE)));
    let both = [
        ask(&server, &sum("SUM")).await,
        ask(&server, &sum("SUM_NO_ZEROS")).await,
    ];
    assert_eq!(read(&both[0]), read(&both[1]));
}

#[tokio::test]
async fn all_statistics_of_a_metric_are_one_unit() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    store.put_now(&metric, samples(NOW - DAY, NOW, 2));
    let server = Server::start_at(&store.section("one-unit", ""), clock.clone()).await;
    for (method, _) in &METHODS[..5] {
        for size in [MINUTE, 5 * MINUTE, HOUR] {
            read(
                &ask(
                    &server,
                    &query(&metric, (NOW - 3 * HOUR, NOW), Some((method, size))),
                )
                .await,
            );
        }
    }
    assert_eq!(
        store.metered().0,
        1,
        "the hour's bucket too, which begins earlier"
    );
    // The same query in other words.
    let mut same = query(&metric, (NOW - HOUR, NOW), Some(("SUM", MINUTE)));
    same["conditions"] = json!([
        equals("Namespace", "AWS/Lambda"),
        equals("Resource", "f"),
        equals("Region", "eu-west-1"),
    ]);
    read(&ask(&server, &same).await);
    assert_eq!(store.metered().0, 1);
    // Refreshing the tail costs one unit, however many requests need it.
    clock.pass(2 * MINUTE as u64);
    let now = NOW + 2 * MINUTE;
    for (method, _) in &METHODS[..5] {
        read(
            &ask(
                &server,
                &query(&metric, (now - HOUR, now), Some((method, MINUTE))),
            )
            .await,
        );
    }
    assert_eq!(store.metered().0, 2);
}

#[tokio::test]
async fn a_statistic_is_a_series_of_its_own() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    let all = samples(NOW - HOUR, NOW, 5);
    store.put_now(&metric, all.clone());
    let server = Server::start_at(&store.section("statistic", ""), clock).await;
    let range = (NOW - 30 * MINUTE, NOW - 10 * MINUTE);
    for stat in ["Average", "Sum", "Maximum", "p90", "tm95"] {
        let series: Points = periods(&all, MINUTE)
            .into_iter()
            .map(|(t, v)| (t, statistic(stat, &v)))
            .collect();
        let with = |buckets| {
            let mut query = query(&metric, range, buckets);
            let conditions = query["conditions"].as_array_mut().unwrap();
            conditions.push(equals("Statistic", stat));
            query
        };
        let raw: Points = series
            .iter()
            .copied()
            .filter(|(t, _)| (range.0..range.1).contains(t))
            .collect();
        close(stat, &read(&ask(&server, &with(None)).await), &raw);
        let bucketed = read(&ask(&server, &with(Some(("PERCENTILE_50", 5 * MINUTE)))).await);
        close(
            stat,
            &bucketed,
            &expected(&series, range, 5 * MINUTE, "p50"),
        );
    }
    // Average, Sum and Maximum come from the summaries; the others cost a unit each.
    assert_eq!(store.metered().0, 3);
}

#[tokio::test]
async fn a_set_means_the_samples_of_all_its_metrics() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let (a, b) = (lambda("a"), lambda("b"));
    let (of_a, of_b) = (
        samples(NOW - HOUR, NOW, 3),
        samples(NOW - HOUR, NOW - 20 * MINUTE, 2),
    );
    store.put_now(&a, of_a.clone());
    store.put_now(&b, of_b.clone());
    let server = Server::start_at(&store.section("sets", ""), clock).await;
    let range = (NOW - 50 * MINUTE, NOW - 5 * MINUTE);
    let set = |buckets| {
        let mut query = query(&a, range, buckets);
        query["conditions"] = json!([
            equals("Namespace", "AWS/Lambda"),
            { "_type": "EqualityCondition", "key": "FunctionName", "value": { "_type": "InSetValue", "value": [
                { "_type": "StringValue", "value": "a" }, { "_type": "StringValue", "value": "b" },
            ]}},
        ]);
        query
    };
    let both: Points = of_a.iter().chain(&of_b).copied().collect();
    for (method, stat) in &METHODS[..5] {
        let reply = ask(&server, &set(Some((method, 5 * MINUTE)))).await;
        close(
            method,
            &read(&reply),
            &expected(&both, range, 5 * MINUTE, stat),
        );
    }
    assert_eq!(store.metered().0, 2);
    let reply = ask(&server, &set(Some(("PERCENTILE_95", 5 * MINUTE)))).await;
    assert_eq!(reply.status, 404);
    assert!(
        reply.text.contains("a percentile over several metrics"),
        "{}",
        reply.text
    );
}

#[tokio::test]
async fn what_is_older_is_as_coarse_as_cloudwatch_keeps_it() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    let mut all = Points::new();
    for border in [15 * DAY, 63 * DAY, 455 * DAY] {
        all.extend(samples(NOW - border - 4 * HOUR, NOW - border + 4 * HOUR, 4));
    }
    all.sort_by_key(|p| p.0);
    store.put_now(&metric, all.clone());
    let server = Server::start_at(&store.section("ages", "raw_points_max = 1000000"), clock).await;
    for border in [15 * DAY, 63 * DAY, 455 * DAY] {
        let range = (NOW - border - 3 * HOUR, NOW - border + 3 * HOUR);
        for size in [MINUTE, 5 * MINUTE, HOUR] {
            let points = read(&ask(&server, &query(&metric, range, Some(("SUM", size)))).await);
            let whole = expected(&all, range, size, "Sum");
            // Every bucket is right, and a bucket is missing only where such fine data is not kept,
            // or will not be in two hours.
            let there: BTreeMap<i64, f64> = points.iter().copied().collect();
            for (t, v) in &whole {
                match there.get(t) {
                    Some(got) => assert!(
                        (got - v).abs() < 1e-9 * v.abs().max(1.0),
                        "{border} {size} {t}"
                    ),
                    None => {
                        let soon = finest(NOW - t + 2 * HOUR + size);
                        assert!(
                            soon.is_none_or(|f| f > size),
                            "{border} {size}: {t} is missing"
                        );
                    }
                }
            }
            assert!(there.keys().all(|t| whole.iter().any(|w| w.0 == *t)));
            let some_kept = whole
                .iter()
                .any(|(t, _)| finest(NOW - t).is_some_and(|f| f <= size));
            assert_eq!(!points.is_empty(), some_kept, "{border} {size}");
        }
    }
}

#[tokio::test]
async fn metrics_of_high_resolution_are_read_so_while_they_are_kept() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    let all: Points = (0..6 * 360)
        .map(|n| (NOW - n * 10 * SECOND, f64::from(n as i32)))
        .collect();
    store.put_now(&metric, all.clone());
    let server = Server::start_at(&store.section("fine", "interval = \"10s\""), clock).await;
    for (from, size, kept) in [
        (HOUR, 10 * SECOND, true),
        (HOUR, 30 * SECOND, true),
        (5 * HOUR, 10 * SECOND, false),
        (5 * HOUR, MINUTE, true),
    ] {
        let range = (NOW - from, NOW - from + 20 * MINUTE);
        let points = read(&ask(&server, &query(&metric, range, Some(("MAX", size)))).await);
        let mut buckets: BTreeMap<i64, f64> = BTreeMap::new();
        for (t, v) in all.iter().filter(|(t, _)| {
            (range.0.div_euclid(size) * size..(range.1 - 1).div_euclid(size) * size + size)
                .contains(t)
        }) {
            let max = buckets.entry(t.div_euclid(size) * size).or_insert(*v);
            *max = max.max(*v);
        }
        let whole: Points = buckets.into_iter().filter(|_| kept).collect();
        close(&format!("{from} {size}"), &points, &whole);
    }
}

#[tokio::test]
async fn late_samples_are_seen_until_their_time_has_settled() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    store.put(
        &metric,
        [
            Sample {
                time: NOW - 5 * MINUTE,
                value: 1.0,
                seen: NOW - 5 * MINUTE,
            },
            Sample {
                time: NOW - 5 * MINUTE,
                value: 2.0,
                seen: NOW + 4 * MINUTE,
            },
            Sample {
                time: NOW - 5 * MINUTE,
                value: 4.0,
                seen: NOW + HOUR,
            },
        ],
    );
    let server = Server::start_at(&store.section("late", ""), clock.clone()).await;
    let range = (NOW - 10 * MINUTE, NOW);
    let sum = query(&metric, range, Some(("SUM", MINUTE)));
    assert_eq!(read(&ask(&server, &sum).await)[0].1, 1.0);
    clock.pass(5 * MINUTE as u64);
    assert_eq!(read(&ask(&server, &sum).await)[0].1, 3.0);
    clock.pass(30 * MINUTE as u64);
    assert_eq!(read(&ask(&server, &sum).await)[0].1, 3.0);
    let (units, ..) = store.metered();
    clock.pass(DAY as u64);
    assert_eq!(read(&ask(&server, &sum).await)[0].1, 3.0, "it has settled");
    assert_eq!(store.metered().0, units);
}

#[tokio::test]
async fn troubles_are_told_apart() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = Server::start_at(&store.section("troubles", "retries = 1"), clock).await;
    let good = samples(NOW - 2 * HOUR, NOW - HOUR, 2);
    for (n, (trouble, times, status, said)) in [
        (Trouble::Failed, 1, 200, ""),
        (Trouble::InternalError, 1, 200, ""),
        (
            Trouble::Failed,
            2,
            502,
            "CloudWatch failed (InternalFailure: try again)",
        ),
        (
            Trouble::InternalError,
            2,
            502,
            "CloudWatch failed at the metric",
        ),
        (
            Trouble::Denied,
            1,
            502,
            "AccessDenied: User: u is not authorized to perform: cloudwatch:GetMetricData",
        ),
        (Trouble::Forbidden, 1, 502, "CloudWatch refuses the metric"),
        (Trouble::OffGrid, 1, 502, "times that were not requested"),
        (
            Trouble::Missing,
            1,
            502,
            "lacks one of the requested metrics",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let metric = lambda(&format!("f{n}"));
        store.put_now(&metric, good.clone());
        store.trouble(vec![Some(trouble); times]);
        let range = (NOW - 2 * HOUR, NOW - HOUR);
        let reply = ask(&server, &query(&metric, range, Some(("SUM", MINUTE)))).await;
        assert_eq!(reply.status, status, "{trouble:?}: {}", reply.text);
        assert!(reply.text.contains(said), "{trouble:?}: {}", reply.text);
        // Nothing of it is cached.
        let reply = ask(&server, &query(&metric, range, Some(("SUM", MINUTE)))).await;
        close(
            "after",
            &read(&reply),
            &expected(&good, range, MINUTE, "Sum"),
        );
    }
    // A truncated answer is shown, marked, and not cached.
    let metric = lambda("partial");
    store.put_now(&metric, good.clone());
    store.trouble([Some(Trouble::Partial)]);
    let range = (NOW - 2 * HOUR, NOW - HOUR);
    let sum = query(&metric, range, Some(("SUM", MINUTE)));
    let reply = ask(&server, &sum).await;
    assert!(reply.text.contains("\"isPartial\":true"), "{}", reply.text);
    let before = store.metered().1;
    read(&ask(&server, &sum).await);
    assert_eq!(store.metered().1, before + 1);
    // An error in the query is reported to the client.
    store.refuse("Bad");
    let bad = metric_of("AWS/Lambda", "Bad", &[]);
    let reply = ask(&server, &query(&bad, range, Some(("SUM", MINUTE)))).await;
    assert_eq!(reply.status, 400);
    assert!(
        reply.text.contains("InvalidParameterValue: The metric"),
        "{}",
        reply.text
    );
}

#[tokio::test]
async fn throttled_calls_are_made_again_after_a_pause() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    store.put_now(&metric, samples(NOW - HOUR, NOW, 2));
    store.trouble([Some(Trouble::Throttled)]);
    let server = Server::start_at(&store.section("throttled", ""), clock).await;
    let started = tokio::time::Instant::now();
    read(
        &ask(
            &server,
            &query(&metric, (NOW - HOUR, NOW), Some(("SUM", MINUTE))),
        )
        .await,
    );
    assert!(started.elapsed() >= std::time::Duration::from_millis(900));
    assert_eq!(store.metered().1, 2);
    let paused = "heliostat_upstream_requests_total{upstream=\"throttled\",outcome=\"busy\"}";
    assert_eq!(server.metric(paused).await, 1.0);
}

#[tokio::test]
async fn pages_are_read_to_the_end() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    store.page(100);
    let metric = lambda("f");
    let all = samples(NOW - 5 * HOUR, NOW, 2);
    store.put_now(&metric, all.clone());
    let server = Server::start_at(&store.section("pages", ""), clock).await;
    let range = (NOW - 5 * HOUR + 60_000, NOW - HOUR);
    let reply = ask(&server, &query(&metric, range, Some(("SUM", MINUTE)))).await;
    close(
        "pages",
        &read(&reply),
        &expected(&all, range, MINUTE, "Sum"),
    );
    assert_eq!(store.metered().1, 10, "240 minutes of four statistics");
}

pub(crate) async fn list(server: &Server, path: &str, query: Value) -> (Vec<String>, bool) {
    let body = json!({ "connectionDetails": {}, "query": query });
    let reply = server.post(path, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let value: Value = serde_json::from_str(&reply.text).unwrap();
    let (list, name) = match value.get("fields") {
        Some(fields) => (fields, "fieldName"),
        None => (&value["values"], "value"),
    };
    let names = list
        .as_array()
        .unwrap_or_else(|| panic!("{}", reply.text))
        .iter();
    let text = |v: &Value| v[name].as_str().or(v.as_str()).map(str::to_owned);
    let names = names.map(|v| text(v).unwrap_or_else(|| panic!("{v}")));
    (names.collect(), value["isPartial"].as_bool().unwrap())
}

#[tokio::test]
async fn fields_and_values_are_those_of_the_metrics_there_are() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    for n in 0..1200 {
        let name = format!("f{n:04}");
        let recent = if n < 700 { NOW - HOUR } else { NOW - DAY };
        store.put_now(&lambda(&name), [(recent, 1.0)]);
    }
    store.put_now(
        &metric_of(
            "AWS/CloudFront",
            "Requests",
            &[("Region", "Global"), ("DistributionId", "E1")],
        ),
        [(NOW - HOUR, 1.0)],
    );
    let server = Server::start_at(&store.section("lists", ""), clock).await;
    let names = |query| list(&server, "/api/field/name", query);
    let (all, partial) = names(json!({ "_type": "FieldNamesQuery" })).await;
    let words = [
        "Namespace",
        "MetricName",
        "Statistic",
        "Region",
        "Account",
        "Unit",
        "Resource",
        "~",
    ];
    let fields = [
        ":Region",
        "DistributionId",
        "FunctionName",
        "Duration",
        "Requests",
    ];
    assert_eq!(all, [&words[..], &fields[..]].concat());
    assert!(!partial);
    let values = |name: &'static str, conditions: Value, start: Option<i64>| {
        let mut query = json!({
            "_type": "FieldValuesQuery", "field": { "fieldName": name, "fieldType": "STRING" },
            "conditions": conditions, "prefix": "", "offset": 0, "limit": 2000,
        });
        if let Some(start) = start {
            query["startTime"] = json!(start);
        }
        list(&server, "/api/field/value", query)
    };
    assert_eq!(
        values("Namespace", json!([]), None).await.0,
        ["AWS/CloudFront", "AWS/Lambda"]
    );
    let lambda = json!([equals("Namespace", "AWS/Lambda")]);
    assert_eq!(
        values("FunctionName", lambda.clone(), None).await.0.len(),
        1200
    );
    assert_eq!(values("Resource", lambda.clone(), None).await.0.len(), 1200);
    assert_eq!(
        values("FunctionName", lambda.clone(), Some(NOW - 2 * HOUR))
            .await
            .0
            .len(),
        700
    );
    assert_eq!(values("MetricName", lambda, None).await.0, ["Duration"]);
    assert_eq!(values(":Region", json!([]), None).await.0, ["Global"]);
    let asked = store.metered().2;
    assert_eq!(values("Region", json!([]), None).await.0, ["eu-west-1"]);
    assert_eq!(values("Statistic", json!([]), None).await.0.len(), 9);
    assert_eq!(values("Namespace", json!([]), None).await.0.len(), 2);
    assert_eq!(store.metered().2, asked, "known, or cached");
}

#[tokio::test]
async fn a_connection_is_good_when_both_permissions_are_there() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let server = Server::start_at(&store.section("health", "retries = 0"), clock).await;
    let body = json!({ "connectionDetails": {} });
    let reply = server.post("/api/connection", &body).await;
    assert!(reply.text.contains("\"OK\""), "{}", reply.text);
    assert_eq!(store.metered(), (1, 1, 1));
    store.trouble([Some(Trouble::Denied)]);
    let reply = server.post("/api/connection", &body).await;
    assert!(
        reply.text.contains("cloudwatch:GetMetricData"),
        "{}",
        reply.text
    );
    // Another endpoint of CloudWatch serves PromQL.
    let reply = server.get("/prometheus/health/api/v1/query?query=up").await;
    assert!(
        reply.text.contains("not of kind prometheus"),
        "{}",
        reply.text
    );
}

#[tokio::test]
async fn explain_says_what_would_be_asked() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metric = lambda("f");
    store.put_now(&metric, samples(NOW - HOUR, NOW, 2));
    let admin = crate::support::ADMIN;
    let config = format!("{}{admin}", store.section("explained", ""));
    let server = Server::start_at(&config, clock).await;
    let explain = async |range| {
        let body = json!({ "connectionDetails": {}, "query": query(&metric, range, Some(("MEAN", HOUR))) });
        let request = server
            .client()
            .post(format!("{}/admin/v1/explain/api/metric", server.url));
        let request = request.bearer_auth(crate::support::ADMIN_TOKEN);
        let request = request.header("content-type", "application/json");
        let reply = server.reply(request.body(body.to_string())).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        serde_json::from_str::<Value>(&reply.text).unwrap()
    };
    let explained = explain((NOW - 20 * DAY, NOW)).await;
    assert_eq!(explained["answer"], "fetch");
    let stretch = &explained["stretches"][0];
    assert_eq!(stretch["missing"][0]["calls"], json!([]));
    assert_eq!(stretch["madeOf"]["missing"][0]["calls"], json!(["POST /"]));
    assert_eq!(stretch["madeOf"]["missing"][0]["units"], 1);
    assert_eq!(stretch["madeOf"]["kept"], Value::Null);
    assert_eq!(stretch["older"][0]["kept"], "5m");
    assert_eq!(store.metered().0, 0);
    read(
        &ask(
            &server,
            &query(&metric, (NOW - 20 * DAY, NOW), Some(("MEAN", HOUR))),
        )
        .await,
    );
    assert_eq!(explain((NOW - 20 * DAY, NOW)).await["answer"], "cache");
    let gone = explain((NOW - 600 * DAY, NOW - 500 * DAY)).await;
    assert_eq!(gone["answer"], "cache", "nothing is kept so long");
}

/// Returns the state of the only upstream's protection, by the admin API.
pub(crate) async fn state(server: &Server) -> Value {
    let request = server
        .client()
        .get(format!("{}/admin/v1/upstreams", server.url));
    let reply = server
        .reply(request.bearer_auth(crate::support::ADMIN_TOKEN))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let upstreams: Value = serde_json::from_str(&reply.text).unwrap();
    upstreams["upstreams"][0]["state"].clone()
}

#[tokio::test]
async fn units_are_counted_priced_and_budgeted() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let (f, g) = (lambda("f"), lambda("g"));
    for metric in [&f, &g] {
        store.put_now(metric, samples(NOW - DAY, NOW, 2));
    }
    let units = "units = { per_day = 3, per_month = 100, price = 0.25, currency = \"EUR\" }";
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "[state]\ndir = {:?}\n{}{}",
        folder.path(),
        store.section("billed", units),
        crate::support::ADMIN
    );
    let server = Server::start_at(&config, clock.clone()).await;
    let hour = |metric, now| query(metric, (now - HOUR, now), Some(("MEAN", MINUTE)));
    for _ in 0..10 {
        read(&ask(&server, &hour(&f, NOW)).await);
    }
    clock.pass(2 * MINUTE as u64);
    let now = NOW + 2 * MINUTE;
    read(&ask(&server, &hour(&f, now)).await);
    read(&ask(&server, &hour(&g, now)).await);
    let counted = state(&server).await;
    let expected = json!({
        "waiting": 0, "asked": 3, "requested": 12, "avoided": 9, "cost": 0.75, "costAvoided": 2.25, "currency": "EUR",
    });
    assert_eq!(counted["units"], expected);
    let budgets = counted["budgets"].as_array().unwrap().iter();
    let budgets = budgets.map(|b| (b["of"].clone(), b["per"].clone(), b["used"].clone()));
    let expected =
        [("day", 3), ("month", 3)].map(|(per, n)| (json!("units"), json!(per), json!(n)));
    assert_eq!(budgets.collect::<Vec<_>>(), expected);
    let metric = |name: &str| format!("heliostat_{name}{{upstream=\"billed\"}}");
    assert_eq!(server.metric(&metric("upstream_units_total")).await, 3.0);
    assert_eq!(server.metric(&metric("units_requested_total")).await, 12.0);
    let cost = "heliostat_upstream_cost_total{upstream=\"billed\",currency=\"EUR\"}";
    assert_eq!(server.metric(cost).await, 0.75);
    // The budget is spent: cached data is served, marked; everything else is refused.
    clock.pass(2 * MINUTE as u64);
    let now = now + 2 * MINUTE;
    let reply = ask(&server, &hour(&f, now)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        reply.header("cache-status").contains("budget of units"),
        "{:?}",
        reply.headers
    );
    let h = lambda("h");
    let reply = ask(&server, &hour(&h, now)).await;
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert!(
        reply.text.contains("budget of units is spent (units)"),
        "{}",
        reply.text
    );
    let left: i64 = reply.header("retry-after").parse().unwrap();
    assert_eq!(left, (DAY - now.rem_euclid(DAY) + 999) / 1000);
    let refused = "heliostat_upstream_rejected_total{upstream=\"billed\",reason=\"units\"}";
    assert_eq!(server.metric(refused).await, 2.0);
    assert_eq!(store.metered().0, 3);
    // A refused query does not count as avoided: one more answer, from the cache.
    assert_eq!(state(&server).await["units"]["requested"], 13);
    // Lists cost nothing, another price changes nothing else, and a restart keeps the counts.
    server.reload(&config.replace("0.25", "0.5")).await.unwrap();
    assert_eq!(state(&server).await["units"]["cost"], 1.5);
    drop(server);
    let server = Server::start_at(&config, clock.clone()).await;
    assert_eq!(ask(&server, &hour(&f, now)).await.status, 429);
    clock.pass(DAY as u64);
    read(&ask(&server, &hour(&f, now + DAY)).await);
}

#[tokio::test]
async fn metrics_that_come_seldom_are_asked_for_seldom() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let rule = "[[upstream.namespace]]\nname = \"AWS/EC2\"\nmetrics = [\"CPUUtilization\"]\ninterval = \"5m\"\nrefresh = \"5m\"";
    let server = Server::start_at(&store.section("seldom", rule), clock.clone()).await;
    let bucket = metric_of("AWS/S3", "BucketSizeBytes", &[("BucketName", "b")]);
    let requests = metric_of("AWS/S3", "AllRequests", &[("BucketName", "b")]);
    let cpu = metric_of("AWS/EC2", "CPUUtilization", &[("InstanceId", "i")]);
    let day = |n: i64| NOW - NOW.rem_euclid(DAY) - n * DAY;
    store.put_now(&bucket, (1..30).map(|n| (day(n), n as f64)));
    store.put_now(&requests, samples(NOW - 2 * HOUR, NOW + 6 * HOUR, 1));
    let each = 5 * MINUTE;
    let cpus = (-24..72).map(|n| (NOW - NOW.rem_euclid(each) + n * each, n as f64));
    store.put_now(&cpu, cpus);
    // One point per day although finer periods are kept: 20 days consist of two parts by age.
    let month = query(&bucket, (day(20), NOW), None);
    let expected: Points = (1..=20).rev().map(|n| (day(n), n as f64)).collect();
    assert_eq!(read(&ask(&server, &month).await), expected);
    let sums = query(&bucket, (day(20), NOW), Some(("MAX", DAY)));
    assert_eq!(read(&ask(&server, &sums).await), expected);
    let units = store.metered().0;
    assert!(units <= 2, "{units}");
    for body in store.peer.seen().iter().map(crate::scripted::Seen::json) {
        for query in body["MetricDataQueries"].as_array().unwrap() {
            assert_eq!(query["MetricStat"]["Period"], 86_400);
        }
    }
    // Polled each minute for two hours: one call per refresh, which is an hour, five minutes, or
    // two.
    for (metric, range, buckets, least) in [
        (&bucket, 2 * DAY, ("MAX", DAY), 1),
        (&cpu, HOUR, ("MEAN", each), 24),
        (&requests, HOUR, ("SUM", MINUTE), 60),
    ] {
        let before = store.metered().0;
        for _ in 0..120 {
            let now = heliostat::clock::Clock::now(&*clock);
            read(&ask(&server, &query(metric, (now - range, now), Some(buckets))).await);
            clock.pass(MINUTE as u64);
        }
        let units = store.metered().0 - before;
        assert!(
            (least..=least + 2).contains(&units),
            "{metric:?}: {units} units"
        );
    }
}
