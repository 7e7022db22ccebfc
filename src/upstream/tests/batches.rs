//! Panels that open at once, on idle limits and with the default window.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::*;
use crate::adapters::cloudwatch::CloudWatch;
use crate::adapters::{Adapter, Data, Fetch, FetchResult, Forwarded, PartCall};
use crate::model::{
    Condition, Layout, MetricPace, NanInterpretation, Scalar, Selector, Test, TimeRange,
};

const NOW: i64 = 1_790_000_040_000;
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// A CloudWatch whose metrics have the value of their number, and which refuses a call with a metric
/// that is called `bad`.
#[derive(Default)]
struct Store {
    /// The queries of each call.
    calls: Mutex<Vec<usize>>,
}

impl Transport for Store {
    fn send(
        &self,
        request: Outgoing,
        _: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let queries = body["MetricDataQueries"].as_array().unwrap();
        self.calls.lock().unwrap().push(queries.len());
        let start = body["StartTime"].as_i64().unwrap();
        let name = |query: &Value| {
            let metric = &query["MetricStat"]["Metric"];
            metric["MetricName"].as_str().unwrap().to_owned()
        };
        let result = |query: &Value| {
            json!({
                "Id": query["Id"], "StatusCode": "Complete", "Timestamps": [start],
                "Values": [name(query).parse::<f64>().unwrap()],
            })
        };
        let bad = queries.iter().any(|query| name(query) == "bad");
        let (status, answer) = match bad {
            true => (
                400,
                json!({ "__type": "InvalidParameterValue", "message": "bad" }),
            ),
            false => {
                let results: Vec<Value> = queries.iter().map(result).collect();
                (200, json!({ "MetricDataResults": results }))
            }
        };
        Box::pin(async move {
            tokio::time::sleep(ROUND_TRIP).await;
            Ok(Response {
                status: StatusCode::from_u16(status).unwrap(),
                headers: HeaderMap::new(),
                body: Bytes::from(answer.to_string()),
            })
        })
    }
}

#[derive(Debug)]
struct Fixed;

impl crate::clock::Clock for Fixed {
    fn now(&self) -> i64 {
        NOW
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

/// Returns the call for the last hour of the metric `name`.
fn call_for(name: &str) -> PartCall {
    let minute = Step::SECOND.times(60);
    let adapter = CloudWatch {
        region: "eu-west-1".into(),
        pace: MetricPace {
            interval: minute,
            settle: 0,
            refresh: Duration::ZERO,
        },
        single_series: false,
        rules: Vec::new(),
        statistics: 5,
        clock: Arc::new(Fixed),
    };
    let namespace = Condition {
        key: "Namespace".into(),
        test: Test::Is(Scalar::String("N".into())),
    };
    let fetch = Fetch {
        selector: Selector::new(vec![namespace]),
        metric_field: Some(name.to_owned()),
        layout: Layout::Raw,
        range: TimeRange::clamped(NOW - 3_600_000, NOW),
        nan: NanInterpretation::Omit,
        details: Forwarded::default(),
    };
    let mut parts = adapter.summaries(&fetch, minute).unwrap();
    parts.pop().unwrap().call
}

/// Asks for all of `names` at once; returns the answers, the sizes of the calls, and the time taken.
async fn ask(names: &[String]) -> (Vec<Result<FetchResult, Error>>, Vec<usize>, Duration) {
    let store = Arc::new(Store::default());
    // As kind cloudwatch has them.
    let limits = Limits {
        per_second: 20.0,
        burst: 20,
        max_concurrency: 8,
        ..Limits::default()
    };
    let upstream = upstream(&store, &["a"], limits);
    let begun = Instant::now();
    let asked = names.iter().map(|name| {
        let (upstream, call) = (upstream.clone(), call_for(name));
        async move {
            let answered = upstream.fetch(call, &call_context()).await;
            answered.map(|answered| answered.value)
        }
    });
    let answers = join_all(asked).await;
    let calls = std::mem::take(&mut *store.calls.lock().unwrap());
    (answers, calls, begun.elapsed())
}

fn value(answer: &Result<FetchResult, Error>) -> f64 {
    let Data::Points(points) = &answer.as_ref().unwrap().data else {
        panic!("points");
    };
    points.values()[0]
}

#[tokio::test(start_paused = true)]
async fn panels_that_open_at_once_take_four_calls_and_two_round_trips() {
    let names: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let (answers, calls, took) = ask(&names).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(value(answer), n as f64);
    }
    assert_eq!(calls, [500; 4]);
    assert!(took <= 2 * ROUND_TRIP, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_bad_query_among_them_fails_alone() {
    let mut names: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    names[300] = "bad".into();
    let (answers, calls, _) = ask(&names).await;
    for (n, answer) in answers.iter().enumerate() {
        match n {
            300 => assert_eq!(answer.as_ref().unwrap_err().kind, Kind::InvalidRequest),
            n => assert_eq!(value(answer), n as f64),
        }
    }
    // Its call is made again in halves, down to itself: two calls for each time that 125 can be halved.
    assert!(calls.len() <= 4 + 2 * 7, "{calls:?}");
    let whole: HashSet<&usize> = calls[..4].iter().collect();
    assert_eq!(whole, HashSet::from([&500]));
}

#[test]
fn a_query_that_does_not_fit_into_the_budget_takes_nothing_from_it() {
    let fitting = |left: u32, units: &[u32]| -> Vec<u32> {
        let mut fits = crate::upstream::batch::within(left);
        let fitting = units.iter().copied().filter(|units| fits(*units));
        fitting.collect()
    };
    assert_eq!(fitting(5, &[3, 4, 2]), [3, 2]);
    assert_eq!(fitting(5, &[6, 5, 1]), [5]);
    assert_eq!(fitting(0, &[1, u32::MAX]), [0; 0]);
}
