//! Requests beyond the limits of admission.

use serde_json::json;

use crate::scripted::{Answer, Scripted};
use crate::support::{Server, TestClock};

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
