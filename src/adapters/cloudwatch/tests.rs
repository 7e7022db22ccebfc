use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::adapters::{Data, FetchResult, Response};
use crate::model::{Millis, Scalar, Test};

const NOW: Millis = 1_790_000_000_000;
const MINUTE: Millis = 60_000;

#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Millis {
        NOW
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

fn adapter() -> CloudWatch {
    CloudWatch {
        region: "eu-west-1".into(),
        pace: MetricPace {
            interval: Step::new(MINUTE).unwrap(),
            settle: 15 * MINUTE,
            refresh: std::time::Duration::from_secs(120),
        },
        single_series: false,
        rules: Vec::new(),
        statistics: 5,
        clock: Arc::new(Fixed),
    }
}

fn fetch(values: &[&str], layout: Layout, range: (Millis, Millis)) -> Fetch {
    let text = |v: &str| Scalar::String(v.to_owned());
    let condition = |key: &str, test| Condition {
        key: key.to_owned(),
        test,
    };
    Fetch {
        selector: Selector::new(vec![
            condition("Namespace", Test::Is(text("AWS/Lambda"))),
            condition(
                "FunctionName",
                Test::In(values.iter().map(|v| text(v)).collect()),
            ),
        ]),
        metric_field: Some("Duration".into()),
        layout,
        range: TimeRange::clamped(range.0, range.1),
        nan: NanInterpretation::Omit,
        details: Forwarded::default(),
    }
}

fn hour() -> (Millis, Millis) {
    let end = NOW - NOW % (60 * MINUTE);
    (end - 60 * MINUTE, end)
}

/// The call for `part` alone.
fn call(part: &Part) -> Exchange<Vec<Result<FetchResult, Error>>> {
    StatisticsQuery::call(vec![query_of(part)])
}

fn query_of(part: &Part) -> StatisticsQuery {
    let PartCall::Shared(query) = &part.call else {
        panic!("a call of its own");
    };
    query.clone()
}

fn body(part: &Part) -> Value {
    serde_json::from_slice(&call(part).request.body).unwrap()
}

fn answered(part: &Part, body: &Value) -> Result<FetchResult, Error> {
    let response = Response {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        body: Bytes::from(body.to_string()),
    };
    match (call(part).read)(&response)? {
        Next::Compare(_) => panic!("a comparison"),
        Next::Done(mut results) => results.pop().unwrap(),
        Next::More(_) => panic!("another page"),
    }
}

#[test]
fn a_summary_is_four_queries_and_one_unit() {
    let period = Step::new(MINUTE).unwrap();
    let fetch = fetch(&["f"], Layout::Raw, hour());
    let parts = adapter().summaries(&fetch, period).unwrap();
    assert_eq!(parts.len(), 1);
    assert_eq!(call(&parts[0]).request.units, 1);
    let query = |id: &str, stat: &str| {
        json!({
            "Id": id, "ReturnData": true,
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/Lambda", "MetricName": "Duration",
                    "Dimensions": [{ "Name": "FunctionName", "Value": "f" }],
                },
                "Period": 60, "Stat": stat,
            },
        })
    };
    let expected = json!({
        "MetricDataQueries": [
            query("q0", "Sum"), query("q1", "SampleCount"), query("q2", "Minimum"), query("q3", "Maximum"),
        ],
        "StartTime": hour().0 / 1000, "EndTime": hour().1 / 1000,
        "ScanBy": "TimestampAscending", "MaxDatapoints": 100_800,
    });
    assert_eq!(body(&parts[0]), expected);
}

#[test]
fn long_ranges_are_cut_into_calls_of_one_page() {
    let period = Step::new(MINUTE).unwrap();
    let days = (NOW - NOW % MINUTE - 14 * 1440 * MINUTE, NOW - NOW % MINUTE);
    let values: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let parts = adapter()
        .summaries(&fetch(&values, Layout::Raw, days), period)
        .unwrap();
    // 2,520 minutes of 40 queries are 100,800 points.
    assert_eq!(parts.len(), 8);
    let starts: Vec<Millis> = parts
        .iter()
        .map(|p| body(p)["StartTime"].as_i64().unwrap() * 1000)
        .collect();
    assert_eq!(starts, parts.iter().map(|p| p.start).collect::<Vec<_>>());
    assert!(starts.windows(2).all(|w| w[1] - w[0] == 2520 * MINUTE));
    assert!(parts.iter().all(|p| call(p).request.units == 10));
}

