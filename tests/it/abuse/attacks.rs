//! Attacks that make connections, request heads and bodies expensive.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::Target;
use super::raw::{ATTACKER, connect, exchange, http2_get, http2_without_window, post};

/// How long held connections stay open.
const HELD: Duration = Duration::from_secs(4);

/// Fields of a megabyte are refused by their names, and no memory is kept for them.
pub(super) async fn large_fields(target: &Target) {
    let zeros = vec!["0"; 500_000].join(",");
    let long = "p".repeat(1_000_000);
    let times = r#""startTime":1600000000000,"endTime":1600000600000"#;
    let field = r#""field":{"fieldName":"a","fieldType":"STRING"}"#;
    let refused = [
        (
            "/api/metric",
            format!(r#"{{"connectionDetails":{{"x":[{zeros}]}},"query":{{{times}}}}}"#),
            "connectionDetails",
        ),
        (
            "/api/field/name",
            format!(r#"{{"connectionDetails":{{"x":"{long}"}},"query":{{}}}}"#),
            "connectionDetails",
        ),
        (
            "/api/field/value",
            format!(
                r#"{{"connectionDetails":{{}},"query":{{{field},"fieldValuePrefix":"{long}"}}}}"#
            ),
            "query.fieldValuePrefix",
        ),
        (
            "/api/metric",
            format!(
                r#"{{"connectionDetails":{{}},"query":{{{times},"conditions":[{{"key":"a","value":"{long}"}}]}}}}"#
            ),
            "query.conditions[0].value",
        ),
        (
            "/api/metric",
            format!(
                r#"{{"connectionDetails":{{}},"query":{{{times},"conditions":[{}]}}}}"#,
                vec![format!(r#"{{"key":"a","value":"{}"}}"#, &long[..8_000]); 100].join(",")
            ),
            "query: has",
        ),
    ];
    for round in 0..25 {
        let (path, body, named) = &refused[round % refused.len()];
        let answer = exchange(target.address, ATTACKER, &post(path, body)).await;
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer:.300}");
        assert!(answer.contains(named), "{named}: {answer:.600}");
    }
    for (length, status) in [(256, "200"), (257, "400"), (380_000, "431")] {
        let tenant = "t".repeat(length);
        let request = format!(
            "GET /prometheus/prom/api/v1/query?query=a HTTP/1.1\r\nhost: x\r\nx-scope-orgid: {tenant}\r\n\
             connection: close\r\n\r\n"
        );
        let answer = exchange(target.address, ATTACKER, request.as_bytes()).await;
        let answer = answer.unwrap();
        let expected = format!("HTTP/1.1 {status}");
        assert!(answer.starts_with(&expected), "{length}: {answer:.300}");
    }
}

/// Bodies of a megabyte whose parsed tree would take a hundred times as much memory.
pub(super) async fn unfolding(target: &Target) {
    let many = vec![r#"{"":0}"#; 149_000].join(",");
    for body in [
        format!(r#"{{"connectionDetails":{{"x":[{many}]}},"query":{{}}}}"#),
        format!(r#"{{"connectionDetails":{{}},"query":{{"conditions":[{many}]}}}}"#),
    ] {
        let request = post("/api/metric", &body);
        let asked = (0..24).map(|_| exchange(target.address, ATTACKER, &request));
        for answer in join_all(asked).await {
            let answer = answer.unwrap();
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer:.300}");
        }
    }
}

/// Thirty connections of 256 streams each, which request `path` and read nothing of it.
pub(super) async fn closed_windows(target: &Target, path: &str) {
    let mut held = Vec::new();
    for _ in 0..30 {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        let mut bytes = http2_without_window();
        for n in 0..256 {
            bytes.extend(http2_get(2 * n + 1, path));
        }
        // The server may have closed the connection already.
        let _ = stream.write_all(&bytes).await;
        held.push(stream);
    }
    sleep(HELD).await;
}

/// Two connections of a hundred streams each, which request answers of 7 MB, each another, and read nothing of
/// them; and forty connections over HTTP/1 that do the same.
pub(super) async fn unread_answers(target: &Target) {
    let mut held = Vec::new();
    for connection in 0..2 {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        let mut bytes = http2_without_window();
        for n in 0..100 {
            let path = format!(
                "/prometheus/prom/api/v1/query?query=SIZE7x{connection}x{n}&time=1600000000"
            );
            bytes.extend(http2_get(2 * n + 1, &path));
        }
        let _ = stream.write_all(&bytes).await;
        held.push(stream);
    }
    for n in 0..40 {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        let request = format!(
            "GET /prometheus/prom/api/v1/query?query=SIZE7x{n}&time=1600000000 HTTP/1.1\r\nhost: x\r\n\r\n"
        );
        let _ = stream.write_all(request.as_bytes()).await;
        held.push(stream);
    }
    sleep(HELD).await;
}

/// A hundred connections announce the largest body and send none of it.
pub(super) async fn missing_bodies(target: &Target) {
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        let head = "POST /api/metric HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                    content-length: 1048576\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        held.push(stream);
    }
    sleep(HELD).await;
}

/// Two hundred bodies of the largest size, without their last byte.
pub(super) async fn unfinished_bodies(target: &Target) {
    const LARGEST: usize = 1 << 20;
    let mut request = post("/api/metric", &" ".repeat(LARGEST));
    request.pop();
    let send = || async {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        // Most find no room, and are answered before they have sent all.
        let _ = timeout(HELD, stream.write_all(&request)).await;
        stream
    };
    let held = join_all((0..200).map(|_| send())).await;
    sleep(HELD).await;
    drop(held);
}

/// Twenty bodies of 200 kB in chunks of one byte.
pub(super) async fn tiny_chunks(target: &Target) {
    let body = "1\r\nx\r\n".repeat(200_000);
    let head = "POST /api/metric HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(target.address, ATTACKER).await.unwrap();
        let sent = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await
        };
        let _ = sent.await;
        // The last chunk is missing, so the server waits for more.
        held.push(stream);
    }
    sleep(HELD).await;
}

/// Five hundred unfinished heads of 400 kB.
pub(super) async fn unfinished_heads(target: &Target) {
    let head = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx-long: {}",
        "x".repeat(400_000)
    );
    let mut held = Vec::new();
    for _ in 0..500 {
        let Ok(mut stream) = connect(target.address, ATTACKER).await else {
            continue;
        };
        let _ = timeout(Duration::from_secs(1), stream.write_all(head.as_bytes())).await;
        held.push(stream);
    }
    sleep(HELD).await;
}

/// Three thousand idle connections, and as many requests over five hundred of them.
pub(super) async fn many_connections(target: &Target) {
    let mut held = Vec::new();
    for n in 0..3_000 {
        let Ok(mut stream) = connect(target.address, ATTACKER).await else {
            break;
        };
        if n % 6 == 0 {
            let request = format!(
                "GET /prometheus/prom/api/v1/query?query=q{n}&time=1600000000 HTTP/1.1\r\nhost: x\r\n\r\n"
            );
            let _ = stream.write_all(request.repeat(6).as_bytes()).await;
        }
        held.push(stream);
    }
    sleep(HELD).await;
}
