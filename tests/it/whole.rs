//! Answers that are cached as a whole: lists of names and values, and responses of Prometheus' API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::scripted::{Answer, Scripted};
use crate::support::{Server, TestClock};

const NOW: i64 = 1_700_000_000_000;

fn field() -> Value {
    json!({ "fieldName": "host", "fieldType": "STRING", "classified": false, "_type": "FieldDescriptor" })
}

#[tokio::test]
async fn expired_answers_of_every_kind_are_counted() {
    let clock = TestClock::at(NOW);
    let failing = Arc::new(AtomicBool::new(false));
    let down = failing.clone();
    let upstream = Scripted::start(clock.clone(), move |_, seen| {
        if down.load(Ordering::SeqCst) {
            return Answer {
                status: 500,
                ..Answer::json(json!({ "_type": "MetricStoreConnectionError", "details": "down" }))
            };
        }
        Answer::json(match seen.path.as_str() {
            "/api/field/name" => json!({ "fields": [field()], "isPartial": false }),
            "/api/field/value" => json!({ "values": [], "isPartial": false }),
            "/api/metric" => json!({ "telemetry": {
                "points": [[1.0, NOW - 60_000]],
                "dataFormat": ["value", "timestamp"],
                "isPartial": false,
                "_type": "RawMetricTelemetry",
            }}),
            _ => json!({ "status": "success", "data": [] }),
        })
    })
    .await;
    let toml = format!(
        "[[upstream]]\nname = \"whole-stale\"\nkind = \"mirror\"\nurls = [{0:?}]\nretries = 0\n\
         breaker = {{ failures = 1000, open = \"10s\" }}\n\
         [[upstream]]\nname = \"whole-stale-face\"\nkind = \"prometheus\"\nurls = [{0:?}]\nretries = 0\n\
         breaker = {{ failures = 1000, open = \"10s\" }}\n",
        upstream.url
    );
    let server = Server::start_at(&toml, clock.clone()).await;
    let details = json!({ "upstream": "whole-stale" });
    let names = json!({ "connectionDetails": details, "query": {} });
    let values = json!({ "connectionDetails": details, "query": { "field": field() } });
    let points = json!({ "connectionDetails": details, "query": {
        "startTime": NOW - 120_000,
        "endTime": NOW,
        "conditions": [],
    }});
    let requests = [
        ("/api/field/name", names),
        ("/api/field/value", values),
        ("/api/metric", points),
    ];
    let instant = "/prometheus/whole-stale-face/api/v1/query?query=up&time=1699999990";
    for (path, body) in &requests {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
    assert_eq!(server.get(instant).await.status, 200);
    failing.store(true, Ordering::SeqCst);
    clock.pass(90_000);
    let counted = async |name: &str| {
        let series = format!("heliostat_stale_answers_total{{upstream=\"{name}\"}}");
        server.metric(&series).await
    };
    for (n, (path, body)) in (1..).zip(&requests) {
        let answer = server.post(path, body).await;
        let status = answer.header("cache-status");
        assert!(status.contains("ttl=-"), "{path}: {} {status}", answer.text);
        assert_eq!(counted("whole-stale").await, f64::from(n), "{path}");
    }
    let answer = server.get(instant).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(counted("whole-stale-face").await, 1.0);
}

#[tokio::test]
async fn another_tenant_in_a_secrets_file_is_another_identity() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tenant");
    std::fs::write(&file, "one").unwrap();
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| {
        let tenant = seen.headers.get("x-scope-orgid").cloned();
        Answer::json(json!({ "status": "success", "data": [tenant] }))
    })
    .await;
    let toml = format!(
        "[[upstream]]\nname = \"tenants\"\nkind = \"prometheus\"\ndefault = true\nurls = [{:?}]\n\
         headers = {{ X-Scope-OrgID = {{ file = {file:?} }} }}\n",
        upstream.url
    );
    let server = Server::start_at(&toml, clock.clone()).await;
    let labels = async || server.get("/api/v1/labels").await.json()["data"][0].clone();
    assert_eq!(labels().await, "one");
    assert_eq!(labels().await, "one");
    assert_eq!(upstream.seen().len(), 1);
    std::fs::write(&file, "two").unwrap();
    clock.pass(6000);
    assert_eq!(labels().await, "two", "not the former tenant's answer");
    std::fs::write(&file, "one").unwrap();
    clock.pass(6000);
    assert_eq!(labels().await, "one");
    assert_eq!(upstream.seen().len(), 2, "each tenant keeps its own");
}
