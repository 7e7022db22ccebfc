//! Tests of the demonstration source from a client's view, and of the properties of its series.

use serde_json::{Value, json};

use super::series::{self, DELAY_MAX, DemoSeries};
use super::{POINTS_MAX, answer, query};
use crate::aggregate::aggregate;
use crate::model::{Error, Kind, Millis, Points, Statistic, Step, TimeRange};
use crate::wire::mirror::request::{self, RequestBounds};
use crate::wire::mirror::{points, response};

/// A Wednesday at noon, UTC.
const NOW: Millis = 1_750_248_000_000;
const MINUTE: Millis = 60_000;
const HOUR: Millis = 60 * MINUTE;
const DAY: Millis = 24 * HOUR;

fn ask(path: &str, query: &Value, now: Millis) -> Result<Vec<u8>, Error> {
    let body = json!({ "connectionDetails": {}, "query": query }).to_string();
    answer(path, body.as_bytes(), now)
}

fn condition(key: &str, value: &Value) -> Value {
    json!({ "key": key, "value": { "value": value } })
}

fn metric(conditions: &[Value], range: (Millis, Millis)) -> Value {
    json!({ "conditions": conditions, "startTime": range.0, "endTime": range.1 })
}

fn with(mut query: Value, key: &str, value: Value) -> Value {
    query[key] = value;
    query
}

/// Returns the points of an answer (of buckets, their starts) and whether it is partial.
fn points(query: &Value, now: Millis) -> (Vec<(Millis, f64)>, bool) {
    let telemetry = points::read_metric(&ask("/api/metric", query, now).unwrap()).unwrap();
    let points = telemetry.times.into_iter().zip(telemetry.values);
    (points.collect(), telemetry.partial)
}

/// Returns the number of points that the series matching `conditions` have in an hour.
fn found(conditions: &[Value]) -> usize {
    let query = metric(conditions, (NOW - 2 * HOUR, NOW - HOUR));
    points(&query, NOW).0.len()
}

fn series(name: &str, host: &str) -> &'static DemoSeries {
    let is = |s: &DemoSeries, key, value| s.field(key).unwrap().to_string() == value;
    let mut all = series::all().iter();
    all.find(|s| is(s, "name", name) && is(s, "host", host))
        .unwrap()
}

