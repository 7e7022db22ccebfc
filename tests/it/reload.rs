//! Reloads of the configuration while the service runs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use heliostat::app::{ConfigSource, Service};
use heliostat::config;
use serde_json::{Value, json};

use crate::pki::Authority;
use crate::scripted::{Answer, Scripted};
use crate::support::{ADMIN, ADMIN_TOKEN, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;

/// A mirror that answers each query with its own range; gated answers come when the gate opens.
async fn mirror(gate: bool) -> Scripted {
    Scripted::start(TestClock::at(NOW), move |_, seen| {
        let asked = seen.json();
        let start = asked["query"]["startTime"].clone();
        let telemetry = json!({
            "points": [[1.5, start]],
            "dataFormat": ["value", "timestamp"],
            "isPartial": false,
            "_type": "RawMetricTelemetry",
        });
        Answer {
            gate,
            ..Answer::json(json!({ "telemetry": telemetry, "_type": "MetricsResponse" }))
        }
    })
    .await
}

fn upstream(name: &str, url: &str, more: &str) -> String {
    format!("[[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = [{url:?}]\n{more}\n")
}

/// A query for settled data.
fn query(upstream: &str, hour: i64) -> Value {
    let start = NOW - (hour + 2) * 3_600_000;
    json!({
        "connectionDetails": { "upstream": upstream },
        "query": {
            "conditions": [{ "key": "name", "value": "a" }],
            "startTime": start,
            "endTime": start + 600_000,
        },
    })
}

async fn cache_status(server: &Server, upstream: &str, hour: i64) -> String {
    let answer = server.post("/api/metric", &query(upstream, hour)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let said = answer.header("cache-status").to_owned();
    said.split("; ttl").next().unwrap().to_owned()
}

const HIT: &str = "heliostat; hit";
const MISS: &str = "heliostat; fwd=miss; stored";

#[tokio::test]
async fn what_did_not_change_stays_cached_and_the_rest_is_as_described() {
    let source = mirror(false).await;
    let all = |names: &[(&str, &str)]| -> String {
        let one = |(name, more): &(&str, &str)| upstream(name, &source.url, more);
        names.iter().map(one).collect()
    };
    let first = all(&[("same", ""), ("tuned", ""), ("other", ""), ("gone", "")]);
    let server = Server::start_at(&first, TestClock::at(NOW)).await;
    for name in ["same", "tuned", "other", "gone"] {
        assert_eq!(cache_status(&server, name, 0).await, MISS);
    }
    let second = all(&[
        ("same", ""),
        (
            "tuned",
            "refresh = \"33s\"\nrate_limit = { per_second = 7 }",
        ),
        ("other", "interval = \"30s\""),
        ("new", ""),
    ]);
    let applied = server.reload(&second).await.unwrap();
    assert_eq!(applied.kept, ["same"]);
    assert_eq!(applied.changed, ["tuned", "other"]);
    assert_eq!(applied.added, ["new"]);
    assert_eq!(applied.removed, ["gone"]);
    assert!(applied.restart.is_empty());
    assert_eq!(cache_status(&server, "same", 0).await, HIT);
    assert_eq!(
        cache_status(&server, "tuned", 0).await,
        HIT,
        "its data is the same"
    );
    assert_eq!(
        cache_status(&server, "other", 0).await,
        MISS,
        "its data may not be"
    );
    assert_eq!(cache_status(&server, "new", 0).await, MISS);
    let gone = server.post("/api/metric", &query("gone", 0)).await;
    assert_eq!(gone.status, 403);
    assert_eq!(source.seen().len(), 6);
    // An upstream that comes back is a new one.
    server.reload(&first).await.unwrap();
    assert_eq!(cache_status(&server, "gone", 0).await, MISS);
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing() {
    let source = mirror(false).await;
    let good = upstream("steady", &source.url, "");
    let server = Server::start_at(&good, TestClock::at(NOW)).await;
    assert_eq!(cache_status(&server, "steady", 0).await, MISS);
    let bad = good.replace("steady", "shaken") + "refesh = \"5s\"";
    let said = server.reload(&bad).await.unwrap_err();
    assert!(said.contains("test.toml:6:1: upstream[0].refesh"), "{said}");
    assert_eq!(cache_status(&server, "steady", 0).await, HIT);
    // A configuration that is valid but cannot be applied.
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("key");
    std::fs::write(&secret, "a\u{7f}b").unwrap();
    let bad = format!("[server]\napi_key = {{ file = {secret:?} }}\n{good}");
    server.reload(&bad).await.unwrap_err();
    assert_eq!(cache_status(&server, "steady", 0).await, HIT);
}

#[tokio::test]
async fn requests_in_flight_finish_under_the_configuration_they_came_with() {
    let (slow, other) = (mirror(true).await, mirror(false).await);
    let old = "[server]\napi_key = \"old\"\n".to_owned() + &upstream("slow", &slow.url, "");
    let server = Server::start_at(&old, TestClock::at(NOW)).await;
    let body = query("slow", 0);
    let first = server.post("/api/metric", &body);
    let rest = async {
        slow.asked(1).await;
        let new = "[server]\napi_key = \"new\"\n".to_owned() + &upstream("fast", &other.url, "");
        server.reload(&new).await.unwrap();
        let answer = server.post("/api/metric", &query("fast", 0)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-mirror-api-key"), "new");
        slow.open();
    };
    let (answer, ()) = tokio::join!(first, rest);
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("x-mirror-api-key"), "old");
    assert_eq!(answer.points().len(), 1);
}

#[tokio::test]
async fn a_fetch_under_way_is_shared_across_a_reload_and_kept() {
    let slow = mirror(true).await;
    let toml = upstream("shared", &slow.url, "");
    let server = Server::start_at(&toml, TestClock::at(NOW)).await;
    let body = query("shared", 0);
    let first = server.post("/api/metric", &body);
    let rest = async {
        slow.asked(1).await;
        server
            .reload(&(toml.clone() + "refresh = \"44s\""))
            .await
            .unwrap();
        let second = server.post("/api/metric", &body);
        let open = async { slow.open() };
        let (second, ()) = tokio::join!(second, open);
        assert_eq!(second.status, 200, "{}", second.text);
    };
    let (first, ()) = tokio::join!(first, rest);
    assert_eq!(first.status, 200);
    assert_eq!(cache_status(&server, "shared", 0).await, HIT);
    assert_eq!(slow.seen().len(), 1);
    let in_flight = "heliostat_upstream_in_flight{upstream=\"shared\"}";
    assert_eq!(server.metric(in_flight).await, 0.0);
}

#[tokio::test]
async fn budgets_count_on_and_breakers_stay_open() {
    let source = mirror(false).await;
    let budget = |more: &str| {
        let rate = "rate_limit = { per_second = 50, burst = 50, per_hour = 3 }\n".to_owned();
        upstream("counted", &source.url, &(rate + more))
    };
    let server = Server::start_at(&budget(""), TestClock::at(NOW)).await;
    for hour in 0..2 {
        assert_eq!(cache_status(&server, "counted", hour).await, MISS);
    }
    server.reload(&budget("refresh = \"55s\"")).await.unwrap();
    assert_eq!(cache_status(&server, "counted", 2).await, MISS);
    let spent = server.post("/api/metric", &query("counted", 3)).await;
    assert_eq!(spent.status, 429, "{}", spent.text);

    let dead = "http://127.0.0.1:9";
    let fragile = "retries = 0\nbreaker = { failures = 1, open = \"1h\" }";
    let toml = upstream("dead", dead, fragile);
    let server = Server::start_at(&toml, TestClock::at(NOW)).await;
    server.post("/api/metric", &query("dead", 0)).await;
    server
        .reload(&(toml + &upstream("more", dead, "")))
        .await
        .unwrap();
    let shut = server.post("/api/metric", &query("dead", 0)).await;
    assert!(
        shut.text.contains("circuit breaker is open"),
        "{}",
        shut.text
    );
}

#[tokio::test]
async fn settings_of_the_server_change_and_what_cannot_is_named() {
    let source = mirror(false).await;
    let toml = upstream("plain", &source.url, "");
    let server = Server::start_at(&toml, TestClock::at(NOW)).await;
    let changed = format!(
        "[server]\nmax_body = \"1KiB\"\n[cache]\nmemory = \"1MiB\"\n[log]\nformat = \"json\"\n{toml}"
    );
    let applied = server.reload(&changed).await.unwrap();
    assert_eq!(applied.restart, ["cache.memory", "log.format"]);
    let mut large = query("plain", 0);
    large["padding"] = "x".repeat(2000).into();
    let refused = server.post("/api/metric", &large).await;
    assert_eq!(refused.status, 413);
    let applied = server.reload(&changed).await.unwrap();
    assert_eq!(applied.restart, ["cache.memory", "log.format"], "still");
    let applied = server.reload(&toml).await.unwrap();
    assert!(applied.restart.is_empty());
}

#[tokio::test]
async fn tls_can_be_switched_on() {
    let ours = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = ours.sign_to(folder.path(), "server");
    let server = Server::start_with("", TestClock::at(NOW), BTreeMap::new()).await;
    assert_eq!(server.get("/healthz").await.status, 200);
    let toml = format!("[server.tls]\ncert = {cert:?}\nkey = {key:?}\n");
    server.reload(&toml).await.unwrap();
    let url = server.url.replace("http://", "https://") + "/healthz";
    let client = ours.client().build().unwrap();
    assert_eq!(client.get(url).send().await.unwrap().status(), 200);
    // Existing connections keep their settings.
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn requests_in_flight_still_have_their_demonstration() {
    let demo = |latency: &str| {
        let demo = format!("demo = {{ latency = {latency:?} }}\nmax_concurrency = 1\nretries = 0");
        format!("{ADMIN}[[upstream]]\nname = \"shown\"\nkind = \"demo\"\n{demo}\n")
    };
    let server = Server::start_at(&demo("200ms"), TestClock::at(NOW)).await;
    let [first, second] = [0, 1].map(|hour| {
        let mut query = query("shown", hour);
        query["query"]["conditions"] = json!([{ "key": "name", "value": "cpu.usage_percent" }]);
        query
    });
    let reloaded = async {
        loop {
            let state = server
                .client()
                .get(server.url.clone() + "/admin/v1/upstreams");
            let state = server.reply(state.bearer_auth(ADMIN_TOKEN)).await.json();
            let limiter = &state["upstreams"][0]["state"]["limiter"];
            if (&limiter["running"], &limiter["waiting"]) == (&json!(1), &json!(1)) {
                break;
            }
        }
        server.reload(&demo("201ms")).await.unwrap()
    };
    let (first, second, applied) = tokio::join!(
        server.post("/api/metric", &first),
        server.post("/api/metric", &second),
        reloaded,
    );
    assert_eq!(applied.changed, ["shown"]);
    assert_eq!(first.status, 200, "{}", first.text);
    assert_eq!(second.status, 200, "{}", second.text);
}

#[tokio::test]
async fn an_empty_file_is_not_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let listen = "[server]\nlisten = \"127.0.0.1:0\"\n";
    std::fs::write(&path, listen).unwrap();
    let read = |path: &std::path::Path| config::load(Some(path), &BTreeMap::new());
    let first = read(&path).unwrap();
    let service = Service::bind(&first, TestClock::at(NOW));
    let file = path.clone();
    let reloads = service.await.unwrap().follow(ConfigSource {
        load: Box::new(move || read(&file)),
        file: Some(path.clone()),
    });
    for nothing in ["", "\n  \n"] {
        std::fs::write(&path, nothing).unwrap();
        let said = reloads.ask().await.unwrap().unwrap_err();
        assert!(said.contains("c.toml: is empty"), "{said}");
    }
    std::fs::write(&path, "# all as it is by default\n").unwrap();
    assert!(reloads.ask().await.unwrap().is_ok());
}

#[tokio::test]
async fn files_that_are_used_no_more_are_no_longer_wrong() {
    let source = mirror(false).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("token");
    std::fs::write(&secret, "t").unwrap();
    let clock = TestClock::at(NOW);
    let keyed = format!("headers = {{ X-Token = {{ file = {secret:?} }} }}");
    let keyed = upstream("keyed", &source.url, &keyed);
    let server = Server::start_at(&keyed, clock.clone()).await;
    std::fs::remove_file(&secret).unwrap();
    clock.pass(5_000);
    assert_eq!(cache_status(&server, "keyed", 0).await, MISS);
    let wrong = "heliostat_file_errors{what=\"upstream keyed headers\"}";
    assert_eq!(server.metric(wrong).await, 1.0);
    let plain = upstream("keyed", &source.url, "headers = { X-Token = \"t\" }");
    server.reload(&plain).await.unwrap();
    assert_eq!(server.metric(wrong).await, 0.0);
}

/// The program itself, in a folder with a `config.toml`.
#[test]
fn a_file_that_is_gone_is_not_the_built_in_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, "[server]\nlisten = \"127.0.0.1:0\"\n").unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .current_dir(&folder)
        .stderr(Stdio::piped())
        .spawn();
    let mut program = program.unwrap();
    let log = BufReader::new(program.stderr.take().unwrap());
    let mut lines = log.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("listening on")));
    std::fs::remove_file(&path).unwrap();
    let mut hangup = Command::new("kill");
    hangup.args(["-HUP", &program.id().to_string()]);
    assert!(hangup.status().unwrap().success());
    let said = lines.find(|line| line.contains("configuration"));
    program.kill().unwrap();
    program.wait().unwrap();
    let said = said.unwrap();
    assert!(said.contains("config.toml: cannot be read"), "{said}");
}
