//! Malformed and hostile requests, as a table: `tests/cases/bad_input.json`.
//!
//! An entry says how a valid request is altered (`set`, `literal`, `drop`: by path) or what is sent
//! instead (`body`, `hex`, `repeat`, `tcp`), and the expected answer: a status and a text that
//! names the field. After each entry a valid request is still answered.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scripted::{Answer, Scripted, Seen};
use crate::support::{Server, TestClock};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    /// Keys of the upstream, as TOML.
    upstream: String,
    /// Sections before it, as TOML.
    #[serde(default)]
    config: String,
    path: String,
    good: Value,
    cases: Vec<Bad>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Bad {
    /// Members of the valid request that get other values.
    set: BTreeMap<String, Value>,
    /// The same as JSON text, which need not be valid.
    literal: BTreeMap<String, String>,
    /// Members to remove.
    drop: Vec<String>,
    body: Option<String>,
    hex: Option<String>,
    /// The text before, a text and how often it is repeated, and the text after.
    repeat: Option<(String, String, usize, String)>,
    /// The raw bytes to send, including HTTP.
    tcp: Option<String>,
    method: Option<String>,
    path: Option<String>,
    headers: BTreeMap<String, String>,
    status: u16,
    says: String,
    /// The `query` that a Prometheus server receives.
    arrives: Option<String>,
    /// The path that it receives.
    arrives_at: Option<String>,
}

fn table() -> Vec<Group> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases/bad_input.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// Answers valid queries with no data.
fn nothing(seen: &Seen) -> Answer {
    let asked = seen.json();
    Answer::json(match seen.path.split('?').next().unwrap() {
        "/api/metric" if asked["query"]["aggregation"].is_object() => {
            json!({ "telemetry": { "points": [], "_type": "AggregatedMetricTelemetry" } })
        }
        "/api/metric" => json!({ "telemetry": { "points": [], "_type": "RawMetricTelemetry" } }),
        "/api/field/name" => json!({ "fields": [] }),
        "/api/field/value" => json!({ "values": [] }),
        "/api/v1/query" | "/api/v1/query_range" => {
            json!({ "status": "success", "data": { "resultType": "matrix", "result": [] } })
        }
        _ => json!({ "status": "success", "data": [] }),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_and_harm_nobody() {
    let (mut count, mut failures) = (0, Vec::new());
    for group in table() {
        let clock = TestClock::at(1_200_000_000);
        let upstream = Scripted::start(clock.clone(), |_, seen| nothing(seen)).await;
        let toml = format!(
            "{}\n[[upstream]]\nname = {:?}\nurls = [{:?}]\nretries = 0\nrate_limit = {{ per_second = 100000 }}\n{}",
            group.config, group.name, upstream.url, group.upstream
        );
        let server = Server::start_at(&toml, clock).await;
        for bad in &group.cases {
            count += 1;
            let before = upstream.seen().len();
            let (status, text) = ask(&server, &group, bad).await;
            let mut complain = |what: String| {
                failures.push(format!("{}: {}: {what}", group.name, excerpt(bad)));
            };
            if status != bad.status {
                complain(format!("status {status}, not {}: {text:.300}", bad.status));
            } else if !text.contains(&bad.says) {
                complain(format!("it does not say {:?}: {text:.300}", bad.says));
            }
            let seen = upstream.seen().split_off(before);
            if bad.status != 200 && !seen.is_empty() {
                complain(format!("the upstream was asked {}", seen[0].json()));
            }
            let last = seen.last();
            let query = last.map(|s| s.json()["query"].clone()).unwrap_or_default();
            if bad.arrives.as_ref().is_some_and(|q| query != q.as_str()) {
                complain(format!("there arrives {query}"));
            }
            let path = last.map_or("", |s| s.path.as_str());
            if bad.arrives_at.as_ref().is_some_and(|p| path != p) {
                complain(format!("it arrives at {path}"));
            }
            let good = server.post(&group.path, &group.good).await;
            if good.status != 200 {
                complain(format!("and then a good request gets {}", good.text));
            }
        }
    }
    let failed = failures.len();
    assert!(
        failures.is_empty(),
        "{failed} of {count} fail:\n{}",
        failures.join("\n")
    );
    assert!(count >= 150, "only {count} requests");
}

fn excerpt(bad: &Bad) -> String {
    let mut bad = bad.clone();
    bad.body = bad.body.map(|b| b.chars().take(80).collect());
    format!("{bad:?}")
        .replace("None", "")
        .replace("{}", "")
        .replace("[]", "")
}

async fn ask(server: &Server, group: &Group, bad: &Bad) -> (u16, String) {
    if let Some(bytes) = &bad.tcp {
        return over_tcp(server, bytes.as_bytes()).await;
    }
    let path = bad.path.as_ref().unwrap_or(&group.path);
    if bad.status == 413 {
        // The answer comes before the body is read. A client that continues to write may find the
        // connection closed, so this one writes only the start.
        let body = spoilt(&group.good, bad);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        return over_tcp(server, &[head.as_bytes(), &body[..1024]].concat()).await;
    }
    let method = bad.method.as_deref().unwrap_or("POST").parse().unwrap();
    let mut request = server
        .client()
        .request(method, format!("{}{path}", server.url));
    if !bad.headers.contains_key("content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in &bad.headers {
        request = request.header(name, value.as_bytes());
    }
    let reply = server.reply(request.body(spoilt(&group.good, bad))).await;
    assert!(!reply.header("x-mirror-api-key").is_empty(), "{bad:?}");
    (reply.status, reply.text)
}

fn spoilt(good: &Value, bad: &Bad) -> Vec<u8> {
    if let Some(body) = &bad.body {
        return body.clone().into_bytes();
    }
    if let Some(hex) = &bad.hex {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        return (0..hex.len()).step_by(2).map(byte).collect();
    }
    if let Some((before, text, times, after)) = &bad.repeat {
        return format!("{before}{}{after}", text.repeat(*times)).into_bytes();
    }
    let mut body = good.clone();
    for (path, value) in &bad.set {
        *place(&mut body, path) = value.clone();
    }
    for path in &bad.drop {
        let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
        let members = place(&mut body, parent).as_object_mut().unwrap();
        members.remove(key);
    }
    for path in bad.literal.keys() {
        *place(&mut body, path) = format!("literal {path}").into();
    }
    let text = bad
        .literal
        .iter()
        .fold(body.to_string(), |text, (path, literal)| {
            text.replace(&format!("\"literal {path}\""), literal)
        });
    text.into_bytes()
}

/// Returns the value at a path such as `query.conditions.0.key`, created if absent.
fn place<'a>(body: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.')
        .filter(|p| !p.is_empty())
        .fold(body, |at, key| match at {
            Value::Array(items) => &mut items[key.parse::<usize>().unwrap()],
            other => &mut other[key],
        })
}

/// Sends `bytes` as they are, and reads until the connection ends or nothing more is announced.
async fn over_tcp(server: &Server, bytes: &[u8]) -> (u16, String) {
    let address = server.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close the connection before everything is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&String::from_utf8_lossy(&answer)) {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text)
}

/// Returns whether an answer has its head and all of the body that the head announces.
fn is_whole(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "));
    length.is_none_or(|l| body.len() >= l.parse().unwrap())
}
