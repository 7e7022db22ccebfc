//! Expressions (`~`) and catalogues, against a scripted CloudWatch.

use std::collections::BTreeMap;

use heliostat::clock::Clock;
use serde_json::{Value, json};

use crate::cloudwatch::{METHODS, Points, ask, equals, lambda, list, query, read, state};
use crate::cloudwatch_store::{
    CloudWatchStore, DAY, HOUR, MINUTE, Metric, SECOND, Trouble, metric_of, statistic,
};
use crate::prometheus_api::Dice;
use crate::support::{ADMIN, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;

const ALL: &str = "SEARCH('{AWS/Lambda,FunctionName} MetricName=\"Duration\"', 'Sum')";

/// A query for an expression.
fn search(text: &str, range: (i64, i64), buckets: Option<(&str, i64)>) -> Value {
    let mut asked = json!({
        "_type": "MetricsQuery", "startTime": range.0, "endTime": range.1,
        "conditions": [equals("~", text)], "metricField": "value",
    });
    if let Some((method, size)) = buckets {
        asked["aggregation"] = json!({ "method": method, "bucketSizeMillis": size });
    }
    asked
}

/// Puts a sample a minute, of its own value, for each of so many functions.
fn functions(store: &CloudWatchStore, n: usize, from: i64, to: i64) -> Vec<Metric> {
    let metric = |n: usize| {
        let metric = lambda(&format!("f{n:03}"));
        let times = (from.div_euclid(MINUTE)..to.div_euclid(MINUTE)).map(|k| k * MINUTE);
        store.put_now(
            &metric,
            times.map(|t| (t, (n + 1) as f64 + (t / MINUTE % 7) as f64)),
        );
        metric
    };
    (0..n).map(metric).collect()
}

/// The points that an expression has of `metrics`: of each period of each of them a sum.
fn points(store: &CloudWatchStore, metrics: &[Metric], period: i64, now: i64) -> Vec<(i64, f64)> {
    let mut all = Vec::new();
    for metric in metrics {
        let mut periods: BTreeMap<i64, f64> = BTreeMap::new();
        for (t, v) in store.visible(metric, now) {
            *periods.entry(t - t.rem_euclid(period)).or_default() += v;
        }
        all.extend(periods);
    }
    all.sort_by_key(|p| p.0);
    all
}

fn within(points: &[(i64, f64)], range: (i64, i64)) -> Points {
    let mut points: Points = points
        .iter()
        .copied()
        .filter(|p| (range.0..range.1).contains(&p.0))
        .collect();
    points.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    points
}

/// The buckets that `points` make.
fn bucketed(points: &[(i64, f64)], range: (i64, i64), size: i64, stat: &str) -> Points {
    let start = range.0.div_euclid(size) * size;
    let end = (range.1 - 1).div_euclid(size) * size + size;
    let mut buckets: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (t, v) in points.iter().filter(|p| (start..end).contains(&p.0)) {
        buckets.entry(t - t.rem_euclid(size)).or_default().push(*v);
    }
    let buckets = buckets.into_iter();
    buckets.map(|(t, v)| (t, statistic(stat, &v))).collect()
}

fn same(what: &str, got: &Points, expected: &Points) {
    let mut got = got.clone();
    got.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    assert_eq!(got.len(), expected.len(), "{what}: number of points");
    for (g, e) in got.iter().zip(expected) {
        let near = (g.1 - e.1).abs() <= 1e-9 * e.1.abs().max(1.0);
        assert!(g.0 == e.0 && near, "{what}: {g:?} where {e:?} was expected");
    }
}

#[tokio::test]
async fn an_expression_is_the_points_of_all_its_series() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    let metrics = functions(&store, 12, NOW - 6 * HOUR, NOW);
    store.put_now(
        &metric_of("AWS/Lambda", "Errors", &[("FunctionName", "f000")]),
        [(NOW - HOUR, 1.0)],
    );
    let config = format!("{}{ADMIN}", store.section("search", ""));
    let server = Server::start_at(&config, clock.clone()).await;
    let all = points(&store, &metrics, MINUTE, NOW);
    let range = (NOW - 2 * HOUR - 12_345, NOW - 30 * MINUTE);
    let raw = read(&ask(&server, &search(ALL, range, None)).await);
    same("raw", &raw, &within(&all, range));
    for (method, stat) in METHODS {
        for size in [HOUR, 5 * MINUTE, 90 * SECOND] {
            let reply = ask(&server, &search(ALL, range, Some((method, size)))).await;
            let expected = bucketed(&all, range, size, stat);
            same(&format!("{method} {size}"), &read(&reply), &expected);
        }
    }
    // As many units as series, for the first query and for what an hour's bucket begins earlier with.
    let (units, calls, _) = store.metered();
    assert_eq!((units, calls), (24, 2));
    let counted = state(&server).await["units"].clone();
    assert_eq!(counted["asked"], 24);
    assert_eq!(counted["requested"], 12 * 22);
    // One series by math of CloudWatch's, and a period of its own.
    let sum = format!("SUM({ALL})");
    let mut sums: BTreeMap<i64, f64> = BTreeMap::new();
    all.iter()
        .for_each(|(t, v)| *sums.entry(*t).or_default() += v);
    let sums: Points = sums.into_iter().collect();
    let reply = ask(&server, &search(&sum, range, Some(("MAX", 5 * MINUTE)))).await;
    same(
        "sum",
        &read(&reply),
        &bucketed(&sums, range, 5 * MINUTE, "Maximum"),
    );
    let five = ALL.replace("'Sum')", "'Sum', 300)");
    let reply = ask(&server, &search(&five, range, None)).await;
    let coarse = points(&store, &metrics, 5 * MINUTE, NOW);
    same("300", &read(&reply), &within(&coarse, range));
    // Where it finds nothing.
    let none = ALL.replace("Duration", "None");
    assert!(read(&ask(&server, &search(&none, range, None)).await).is_empty());
}

