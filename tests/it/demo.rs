//! The built-in configuration, as a new user meets it.

use serde_json::json;

use crate::support::{Server, TestClock};

const NOW: i64 = 1_795_000_000_000;

#[tokio::test]
async fn the_first_poll_is_fetched_and_the_second_is_not() {
    let clock = TestClock::at(NOW);
    let toml = "[[upstream]]\nname = \"demo-first\"\nkind = \"demo\"\ndemo = { latency = \"1ms\" }";
    let server = Server::start_at(toml, clock.clone()).await;
    let query = json!({
        "connectionDetails": {},
        "query": {
            "conditions": [
                { "key": "name", "value": { "value": "cpu.usage_percent", "_type": "StringValue" }, "_type": "EqualityCondition" },
                { "key": "host", "value": { "value": "web-1", "_type": "StringValue" }, "_type": "EqualityCondition" }
            ],
            "startTime": NOW - 3_600_000,
            "endTime": NOW,
            "aggregation": { "method": "MEAN", "bucketSizeMillis": 60_000, "_type": "Aggregation" }
        }
    });
    let first = server.post("/api/metric", &query).await;
    assert_eq!(first.header("cache-status"), "heliostat; fwd=miss; stored");
    assert_eq!(first.header("x-mirror-api-key"), "api_key");
    let second = server.post("/api/metric", &query).await;
    assert_eq!(second.header("cache-status"), "heliostat; hit; ttl=10");
    assert_eq!(first.points(), second.points());
    let calls = "heliostat_upstream_requests_total{upstream=\"demo-first\",outcome=\"ok\"}";
    assert_eq!(server.metric(calls).await, 1.0);
    clock.pass(10_000);
    let third = server.post("/api/metric", &query).await;
    assert_eq!(third.header("cache-status"), "heliostat; fwd=stale; stored");
    assert_eq!(server.metric(calls).await, 2.0);
}