#[test]
fn answers_are_read_whatever_form_times_and_numbers_have() {
    let period = Step::new(MINUTE).unwrap();
    let parts = adapter()
        .summaries(&fetch(&["f"], Layout::Raw, hour()), period)
        .unwrap();
    let start = hour().0;
    let date = humantime::format_rfc3339_seconds(
        std::time::UNIX_EPOCH + std::time::Duration::from_millis((start + MINUTE) as u64),
    );
    let seconds = start as f64 / 1000.0;
    let column = |id: &str, values: [Value; 2]| {
        // Newest first, as CloudWatch sorts them by default.
        json!({ "Id": id, "Label": "l", "StatusCode": "Complete",
                "Timestamps": [date.to_string(), seconds], "Values": values })
    };
    let answer = json!({ "Messages": [], "MetricDataResults": [
        column("q3", [json!(9.5), json!(8)]), column("q0", [json!(10.0), json!(20)]),
        column("q1", [json!(2), json!("4.0")]), column("q2", [json!(0.5), json!(2)]),
    ]});
    let result = answered(&parts[0], &answer).unwrap();
    let Data::Points(points) = result.data else {
        panic!("no points");
    };
    let expected = [
        (start, 20.0),
        (start, 4.0),
        (start, 2.0),
        (start, 8.0),
        (start + MINUTE, 10.0),
        (start + MINUTE, 2.0),
        (start + MINUTE, 0.5),
        (start + MINUTE, 9.5),
    ];
    assert_eq!(points.iter().collect::<Vec<_>>(), expected);
    assert!(result.complete);
    // A summary that lacks something is left out, and the answer is not all there is.
    let mut lacking = answer;
    let last = lacking["MetricDataResults"][0]["Timestamps"]
        .as_array_mut()
        .unwrap();
    last.truncate(1);
    let result = answered(&parts[0], &lacking).unwrap();
    assert!(!result.complete && result.data.len() == 4);
}

#[test]
fn percentiles_are_asked_for_at_the_size_of_the_buckets() {
    let size = Step::new(5 * MINUTE).unwrap();
    let layout = Layout::Buckets {
        statistic: Statistic::P95,
        size,
    };
    let parts = adapter().series(&fetch(&["f"], layout, hour())).unwrap();
    let query = &body(&parts[0])["MetricDataQueries"][0]["MetricStat"];
    assert_eq!(
        (&query["Stat"], &query["Period"]),
        (&json!("p95"), &json!(300))
    );
    // Of what is too old for so small a period, nothing is asked.
    let day = 1440 * MINUTE;
    let old = (
        NOW - NOW % size.millis() - 100 * day,
        NOW - NOW % size.millis() - 90 * day,
    );
    assert!(
        adapter()
            .series(&fetch(&["f"], layout, old))
            .unwrap()
            .is_empty()
    );
    assert!(
        adapter()
            .series(&fetch(&[], layout, hour()))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn percentiles_of_less_than_the_interval_are_asked_for_while_they_are_kept() {
    let size = Step::new(10_000).unwrap();
    let layout = Layout::Buckets {
        statistic: Statistic::P95,
        size,
    };
    let parts = adapter().series(&fetch(&["f"], layout, hour())).unwrap();
    assert_eq!(parts.len(), 1);
    let query = &body(&parts[0])["MetricDataQueries"][0]["MetricStat"];
    assert_eq!(query["Period"], json!(10));
    let old = (hour().0 - 240 * MINUTE, hour().1 - 240 * MINUTE);
    let parts = adapter().series(&fetch(&["f"], layout, old)).unwrap();
    assert_eq!(parts.len(), 0);
}

#[test]
fn values_of_periods_settle_when_these_have_ended() {
    let is = |key: &str, value: &str| Condition {
        key: key.into(),
        test: Test::Is(Scalar::String(value.into())),
    };
    let adapter = CloudWatch {
        rules: NamespaceRule::built_in().to_vec(),
        ..adapter()
    };
    let settle = |conditions: Vec<Condition>| {
        let selector = Selector::new(conditions);
        let pace = adapter.pace(&selector, Some("BucketSizeBytes"));
        pace.map(|pace| (pace.interval.millis(), pace.settle))
    };
    let usual = adapter.pace;
    let own = usual.interval.millis();
    let s3 = NamespaceRule::built_in()[0].pace;
    let day = s3.interval.millis();
    for (conditions, expected) in [
        (
            vec![is("~", "SEARCH('a', 'Sum')")],
            Some((own, usual.settle + own)),
        ),
        (
            vec![is("~", "SEARCH('a', 'Sum', 3600)")],
            Some((3_600_000, usual.settle + 3_600_000)),
        ),
        (
            vec![is("Namespace", "N"), is("Statistic", "p99")],
            Some((own, usual.settle + own)),
        ),
        (vec![is("Namespace", "N"), is("Statistic", "Sum")], None),
        (
            vec![is("Namespace", "AWS/S3"), is("Statistic", "p99")],
            Some((day, s3.settle + day)),
        ),
        (vec![is("Namespace", "AWS/S3")], Some((day, s3.settle))),
    ] {
        assert_eq!(settle(conditions.clone()), expected, "{conditions:?}");
    }
}
