//! The end of the process: what clients and load balancers see after SIGTERM; and a log that nobody reads.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use heliostat::clock::SystemClock;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::prometheus::free_port;
use crate::scripted::{Answer, Fault, Scripted};
use crate::second_level::Process;
use crate::support::{metric, signal};

/// Fails a test that waits for something that never comes.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(120);
    tokio::time::timeout(limit, what).await.expect("it is time")
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

async fn ended(process: &mut Child) -> ExitStatus {
    soon(async {
        loop {
            if let Some(status) = process.try_wait().unwrap() {
                return status;
            }
            pause().await;
        }
    })
    .await
}

/// Sends `request` over `stream`, and returns all that comes until the connection is closed.
async fn last(mut stream: TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")
}

/// A query that no other shares.
fn query(name: &str) -> String {
    get(&format!("/prometheus/slow/api/v1/query?query={name}"))
}

fn configuration(upstream: &Scripted, server: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[[upstream]]\nname = \"slow\"\nkind = \"prometheus\"\n\
         urls = [{:?}]\ntimeout = \"50s\"\nretries = 0\n",
        upstream.url
    )
}

fn vector() -> Answer {
    Answer::json(json!({
        "status": "success",
        "data": { "resultType": "vector", "result": [{ "metric": {}, "value": [1, "7"] }] },
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_take_long_are_answered_while_the_process_stops() {
    let upstream = Scripted::start(Arc::new(SystemClock::default()), |_, _| Answer {
        gate: true,
        ..vector()
    })
    .await;
    let server = "drain_grace = \"5s\"\ndrain_timeout = \"100ms\"\nrequest_timeout = \"60s\"";
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &configuration(&upstream, server));
    let address: SocketAddr = process.url.trim_start_matches("http://").parse().unwrap();

    let before = TcpStream::connect(address).await.unwrap();
    let before = tokio::spawn(async move { last(before, &query("before")).await });
    soon(upstream.asked(1)).await;
    signal(&process.child, "TERM");
    // Load balancers see it over new connections, which are served.
    soon(async {
        loop {
            let stream = TcpStream::connect(address).await.unwrap();
            let close = "GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
            let answer = last(stream, close).await;
            if answer.starts_with("HTTP/1.1 503") {
                return;
            }
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            pause().await;
        }
    })
    .await;
    let during = TcpStream::connect(address).await.unwrap();
    let during = tokio::spawn(async move { last(during, &query("during")).await });
    soon(upstream.asked(2)).await;
    soon(async {
        while TcpStream::connect(address).await.is_ok() {
            pause().await;
        }
    })
    .await;
    // Longer than `drain_timeout`, which is shorter than a request may take.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(process.child.try_wait().unwrap().is_none());
    upstream.open();
    upstream.open();
    for answer in [before, during] {
        let answer = soon(answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.to_lowercase().contains("connection: close"),
            "{answer}"
        );
        assert!(answer.ends_with("}"), "{answer}");
    }
    assert!(ended(&mut process.child).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_a_store_never_answers_is_told_so_while_the_process_stops() {
    let upstream = Scripted::start(Arc::new(SystemClock::default()), |_, _| Answer {
        fault: Fault::Hang,
        ..vector()
    })
    .await;
    let server = "drain_grace = \"0s\"\ndrain_timeout = \"100ms\"\nrequest_timeout = \"3s\"";
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start(folder.path(), &configuration(&upstream, server));
    let address: SocketAddr = process.url.trim_start_matches("http://").parse().unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let asked = tokio::spawn(async move { last(stream, &query("hangs")).await });
    soon(upstream.asked(1)).await;
    signal(&process.child, "TERM");
    let answer = soon(asked).await.unwrap();
    // As Prometheus says it.
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("deadline of the request"), "{answer}");
    assert!(ended(&mut process.child).await.success());
}

/// A process that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_delays_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let toml = "[server]\ndrain_grace = \"0s\"\n[log]\nlevel = \"debug\"\n\
                [[upstream]]\nname = \"none\"\nkind = \"prometheus\"\nurls = [\"http://127.0.0.1:9\"]\n";
    std::fs::write(&path, toml).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let process = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .args(["--config".as_ref(), path.as_os_str()])
        .env("HELIOSTAT_SERVER__LISTEN", address.to_string())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = Killed(process);
    let pipe = process.0.stderr.take().unwrap();
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let ask = |path: &str| client.get(format!("http://{address}{path}")).send();
    soon(async {
        while ask("/healthz").await.is_err() {
            pause().await;
        }
    })
    .await;
    // Each line is one for a request; the pipe holds some hundreds, the queue some thousands.
    soon(async {
        loop {
            for _ in 0..500 {
                let invalid = ask("/prometheus/none/api/v1/query?query=up&time=x");
                assert_eq!(invalid.await.unwrap().status(), 400);
            }
            let text = ask("/metrics").await.unwrap().text().await.unwrap();
            if metric(&text, "heliostat_log_lines_dropped_total") > 0.0 {
                return;
            }
        }
    })
    .await;
    assert_eq!(soon(ask("/healthz")).await.unwrap().status(), 200);
    signal(&process.0, "TERM");
    assert!(ended(&mut process.0).await.success());
    drop(pipe);
}