#[tokio::test]
async fn an_expression_that_is_polled_costs_its_series_once_a_refresh() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    functions(&store, 5, NOW - 2 * HOUR, NOW + 2 * HOUR);
    let config = format!(
        "{}{ADMIN}",
        store.section("polled", "units = { per_day = 300 }")
    );
    let server = Server::start_at(&config, clock.clone()).await;
    for minute in 0..60 {
        let now = clock.now();
        for (method, span) in [("MEAN", HOUR), ("MAX", 20 * MINUTE), ("SUM", 5 * MINUTE)] {
            let query = search(ALL, (now - span, now), Some((method, MINUTE)));
            read(&ask(&server, &query).await);
        }
        // More series come.
        if minute == 29 {
            functions(&store, 7, NOW - 2 * HOUR, NOW + 2 * HOUR);
        }
        clock.pass(MINUTE as u64);
    }
    let units = store.metered().0;
    assert!(
        (15 * 5 + 15 * 7..=16 * 5 + 16 * 7).contains(&units),
        "{units}"
    );
    let counted = state(&server).await;
    assert_eq!(counted["units"]["asked"], units);
    assert_eq!(counted["budgets"][0]["used"], units);
    // The rest of the budget is less than a few more of them.
    for _ in 0..30 {
        clock.pass(2 * MINUTE as u64);
        let now = clock.now();
        let query = search(ALL, (now - HOUR, now), None);
        assert_eq!(ask(&server, &query).await.status, 200);
    }
    assert!(store.metered().0 <= 300, "{}", store.metered().0);
}

