//! A mirror of a mirror: one Heliostat in front of another gives the same answers.

use heliostat::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::support::{Server, TestClock};

/// Two in a row, the first behind the second, and a clock that both share.
struct Chain {
    first: Server,
    second: Server,
    now: i64,
}

impl Chain {
    async fn start(name: &str, aggregate: &str) -> Self {
        // Answers of a Heliostat are dated by the real clock, so the test's clock is set near it.
        let now = SystemClock::default().now();
        let clock = TestClock::at(now);
        let demo = format!(
            "[[upstream]]\nname = \"{name}-first\"\nkind = \"demo\"\ndemo = {{ latency = \"1ms\", per_second = 10000 }}\nrate_limit = {{ per_second = 10000 }}"
        );
        let first = Server::start_at(&demo, clock.clone()).await;
        let mirror = format!(
            "[[upstream]]\nname = \"{name}-second\"\nkind = \"mirror\"\nurls = [{:?}]\napi_key = \"api_key\"\naggregate = {aggregate:?}\nrate_limit = {{ per_second = 10000 }}\nbreaker = {{ failures = 1000 }}",
            first.url
        );
        let second = Server::start_at(&mirror, clock).await;
        Self { first, second, now }
    }

    /// Queries both; their statuses and bodies must be the same.
    async fn agree(&self, path: &str, body: Value) -> Value {
        // The second goes first, so that its own query has not warmed up what is behind it.
        let second = self.second.post(path, &body).await;
        let first = self.first.post(path, &body).await;
        assert_eq!(first.status, second.status, "{body}\n{}", second.text);
        assert_eq!(first.text, second.text, "{body}");
        first.json()
    }

    fn metric(&self, back: i64, until: i64, more: &Value) -> Value {
        let name = json!({ "value": "cpu.usage_percent", "_type": "StringValue" });
        let mut query = json!({
            "conditions": [{ "key": "name", "value": name, "_type": "EqualityCondition" }],
            "startTime": self.now - back,
            "endTime": self.now - until,
        });
        let members = query.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        json!({ "connectionDetails": {}, "query": query })
    }
}

const HOUR: i64 = 3_600_000;

const METHODS: [&str; 15] = [
    "MEAN",
    "PERCENTILE_25",
    "PERCENTILE_50",
    "PERCENTILE_75",
    "PERCENTILE_90",
    "PERCENTILE_95",
    "PERCENTILE_98",
    "PERCENTILE_99",
    "MAX",
    "MIN",
    "SUM",
    "EVENT_COUNT",
    "SUM_NO_ZEROS",
    "EVENT_COUNT_NO_ZEROS",
    "COUNT_NO_ZEROS",
];

async fn metrics_agree(name: &str, aggregate: &str) {
    let chain = Chain::start(name, aggregate).await;
    let points = |answer: &Value| answer["telemetry"]["points"].as_array().unwrap().len();
    let host = json!({ "conditions": [
        { "key": "name", "value": "cpu.usage_percent" },
        { "key": "host", "value": { "value": ["web-1", "web-2"], "_type": "InSetValue" } },
    ] });
    for more in [
        json!({}),
        host,
        json!({ "limit": 7 }),
        json!({ "metricField": "value" }),
    ] {
        for (back, until) in [(HOUR, 0), (HOUR, HOUR / 2), (2 * HOUR + 7, 1), (0, 0)] {
            let query = chain.metric(back, until, &more);
            let answer = chain.agree("/api/metric", query).await;
            assert_eq!(points(&answer) > 0, back > until, "{answer}");
        }
    }
    for method in METHODS {
        for size in [60_000, 7_001, HOUR] {
            let more = json!({ "aggregation": { "method": method, "bucketSizeMillis": size } });
            for (back, until) in [(HOUR, 0), (5 * HOUR + 11, HOUR)] {
                let query = chain.metric(back, until, &more);
                let answer = chain.agree("/api/metric", query).await;
                assert!(points(&answer) > 0, "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn a_chain_answers_buckets_of_raw_points_as_a_single_heliostat() {
    metrics_agree("chain-local", "local").await;
}

#[tokio::test]
async fn a_chain_answers_buckets_as_a_single_heliostat() {
    metrics_agree("chain-upstream", "upstream").await;
}

#[tokio::test]
async fn a_chain_answers_names_and_values_as_a_single_heliostat() {
    let chain = Chain::start("chain-names", "auto").await;
    let ask = |query: Value| json!({ "connectionDetails": {}, "query": query });
    for query in [
        json!({}),
        json!({ "limit": 2 }),
        json!({ "latestFirst": true }),
        json!({ "limit": 2147483647 }),
    ] {
        let answer = chain.agree("/api/field/name", ask(query)).await;
        assert!(!answer["fields"].as_array().unwrap().is_empty());
    }
    for name in ["name", "host", "port"] {
        let kind = if name == "port" { "NUMBER" } else { "STRING" };
        let field = json!({ "fieldName": name, "fieldType": kind });
        for more in [
            json!({}),
            json!({ "limit": 3 }),
            json!({ "limit": 3, "offset": 2 }),
            json!({ "fieldValuePrefix": "c" }),
            json!({ "fieldValuePrefix": "c", "limit": 1 }),
            json!({ "latestFirst": true }),
            json!({ "startTime": chain.now - HOUR, "endTime": chain.now }),
        ] {
            let mut query = json!({ "field": field });
            query
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let answer = chain.agree("/api/field/value", ask(query)).await;
            assert!(answer["values"].is_array());
        }
    }
    let answer = chain
        .agree("/api/connection", json!({ "connectionDetails": {} }))
        .await;
    assert_eq!(answer["status"], "OK");
}

#[tokio::test]
async fn a_chain_answers_errors_as_a_single_heliostat() {
    let chain = Chain::start("chain-errors", "auto").await;
    let unknown = json!({ "conditions": [{ "key": "name", "value": "no.such.metric" }] });
    let answer = chain
        .agree("/api/metric", chain.metric(HOUR, 0, &unknown))
        .await;
    assert_eq!(answer["_type"], "MetricNotFoundError");
    assert_eq!(answer["metric"], "no.such.metric");
    let field = json!({ "metricField": "no.such.field" });
    let answer = chain
        .agree("/api/metric", chain.metric(HOUR, 0, &field))
        .await;
    assert_eq!(answer["_type"], "RemoteMirrorError");
    let none = json!({ "fieldName": "no.such.field", "fieldType": "STRING" });
    let query = json!({ "connectionDetails": {}, "query": { "field": none } });
    chain.agree("/api/field/value", query).await;
    let fine = json!({ "aggregation": { "method": "MEAN", "bucketSizeMillis": 1 } });
    let answer = chain
        .agree("/api/metric", chain.metric(HOUR, 0, &fine))
        .await;
    assert!(
        answer["details"]
            .as_str()
            .unwrap()
            .contains("bucketSizeMillis")
    );
    for body in [json!([]), json!({}), json!({ "connectionDetails": {} })] {
        chain.agree("/api/metric", body).await;
    }
    chain.agree("/api/nothing", json!({})).await;
}