fn values(field: &str, more: &Value) -> Vec<String> {
    let mut query = json!({ "field": { "fieldName": field, "fieldType": "STRING" } });
    for (key, value) in more.as_object().unwrap() {
        query[key] = value.clone();
    }
    let answer: Value =
        serde_json::from_slice(&ask("/api/field/value", &query, NOW).unwrap()).unwrap();
    let values = answer["values"].as_array().unwrap().iter();
    values
        .map(|v| v["value"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn points_never_change() {
    let k = NOW / 15_000;
    let golden = |name, host| {
        let s = series(name, host);
        [k - 100_000, k - 1000].map(|k| s.point(k, NOW))
    };
    assert_eq!(
        golden("cpu.usage_percent", "web-1"),
        [
            Some((1_748_748_006_080, 15.75)),
            Some((1_750_233_006_080, 33.14))
        ]
    );
    assert_eq!(
        golden("http.requests_total", "web-3"),
        [
            Some((1_748_748_009_140, 981985.0)),
            Some((1_750_233_009_140, 1667610.0))
        ]
    );
    assert_eq!(
        golden("disk.free_bytes", "db-1"),
        [
            Some((1_748_748_011_506, 400252668395.0)),
            Some((1_750_233_011_506, 435010025594.0))
        ]
    );
}

#[test]
fn there_are_dozens_of_series_and_each_has_its_own_name_and_host() {
    let of = |s: &DemoSeries| format!("{:?} {:?}", s.field("name"), s.field("host"));
    let mut all: Vec<_> = series::all().iter().map(of).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), series::all().len());
    assert!((36..=60).contains(&all.len()), "{}", all.len());
}

#[test]
fn points_come_in_late_within_a_minute_and_never_change_after() {
    let (mut late, mut newest) = (0, 0);
    for s in series::all() {
        for k in NOW / 15_000 - 400..NOW / 15_000 + 8 {
            let settled = s.point(k, Millis::MAX);
            let Some((time, _)) = settled else {
                assert_eq!(s.point(k, NOW), None);
                continue;
            };
            // Between two instants a point appears once and then does not change.
            let mut seen = false;
            for now in (time - 5000..=time + DELAY_MAX).step_by(1000) {
                let point = s.point(k, now);
                assert!(point.is_none() || (point == settled && now >= time));
                assert!(point.is_some() || !seen);
                seen = point.is_some();
            }
            assert!(seen);
            if (NOW - DELAY_MAX..=NOW).contains(&time) {
                newest += 1;
                late += usize::from(s.point(k, NOW).is_none());
            }
        }
    }
    assert!(0 < late && late < newest, "{late} of {newest}");
    let (rows, _) = points(&metric(&[], (NOW - HOUR, NOW + HOUR)), NOW);
    assert!(rows.last().unwrap().0 <= NOW);
}

#[test]
fn counters_grow_but_for_a_daily_restart() {
    for s in series::all() {
        if !s.field("name").unwrap().to_string().ends_with("_total") {
            continue;
        }
        let week = NOW / 15_000 - 7 * 5760..NOW / 15_000 - 4;
        let values: Vec<f64> = week.filter_map(|k| s.point(k, NOW)).map(|p| p.1).collect();
        let restarts = values.windows(2).filter(|w| w[1] < w[0]);
        let after: Vec<f64> = restarts.map(|w| w[1] / w[0]).collect();
        assert!((6..=8).contains(&after.len()), "{after:?}");
        assert!(after.iter().all(|share| *share < 0.05), "{after:?}");
    }
}

#[test]
fn some_series_have_gaps_and_some_have_none() {
    let week = NOW / 15_000 - 7 * 5760..NOW / 15_000 - 4;
    let longest = |s: &DemoSeries| {
        let (mut longest, mut gap) = (0, 0);
        for k in week.clone() {
            gap = if s.point(k, NOW).is_none() {
                gap + 1
            } else {
                0
            };
            longest = longest.max(gap);
        }
        longest
    };
    let gaps: Vec<i32> = series::all().iter().map(longest).collect();
    assert!(gaps.iter().filter(|g| **g >= 8).count() >= 5, "{gaps:?}");
    assert!(gaps.iter().filter(|g| **g == 0).count() >= 5, "{gaps:?}");
    assert!(gaps.iter().all(|g| *g <= 120), "{gaps:?}");
}

#[test]
fn values_look_as_their_metrics_do() {
    for s in series::all() {
        let name = s.field("name").unwrap().to_string();
        let day = NOW / 15_000 - 5760..NOW / 15_000 - 4;
        let values: Vec<f64> = day.filter_map(|k| s.point(k, NOW)).map(|p| p.1).collect();
        let least = values.iter().copied().fold(f64::MAX, f64::min);
        let most = values.iter().copied().fold(f64::MIN, f64::max);
        assert!(least >= 0.0 && least < most, "{name}: {least} to {most}");
        if name.ends_with("percent") {
            assert!(most <= 100.0, "{name}: {most}");
        }
        for value in values {
            assert!(value.to_string().len() <= 13, "{name}: {value}");
        }
    }
}

#[test]
fn buckets_are_those_of_all_raw_points_never_clipped() {
    let size = Step::new(5 * MINUTE).unwrap();
    let range = TimeRange::new(NOW - 3 * HOUR + 140_000, NOW - 130_000).unwrap();
    let web = [condition("service", &json!("webshop"))];
    let whole = range.aligned(size);
    let (rows, _) = points(&metric(&web, (whole.start(), whole.end())), NOW);
    let rows = Points::from_unsorted(rows);
    for statistic in Statistic::ALL {
        let expected: Vec<_> = aggregate(&rows, statistic, size, &range).iter().collect();
        assert_eq!(expected.len(), 36);
        let aggregation = json!({
            "method": request::method_name(statistic), "bucketSizeMillis": size.millis(),
        });
        let query = metric(&web, (range.start(), range.end()));
        let query = with(query, "aggregation", aggregation);
        assert_eq!(points(&query, NOW), (expected.clone(), false));
        let limited = with(query, "limit", json!(3));
        assert_eq!(points(&limited, NOW), (expected[..3].to_vec(), true));
    }
}

#[test]
fn an_empty_range_has_no_points_and_no_buckets() {
    let query = metric(&[], (NOW - 7777, NOW - 7777));
    assert_eq!(points(&query, NOW), (vec![], false));
    let aggregation = json!({ "method": "MEAN", "bucketSizeMillis": MINUTE });
    let query = with(query, "aggregation", aggregation);
    assert_eq!(points(&query, NOW), (vec![], false));
}

/// Continues from the last point, as StackState does, while answers are partial.
fn page(query: &Value, ask: impl Fn(&Value) -> (Vec<(Millis, f64)>, bool)) -> Vec<(Millis, f64)> {
    let mut query = query.clone();
    let mut all: Vec<(Millis, f64)> = Vec::new();
    loop {
        let (rows, partial) = ask(&query);
        let last = rows.last().unwrap().0;
        assert!(query["startTime"] != json!(last) || !partial, "no progress");
        all.retain(|(t, _)| *t < rows[0].0);
        all.extend(rows);
        if !partial {
            return all;
        }
        query["startTime"] = json!(last);
    }
}

#[test]
fn paging_reaches_every_point_whatever_cut_the_answer_short() {
    let query = metric(&[condition("host", &json!("web-2"))], (NOW - HOUR, NOW));
    let (all, partial) = points(&query, NOW);
    assert!(!partial && all.len() > 1000 && all.is_sorted_by_key(|p| p.0));
    let limited = with(query.clone(), "limit", json!(97));
    assert_eq!(points(&limited, NOW).0.len(), 97);
    assert_eq!(page(&limited, |q| points(q, NOW)), all);
    let capped = |q: &Value| {
        let body = json!({ "connectionDetails": {}, "query": q }).to_string();
        let request = request::read_metric(body.as_bytes(), RequestBounds::default()).unwrap();
        let body = query::metric(&request.query, NOW, 500).unwrap();
        let answer = points::read_metric(&body).unwrap();
        assert_eq!(answer.ends, None);
        let points = answer.times.into_iter().zip(answer.values);
        (points.collect(), answer.partial)
    };
    assert!(capped(&query).1);
    assert_eq!(page(&query, capped), all);
}

#[test]
fn conditions_of_every_type_select() {
    let all = found(&[]);
    let web = found(&[condition("service", &json!("webshop"))]);
    let host = |name: &str| found(&[condition("host", &json!(name))]);
    assert!(0 < web && web < all);
    assert_eq!(
        web,
        ["web-1", "web-2", "web-3", "web-4"]
            .map(host)
            .iter()
            .sum::<usize>()
    );
    assert_eq!(
        found(&[condition("host", &json!(["web-1", "db-1", "nowhere"]))]),
        host("web-1") + host("db-1")
    );
    assert_eq!(found(&[condition("canary", &json!(true))]), host("web-4"));
    assert_eq!(found(&[condition("port", &json!(8081))]), host("web-4"));
    assert_eq!(found(&[condition("port", &json!("8081"))]), 0);
    assert_eq!(found(&[condition("canary", &json!("true"))]), 0);
    let both = [
        condition("name", &json!("cpu.usage_percent")),
        condition("host", &json!("web-1")),
    ];
    assert!((232..=240).contains(&found(&both)));
    for none in [
        condition("host", &json!([])),
        condition("name", &json!([])),
        condition("nonesuch", &json!("web-1")),
    ] {
        assert_eq!(found(&[none]), 0);
    }
}

#[test]
fn series_that_are_not_there_take_no_time() {
    let query = metric(
        &[condition("host", &json!("nowhere"))],
        (0, 200_000_000_000_000),
    );
    assert_eq!(points(&query, 200_000_000_000_000), (vec![], false));
}

#[test]
fn fields_have_their_types_and_obey_the_scope() {
    let names = |query: Value| {
        let body = ask("/api/field/name", &query, NOW).unwrap();
        let listed = response::read_field_names(&body).unwrap();
        let shown = listed
            .fields
            .iter()
            .map(|f| format!("{} {:?}", f.name, f.kind));
        (shown.collect::<Vec<_>>(), listed.partial)
    };
    let all = [
        "name String",
        "host String",
        "service String",
        "region String",
        "port Number",
        "canary Boolean",
    ];
    assert_eq!(names(json!({})), (all.map(String::from).to_vec(), false));
    let last = names(json!({ "limit": 1, "latestFirst": true }));
    assert_eq!(last, (vec!["canary Boolean".to_owned()], true));
    let none = json!({ "conditions": [condition("host", &json!("nowhere"))] });
    assert_eq!(names(none), (vec![], false));
}

#[test]
fn field_values_obey_the_scope_the_prefix_and_the_order() {
    assert_eq!(
        values("host", &json!({ "fieldValuePrefix": "db" })),
        ["db-1", "db-2"]
    );
    let web = json!({ "fieldValuePrefix": "web", "latestFirst": true, "limit": 2, "offset": 1 });
    assert_eq!(values("host", &web), ["web-3", "web-2"]);
    let canary = json!({ "conditions": [condition("canary", &json!(true))] });
    assert_eq!(values("host", &canary), ["web-4"]);
    assert_eq!(values("port", &canary), ["8081"]);
    assert_eq!(values("canary", &json!({})), ["false", "true"]);
    assert!(values("name", &json!({ "limit": 9 })).contains(&"cache.*".to_owned()));
}

#[test]
fn errors_say_what_is_wrong() {
    let range = (NOW - HOUR, NOW);
    let error = |query: &Value| ask("/api/metric", query, NOW).unwrap_err();
    let unknown = error(&metric(&[condition("name", &json!("cpu.usage"))], range));
    assert_eq!(unknown.kind, Kind::MetricNotFound);
    assert_eq!(unknown.subject.as_deref(), Some("cpu.usage"));
    assert!(unknown.message.contains("/api/field/value"));

    let query = with(metric(&[], range), "metricField", json!("value"));
    assert!(ask("/api/metric", &query, NOW).is_ok());
    let field = error(&with(query, "metricField", json!("other")));
    assert_eq!(field.field.as_deref(), Some("query.metricField"));

    let aggregation = json!({ "method": "MAX", "bucketSizeMillis": DAY });
    let years = with(
        metric(&[], (NOW - 2000 * DAY, NOW)),
        "aggregation",
        aggregation,
    );
    let many = error(&years);
    assert_eq!(many.kind, Kind::TooManyPoints);
    assert!(many.message.contains(&POINTS_MAX.to_string()));

    let query = json!({ "field": { "fieldName": "hots", "fieldType": "STRING" } });
    let field = ask("/api/field/value", &query, NOW).unwrap_err();
    assert_eq!(field.field.as_deref(), Some("query.field.fieldName"));
    assert!(field.message.contains("host, service"));

    let path = answer("/api/nonesuch", b"{}", NOW).unwrap_err();
    assert_eq!(path.kind, Kind::PathNotFound);
    let body = answer("/api/metric", b"{", NOW).unwrap_err();
    assert_eq!(body.kind, Kind::InvalidRequest);
}

#[test]
fn a_connection_test_succeeds_with_a_double_slash_too() {
    let body = answer("//api/connection", br#"{"connectionDetails":{}}"#, NOW).unwrap();
    assert_eq!(response::read_connection(&body), Ok(Ok(())));
}
