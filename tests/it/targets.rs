//! Targets that clients choose: addresses are checked when they are connected to, and only the
//! address from connection details gets into a request.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::scripted::{Answer, Scripted};
use crate::support::{Reply, Server, TestClock};

const NOW: i64 = 1_790_000_000_000;

async fn heliostat(targets: &str) -> Server {
    Server::start_at(&format!("[targets]\n{targets}"), TestClock::at(NOW)).await
}

/// A Prometheus without data.
async fn prometheus() -> Scripted {
    Scripted::start(TestClock::at(NOW), |_, _| {
        let data = json!({ "resultType": "matrix", "result": [] });
        Answer::json(json!({ "status": "success", "data": data }))
    })
    .await
}

async fn ask(server: &Server, details: &Value) -> Reply {
    let query = json!({
        "connectionDetails": details,
        "query": {
            "_type": "MetricsQuery", "startTime": NOW - 60_000, "endTime": NOW,
            "conditions": [{
                "_type": "EqualityCondition", "key": "__gauge__",
                "value": { "_type": "StringValue", "value": "cpu" },
            }],
        },
    });
    server.post("/api/metric", &query).await
}

fn assert_refused(reply: &Reply, what: &str) {
    assert_eq!(reply.status, 403, "{what}: {}", reply.text);
    assert!(
        reply.text.contains("`networks` in the section [targets]"),
        "{}",
        reply.text
    );
}

#[tokio::test]
async fn a_name_is_checked_by_what_it_resolves_to() {
    let upstream = prometheus().await;
    let details = json!({ "host": "localhost", "port": upstream.port });
    let server = heliostat("allow = [\"localhost:*\"]").await;
    let reply = ask(&server, &details).await;
    assert_refused(&reply, "localhost");
    assert!(reply.text.contains("loopback") && !reply.text.contains("127.0.0.1"));
    assert_eq!(upstream.seen().len(), 0);
    let server =
        heliostat("allow = [\"localhost:*\"]\nnetworks = [\"127.0.0.0/8\", \"::1\"]").await;
    let reply = ask(&server, &details).await;
    assert!(!upstream.seen().is_empty(), "{}", reply.text);
}

#[tokio::test]
async fn an_address_is_refused_in_every_spelling_unless_it_is_named() {
    let upstream = prometheus().await;
    let port = upstream.port;
    let server = heliostat("allow = [\"*:*\"]").await;
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "localhost",
    ] {
        let details = json!({ "url": format!("http://{host}:{port}") });
        assert_refused(&ask(&server, &details).await, host);
    }
    assert_eq!(upstream.seen().len(), 0);
    let details = json!({ "url": upstream.url });
    for (allow, reached) in [("127.0.0.*:*", false), ("127.0.0.1:*", true)] {
        let server = heliostat(&format!("allow = [{allow:?}]")).await;
        let reply = ask(&server, &details).await;
        assert_eq!(!upstream.seen().is_empty(), reached, "{}", reply.text);
    }
}

#[tokio::test]
async fn a_redirect_leads_nowhere_else() {
    let inside = Arc::new(prometheus().await);
    for to in [
        inside.url.clone(),
        "http://192.0.2.1/latest".to_owned(),
        "//192.0.2.1/latest".to_owned(),
    ] {
        let location = to.clone();
        let upstream = Scripted::start(TestClock::at(NOW), move |_, _| Answer {
            status: 307,
            headers: [("location".to_owned(), location.clone())].into(),
            ..Answer::default()
        })
        .await;
        let server = heliostat(&format!("allow = [\"127.0.0.1:{}\"]", upstream.port)).await;
        let reply = ask(&server, &json!({ "url": upstream.url })).await;
        assert_eq!(reply.status, 502, "{}", reply.text);
        assert!(reply.text.contains("not followed"), "{}", reply.text);
    }
    assert_eq!(inside.seen().len(), 0);
}