#[tokio::test]
async fn what_an_expression_cannot_be_is_said_and_not_asked_again() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    functions(&store, 3, NOW - HOUR, NOW);
    let wide = |n: usize| metric_of("Wide", "m", &[("n", &n.to_string())]);
    for n in 0..501 {
        store.put_now(&wide(n), [(NOW - HOUR, 1.0)]);
    }
    let config = store.section("refused", "multi_series = \"error\"\nretries = 1");
    let server = Server::start_at(&config, clock.clone()).await;
    let range = (NOW - HOUR, NOW);
    let many = "SEARCH('{Wide,n} MetricName=\"m\"', 'Sum')";
    for (text, status, said) in [
        (many, 422, "MaxMetricsExceeded"),
        ("NONSENSE(", 400, "Error in expression"),
        (ALL, 404, "has 3 series"),
    ] {
        let before = store.metered().1;
        for method in ["MEAN", "MAX"] {
            let reply = ask(&server, &search(text, range, Some((method, MINUTE)))).await;
            assert_eq!(reply.status, status, "{}", reply.text);
            assert!(reply.text.contains(said), "{}", reply.text);
        }
        assert_eq!(store.metered().1 - before, 1, "{text}");
        clock.pass(2 * MINUTE as u64 + 1000);
        ask(&server, &search(text, range, Some(("MEAN", MINUTE)))).await;
        assert_eq!(store.metered().1 - before, 2, "{text}");
    }
    let before = store.metered().1;
    for (query, said) in [
        (search("  ", range, None), "1 to 2048 characters"),
        (search("SEARCH('a', 'Sum', 61)", range, None), "not 61"),
    ] {
        let reply = ask(&server, &query).await;
        assert_eq!(reply.status, 404, "{}", reply.text);
        assert!(reply.text.contains(said), "{}", reply.text);
    }
    let mut both = search(ALL, range, None);
    both["conditions"]
        .as_array_mut()
        .unwrap()
        .push(equals("Namespace", "AWS/Lambda"));
    let reply = ask(&server, &both).await;
    assert!(
        reply.text.contains("put namespace and dimensions into"),
        "{}",
        reply.text
    );
    assert_eq!(store.metered().1, before);
    // Failures that pass are tried again, and nothing of them is kept.
    let one = ALL.replace("\"Duration\"", "\"Duration\" FunctionName=\"f001\"");
    store.trouble([Some(Trouble::InternalError)]);
    let first = read(&ask(&server, &search(&one, range, None)).await);
    assert_eq!(first.len(), 59);
}

#[tokio::test]
async fn what_an_error_was_billed_is_counted() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    functions(&store, 40, NOW - 2 * HOUR, NOW + HOUR);
    let config = format!(
        "{}{ADMIN}",
        store.section("billed", "multi_series = \"error\"\nretries = 0")
    );
    let server = Server::start_at(&config, clock.clone()).await;
    let poll = async |text: &str, span: i64| {
        let now = clock.now();
        ask(&server, &search(text, (now - span, now), None)).await
    };
    for refresh in 1..=3 {
        for _ in 0..2 {
            let reply = poll(ALL, HOUR).await;
            assert!(reply.text.contains("has 40 series"), "{}", reply.text);
        }
        let counted = state(&server).await["units"]["asked"].clone();
        assert_eq!(
            (store.metered().0, counted),
            (40 * refresh, json!(40 * refresh))
        );
        clock.pass(2 * MINUTE as u64 + 1000);
    }
    // The first page was billed, whatever comes of the second.
    for (trouble, statistic) in [(Trouble::BadToken, "Maximum"), (Trouble::Denied, "Average")] {
        store.page(100);
        store.trouble([None, Some(trouble)]);
        let text = ALL.replace("Sum", statistic);
        let asked = async || state(&server).await["units"]["asked"].as_u64().unwrap();
        let (before, (_, calls, _)) = (asked().await, store.metered());
        let reply = poll(&text, 4 * MINUTE).await;
        assert!(reply.status >= 400, "{}", reply.text);
        let calls = store.metered().1 - calls;
        assert!(calls >= 2, "{calls}");
        assert_eq!(asked().await - before, 40 * calls, "{trouble:?}");
    }
}

#[tokio::test]
async fn an_error_about_a_long_range_is_none_about_a_shorter_one() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    functions(&store, 20, NOW - 2 * HOUR, NOW);
    store.page(100);
    let server = Server::start_at(&store.section("long", ""), clock.clone()).await;
    let poll = async |span: i64| {
        let reply = ask(&server, &search(ALL, (NOW - span, NOW), None)).await;
        (reply.status, reply.text.contains("ask for a shorter range"))
    };
    assert_eq!(poll(3 * HOUR).await, (422, true));
    assert_eq!(store.metered().1, 16);
    assert_eq!(poll(10 * MINUTE).await, (200, false));
    let calls = store.metered().1;
    assert!(calls > 16, "{calls}");
    // What is known of the long one still holds, for what an even longer one lacks, too.
    assert_eq!(poll(4 * HOUR).await, (422, true));
    assert_eq!(store.metered().1, calls);
}

