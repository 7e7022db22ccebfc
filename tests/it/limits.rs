//! Requests beyond the limits of admission.

use std::time::Duration;

use serde_json::json;

use crate::scripted::{Answer, Fault, Scripted};
use crate::second_level::Process;
use crate::support::{Server, TestClock, metric};

#[tokio::test]
async fn beyond_max_in_flight_requests_are_refused_at_once() {
    let clock = TestClock::at(1_200_000_000);
    let upstream = Scripted::start(clock.clone(), |_, _| Answer {
        gate: true,
        ..Answer::json(json!({ "status": "OK" }))
    })
    .await;
    let toml = format!(
        "[server]\nmax_in_flight = 1\n[[upstream]]\nname = \"limits\"\nkind = \"mirror\"\nurls = [{:?}]",
        upstream.url
    );
    let server = Server::start_at(&toml, clock).await;
    let body = json!({ "connectionDetails": {} });
    let first = server.post("/api/connection", &body);
    let second = async {
        while upstream.seen().is_empty() {
            tokio::task::yield_now().await;
        }
        let refused = server.post("/api/connection", &body).await;
        let alive = server.get("/healthz").await;
        upstream.open();
        (refused, alive)
    };
    let (first, (refused, alive)) = tokio::join!(first, second);
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"));
    assert_eq!(refused.json()["summary"], "Heliostat is at capacity");
    assert_eq!(alive.status, 200);
    assert_eq!(first.json()["status"], "OK");
    upstream.open();
    let after = server.post("/api/connection", &body).await;
    assert_eq!(after.json()["status"], "OK", "the place is free again");
}

#[tokio::test]
async fn it_serves_by_the_system_clock_too() {
    let toml =
        "[[upstream]]\nname = \"limits-demo\"\nkind = \"demo\"\ndemo = { latency = \"1ms\" }";
    let server = Server::start(toml).await;
    let body = json!({ "connectionDetails": {} });
    let answer = server.post("/api/connection", &body).await;
    assert_eq!(answer.json()["status"], "OK");
    assert_eq!(server.get("/readyz").await.text, "ready\n");
}

#[tokio::test]
async fn targets_may_hold_what_prometheus_reads() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let toml = "[[upstream]]\nname = \"raw\"\nkind = \"demo\"\ndemo = { latency = \"1ms\" }";
    let server = Server::start(toml).await;
    let address = server.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /healthz?query=up{job=\"<ä>\"} HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = request.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    stream
        .write_all(format!("{request}{last}").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
}

#[tokio::test]
async fn long_targets_are_read_as_prometheus_reads_them() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let upstream = Scripted::start(TestClock::at(1_200_000_000), |_, _| {
        Answer::json(
            json!({ "status": "success", "data": { "resultType": "vector", "result": [] } }),
        )
    })
    .await;
    let toml = format!(
        "[[upstream]]\nname = \"long\"\nkind = \"prometheus\"\nurls = [{:?}]",
        upstream.url
    );
    let server = Server::start(&toml).await;
    let address = server.url.trim_start_matches("http://");
    for length in [1_000, 70_000, 900_000] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /api/v1/query?query=up{{a=\"{}\"}}&time=1100000 HTTP/1.1\r\nhost: x\r\n",
            "x".repeat(length)
        );
        // Twice on one connection: the second one is a hit.
        stream
            .write_all(format!("{request}\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200", "{length}");
        let last = format!("{request}connection: close\r\n\r\n");
        stream.write_all(last.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(
            answer.matches("HTTP/1.1 200 OK").count(),
            1,
            "{length}: {answer}"
        );
    }
    let seen = upstream.seen();
    assert!(!seen.is_empty());
}

#[tokio::test]
async fn a_deadline_counts_from_the_arrival_of_the_head() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let clock = TestClock::at(1_200_000_000);
    let upstream = Scripted::start(clock.clone(), |_, _| Answer {
        fault: Fault::Hang,
        ..Answer::json(json!({}))
    })
    .await;
    let more = format!(
        "urls = [{:?}]\ntimeout = \"60s\"\nretries = 0",
        upstream.url
    );
    let toml = format!(
        "[[upstream]]\nname = \"late\"\nkind = \"mirror\"\n{more}\n\
         [[upstream]]\nname = \"late-prom\"\nkind = \"prometheus\"\n{more}"
    );
    let server = Server::start_at(&toml, clock).await;
    let address = server.url.trim_start_matches("http://");
    let details = r#"{"connectionDetails":{}}"#;
    let form = "query=up&time=1200000";
    for (path, kind, body) in [
        ("/api/connection", "application/json", details),
        (
            "/prometheus/late-prom/api/v1/query",
            "application/x-www-form-urlencoded",
            form,
        ),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // From here on time passes as fast as everything waits for it.
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(4)).await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let took = begun.elapsed();
        tokio::time::resume();
        let late = answer.contains("deadline") || answer.contains("did not answer");
        assert!(late, "{path}: {answer}");
        // 14 s of server.request_timeout, and not four more.
        assert!(
            took > Duration::from_secs(13) && took < Duration::from_secs(16),
            "{path}: {took:.1?}"
        );
    }
}

#[tokio::test]
async fn a_request_that_gives_way_is_counted_once() {
    let clock = TestClock::at(1_200_000_000);
    let upstream = Scripted::start(clock, |_, _| Answer {
        fault: Fault::Hang,
        ..Answer::json(json!({}))
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    // Of a process of its own: all servers of this one share their metrics.
    let server = Process::start(
        folder.path(),
        &format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nmax_in_flight = 2\nerror_status = \"always_500\"\n\
             [[upstream]]\nname = \"full\"\nkind = \"mirror\"\nurls = [{:?}]\n",
            upstream.url
        ),
    );
    let ask = |last: u8| {
        let client = heliostat::upstream::Http::builder();
        let address = std::net::IpAddr::from([127, 0, 0, last]);
        let client = client.local_address(address).build().unwrap();
        let request = client.post(format!("{}/api/connection", server.url));
        let request = request.header("content-type", "application/json");
        let request = request.body(r#"{"connectionDetails":{}}"#);
        async move { request.send().await.unwrap() }
    };
    let metrics = async || {
        let answer = server.client.get(format!("{}/metrics", server.url)).send();
        answer.await.unwrap().text().await.unwrap()
    };
    let greedy = [tokio::spawn(ask(2)), tokio::spawn(ask(2))];
    while metric(&metrics().await, "heliostat_in_flight_requests") < 2.0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let modest = tokio::spawn(ask(3));
    let (gone, _) = futures_util::future::select_ok(greedy).await.unwrap();
    let status = gone.status().as_u16();
    let said = gone.text().await.unwrap();
    assert_eq!(status, 500, "{said}");
    assert!(said.contains("gave way"), "{said}");
    let counted = "heliostat_gave_way_total{what=\"request\"}";
    assert_eq!(metric(&metrics().await, counted), 1.0);
    modest.abort();
}