#[tokio::test]
async fn connection_details_get_into_no_request() {
    let upstream = prometheus().await;
    let server = heliostat("allow = [\"127.0.0.1:*\"]").await;
    let plain = json!({ "url": upstream.url });
    ask(&server, &plain).await;
    let more = json!({
        "url": upstream.url, "headers": { "X-Smuggled": "1" }, "Authorization": "smuggled",
        "path": "/smuggled", "method": "DELETE", "query": "smuggled", "timeout_header": "smuggled",
    });
    let server = heliostat("allow = [\"127.0.0.1:*\"]").await;
    // Unknown keys are refused, and none of them is sent.
    assert_eq!(ask(&server, &more).await.status, 400);
    assert_eq!(upstream.seen().len(), 1);

    let port = upstream.port;
    for host in [
        "127.0.0.1/x",
        "127.0.0.1:1@evil",
        "evil@127.0.0.1",
        "127.0.0.1 HTTP/1.1\r\nX-Smuggled: 1\r\n",
        "127.0.0.1?x",
        "127.0.0.1#x",
        "127.0.0.1\\x",
        "127.0.0.1%0d%0aX: 1",
    ] {
        let reply = ask(&server, &json!({ "host": host, "port": port })).await;
        let refused = matches!(reply.status, 400 | 403);
        assert!(
            refused || !reply.text.contains("mugg"),
            "{host}: {}",
            reply.text
        );
    }
    // A target's path is part of its address and cannot contain line breaks.
    let url = format!("{}/a%0d%0ab\r\nX-Smuggled: 1", upstream.url);
    ask(&server, &json!({ "url": url })).await;
    for seen in upstream.seen() {
        assert!(!seen.headers.contains_key("x-smuggled"), "{seen:?}");
        assert!(!seen.headers.contains_key("x"), "{seen:?}");
    }
}

#[tokio::test]
async fn breakers_of_targets_are_counted_together_and_are_gone_with_their_pattern() {
    let upstream = prometheus().await;
    let dead = "http://127.0.0.1:9";
    // This pattern is in no other test: the servers of a process share their metrics.
    let targets = "[targets]\nallow = [\"127.0.0.*:*\"]\nnetworks = [\"127.0.0.1\"]\n";
    let server = Server::start_at(targets, TestClock::at(NOW)).await;
    for n in 0..6 {
        let url = format!("{dead}/path{}", n % 2);
        assert_eq!(ask(&server, &json!({ "url": url })).await.status, 502);
    }
    assert_eq!(
        ask(&server, &json!({ "url": upstream.url })).await.status,
        200
    );
    let open = "heliostat_breaker_open{upstream=\"127.0.0.*:*\"}";
    assert_eq!(server.metric(open).await, 2.0);
    server.reload("").await.unwrap();
    let shown = server.get("/metrics").await.text;
    assert!(!shown.contains("127.0.0.*"), "{shown}");
    server.reload(targets).await.unwrap();
    ask(&server, &json!({ "url": upstream.url })).await;
    assert!(
        server
            .get("/metrics")
            .await
            .text
            .contains(&format!("{open} 0"))
    );
}

#[tokio::test]
async fn targets_follow_the_limits_of_a_reload_and_keep_their_data() {
    let upstream = prometheus().await;
    let toml = |per_hour: u32| {
        format!(
            "[targets]\nallow = [\"127.0.0.1:*\"]\n[[upstream]]\nname = \"host\"\nkind = \"prometheus\"\n\
             urls = [{:?}]\nrate_limit = {{ per_second = 1000, per_hour = {per_hour} }}\n",
            upstream.url
        )
    };
    let server = Server::start_at(&toml(2), TestClock::at(NOW)).await;
    let path = |n: u32| json!({ "url": format!("{}/path{n}", upstream.url) });
    for (n, expected) in [(0, 200), (1, 200), (2, 429)] {
        assert_eq!(ask(&server, &path(n)).await.status, expected, "{n}");
    }
    server.reload(&toml(3)).await.unwrap();
    for (n, expected) in [(0, 200), (2, 200), (3, 429)] {
        assert_eq!(ask(&server, &path(n)).await.status, expected, "{n}");
    }
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn paths_on_one_host_share_its_limits() {
    let upstream = prometheus().await;
    let toml = format!(
        "[targets]\nallow = [\"127.0.0.1:*\"]\n[[upstream]]\nname = \"limited\"\nkind = \"prometheus\"\n\
         urls = [{:?}]\nrate_limit = {{ per_second = 1000, per_hour = 5 }}\n",
        upstream.url
    );
    let server = Server::start_at(&toml, TestClock::at(NOW)).await;
    for n in 0..10 {
        let details = json!({ "url": format!("{}/path{n}", upstream.url) });
        let reply = ask(&server, &details).await;
        let expected = if n < 5 { 200 } else { 429 };
        assert_eq!(reply.status, expected, "{n}: {}", reply.text);
    }
    assert_eq!(upstream.seen().len(), 5);
}