/// Whatever was asked before, evicted or failed, an expression is the points of its series.
#[tokio::test]
async fn the_law_holds_for_expressions() {
    for seed in 1..crate::fuzz::number("HELIOSTAT_LAW_SEEDS", 4) {
        let mut dice = Dice((seed as i64) << 24);
        let clock = TestClock::at(NOW);
        let store = CloudWatchStore::start(clock.clone()).await;
        let mut metrics = functions(&store, 4, NOW - 4 * HOUR, NOW + 8 * HOUR);
        let old = lambda("old");
        store.put_now(
            &old,
            (0..500).map(|k| (NOW - 15 * DAY - 4 * HOUR + k * MINUTE, 1.0)),
        );
        metrics.push(old);
        let section = store.section(
            &format!("law-search-{seed}"),
            "refresh = \"0s\"\nretries = 1",
        );
        let config = format!("[cache]\nmemory = \"400KiB\"\n{section}");
        let server = Server::start_at(&config, clock.clone()).await;
        let mut asked = 0;
        for step in 0..60 {
            match dice.roll(8) {
                0 => clock.pass(dice.roll(10 * MINUTE) as u64),
                1 => clock.step(dice.roll(2 * MINUTE) - MINUTE),
                2 => {
                    let troubles = [
                        Trouble::Failed,
                        Trouble::InternalError,
                        Trouble::Partial,
                        Trouble::Throttled,
                    ];
                    store.trouble([Some(troubles[dice.roll(4) as usize])]);
                }
                3 => store.page([7, 100, 100_800][dice.roll(3) as usize]),
                _ => {}
            }
            let now = clock.now();
            let period = [0, 5 * MINUTE, HOUR, DAY][dice.roll(4) as usize];
            let named = format!("'Sum', {})", period / SECOND);
            let (text, period) = match period {
                0 => (ALL.to_owned(), MINUTE),
                _ => (ALL.replace("'Sum')", &named), period),
            };
            let aged = dice.roll(4) == 0;
            let end = now - if aged { 15 * DAY } else { 0 } - dice.roll(2 * HOUR);
            let mut range = (end - 1 - dice.roll(2 * HOUR), end);
            if period == DAY {
                // The last midnight lies in it.
                range.0 -= DAY;
            }
            let (method, stat) = METHODS[dice.roll(METHODS.len() as i64) as usize];
            let size = [90 * SECOND, 5 * MINUTE, HOUR][dice.roll(3) as usize];
            let reply = ask(&server, &search(&text, range, Some((method, size)))).await;
            let cut = reply.text.contains("\"isPartial\":true");
            if reply.status != 200 || cut || reply.header("cache-status").contains("detail") {
                continue;
            }
            asked += 1;
            let what =
                format!("seed {seed}, step {step}: {method} of {size} in {range:?} of {text}");
            // At the border of an age the period is the coarser one of the two.
            if aged && period == MINUTE {
                continue;
            }
            let all = points(&store, &metrics, period, now);
            same(&what, &read(&reply), &bucketed(&all, range, size, stat));
        }
        assert!(asked > 20, "{asked}");
    }
}

fn values_of(name: &str, conditions: &Value) -> Value {
    json!({
        "_type": "FieldValuesQuery", "field": { "fieldName": name, "fieldType": "STRING" },
        "conditions": conditions, "prefix": "", "offset": 0, "limit": 5000,
    })
}

#[tokio::test]
async fn lists_are_cut_from_one_catalogue() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    functions(&store, 700, NOW - HOUR, NOW - HOUR + MINUTE);
    let odd = "Odd name: é?".replace('é', "/%&=+");
    let queue = metric_of(
        "AWS/SQS",
        "Sent",
        &[("QueueName", "q"), (&odd, "a \"b\" \\ c")],
    );
    store.put_now(&queue, [(NOW - HOUR, 1.0)]);
    let server = Server::start_at(&store.section("catalogue", ""), clock.clone()).await;
    let values = async |name: &str, conditions: Value| {
        list(&server, "/api/field/value", values_of(name, &conditions)).await
    };
    let lambda = equals("Namespace", "AWS/Lambda");
    let listed = || store.metered().2;
    // A namespace's own catalogue, two pages, serves all that names it.
    assert_eq!(values("FunctionName", json!([lambda])).await.0.len(), 700);
    assert_eq!(listed(), 2);
    assert_eq!(values("MetricName", json!([lambda])).await.0, ["Duration"]);
    let one = json!([
        lambda,
        equals("MetricName", "Duration"),
        equals("FunctionName", "f007")
    ]);
    assert_eq!(values("FunctionName", one).await.0, ["f007"]);
    let set = json!({ "_type": "EqualityCondition", "key": "Namespace", "value": { "_type": "InSetValue", "value": [
        { "_type": "StringValue", "value": "AWS/SQS" }, { "_type": "StringValue", "value": "AWS/X" },
    ]}});
    assert_eq!(listed(), 2);
    // Without one the catalogue of all is needed, and then serves every namespace.
    assert_eq!(
        values("Namespace", json!([])).await.0,
        ["AWS/Lambda", "AWS/SQS"]
    );
    assert_eq!(listed(), 4);
    assert_eq!(values("Namespace", json!([set])).await.0, ["AWS/SQS"]);
    let sqs = json!([equals("Namespace", "AWS/SQS")]);
    assert_eq!(values("Resource", sqs.clone()).await.0, ["q"]);
    assert_eq!(values(&odd, sqs).await.0, ["a \"b\" \\ c"]);
    let sent = query(&queue, (NOW - 2 * HOUR, NOW), Some(("SUM", HOUR)));
    assert_eq!(read(&ask(&server, &sent).await).len(), 1);
    let fields =
        json!({ "_type": "FieldNamesQuery", "conditions": [equals("Namespace", "AWS/SQS")] });
    let (names, _) = list(&server, "/api/field/name", fields).await;
    assert!(
        names.contains(&odd) && names.contains(&"Sent".to_owned()),
        "{names:?}"
    );
    assert!(!names.contains(&"Duration".to_owned()));
    assert_eq!(
        values("Namespace", json!([equals("Namespace", "None")]))
            .await
            .0
            .len(),
        0
    );
    assert_eq!(listed(), 4);
    // It is listed again after metadata_ttl: what is new is there, what is gone is not.
    store.put_now(&metric_of("AWS/SNS", "Sent", &[]), [(NOW, 1.0)]);
    store.remove(&queue);
    clock.pass(15 * MINUTE as u64 + 1000);
    assert_eq!(
        values("Namespace", json!([])).await.0,
        ["AWS/Lambda", "AWS/SNS"]
    );
    assert_eq!(listed(), 6);
    // What CloudWatch says of it now is the answer.
    assert_eq!(read(&ask(&server, &sent).await), []);
}

#[tokio::test]
async fn a_catalogue_has_bounds_and_says_so() {
    let clock = TestClock::at(NOW);
    let store = CloudWatchStore::start(clock.clone()).await;
    for n in 0..20_600 {
        let name = format!("m{}", n % 3);
        let metric = metric_of("Big", &name, &[("host", &format!("h{n:05}"))]);
        store.put_now(&metric, [(NOW - HOUR, 1.0)]);
    }
    let section = store.section("bounds", "timeout = \"100s\"");
    let config = format!("[server]\nrequest_timeout = \"100s\"\n{section}");
    let server = Server::start_at(&config, clock).await;
    let values = async |name: &str, conditions: Value| {
        list(&server, "/api/field/value", values_of(name, &conditions)).await
    };
    assert_eq!(
        values("Namespace", json!([])).await,
        (vec!["Big".to_owned()], true)
    );
    assert_eq!(store.metered().2, 40);
    // It is kept all the same; what names less has a catalogue of its own.
    assert_eq!(values("MetricName", json!([])).await.0.len(), 3);
    assert_eq!(store.metered().2, 40);
    let one = json!([equals("Namespace", "Big"), equals("host", "h20599")]);
    assert_eq!(
        values("MetricName", one).await,
        (vec!["m1".to_owned()], false)
    );
    assert_eq!(store.metered().2, 41);
}
