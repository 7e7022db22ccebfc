//! A store that answers the mirror API with a few points, and Prometheus' API with as much as a query asks
//! for: `SIZE…` megabytes, a matrix of `SERIES…`, very many `TINY` strings, an `ERROR…`, the `TENANT`, or a
//! limit that is nearly used up (`RATED`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const POINTS: &str = r#"{"telemetry":{"points":[[1.0,1600000000000],[2.0,1600000060000]],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#;

/// The store, which runs for the rest of the process.
#[derive(Clone)]
pub(super) struct Store {
    pub(super) address: SocketAddr,
    calls: Arc<AtomicUsize>,
    /// Large answers by their contents.
    made: Arc<Mutex<HashMap<String, Bytes>>>,
}

impl Store {
    /// Returns the number of calls so far.
    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn made(&self, what: &str, make: impl FnOnce() -> String) -> Bytes {
        let mut made = self.made.lock().unwrap();
        let bytes = made.entry(what.to_owned());
        bytes.or_insert_with(|| make().into()).clone()
    }
}

/// Starts the store.
pub(super) async fn start() -> Store {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = Store {
        address: listener.local_addr().unwrap(),
        calls: Arc::default(),
        made: Arc::default(),
    };
    let serving = store.clone();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let store = serving.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(store.clone(), request));
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    store
}

/// Returns the number after `word` in `text`.
fn number(text: &str, word: &str) -> Option<usize> {
    let rest = text.split(word).nth(1)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

async fn answer(
    store: Store,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    store.calls.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let tenant = request.headers().get("x-scope-orgid");
    let tenant = tenant.and_then(|v| v.to_str().ok()).unwrap_or("none");
    let tenant = tenant.to_owned();
    let body = request.into_body().collect().await;
    let body = body.map(|b| b.to_bytes()).unwrap_or_default();
    let asked = format!("{path}&{query}&{}", String::from_utf8_lossy(&body));
    let tiny = asked.contains("TINY");
    let strings = |name: &str| {
        let one = r#"{"fieldName":"a","fieldType":"STRING"},"#;
        let (head, one, tail) = match name {
            "/api/field/value" => (r#"{"_type":"FieldValues","values":["#, r#""","#, "\"\"]}"),
            "/api/field/name" => (r#"{"fields":["#, one, &one[..one.len() - 1]),
            _ => (r#"{"status":"success","data":["#, r#""","#, "\"\"]}"),
        };
        let tail = match name {
            "/api/field/name" => format!(r#"{tail}],"isPartial":false}}"#),
            _ => tail.to_owned(),
        };
        // More than may be of each, and as few bytes as show what they would take when they unfold.
        let many = if one.len() > 3 { 600_000 } else { 2_700_000 };
        format!("{head}{}{tail}", one.repeat(many))
    };
    let mut builder = Response::builder();
    if asked.contains("RATED") {
        builder = builder
            .header("x-ratelimit-remaining", "1")
            .header("x-ratelimit-reset", "86400");
    }
    if let Some(status) = number(&asked, "ERROR") {
        builder = builder.status(u16::try_from(status).unwrap());
    }
    let bytes = match path.as_str() {
        _ if asked.contains("TENANT") => format!(
            r#"{{"status":"success","data":{{"resultType":"string","result":[1600000000,"{tenant}"]}}}}"#
        )
        .into(),
        _ if asked.contains("ERROR422") => Bytes::from_static(
            br#"{"status":"error","errorType":"execution","error":"your own\nmistake"}"#,
        ),
        _ if asked.contains("ERROR500") => Bytes::from_static(
            b"<html>\n2026-01-01T00:00:00Z ERROR forged line\r\n\x1b[31mred</html>",
        ),
        _ if asked.contains("ERROR") => store.made("error", || {
            let words = "words ".repeat(10_000_000);
            format!(r#"{{"status":"error","errorType":"internal","error":"{words}"}}"#)
        }),
        "/api/metric" => Bytes::from_static(POINTS.as_bytes()),
        "/api/connection" => Bytes::from_static(br#"{"status":"OK"}"#),
        "/api/field/name" | "/api/field/value" if tiny => store.made(&path, || strings(&path)),
        "/api/field/name" => Bytes::from_static(br#"{"fields":[],"isPartial":false}"#),
        "/api/field/value" => {
            let many = if asked.contains("MANY") { 250_000 } else { 1 };
            store.made(&format!("values{many}"), || {
                let values: Vec<_> = (0..many)
                    .map(|n| format!(r#"{{"value":"value-{n:08}"}}"#))
                    .collect();
                format!(
                    r#"{{"_type":"FieldValues","values":[{}],"isPartial":false}}"#,
                    values.join(",")
                )
            })
        }
        _ if tiny && path.ends_with("/values") => store.made("values", || strings("")),
        _ if tiny => store.made("labels", || {
            // 3,000 series of 600 labels.
            let labels: Vec<_> = (0..600).map(|n| format!("\"l{n}\":\"\"")).collect();
            let one = format!(
                r#"{{"metric":{{{}}},"values":[[1600000000,"1"]]}}"#,
                labels.join(",")
            );
            let mut all = String::new();
            for n in 0..3_000 {
                let _ = write!(
                    all,
                    "{}{}",
                    if n == 0 { "" } else { "," },
                    one.replace("l599", &format!("m{n}"))
                );
            }
            format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[{all}]}}}}"#)
        }),
        _ => match number(&asked, "SERIES") {
            Some(series) => {
                let time = |name| number(&asked, name).unwrap_or(0);
                let (start, end, step) = (time("start="), time("end="), time("step="));
                let what = format!("{series} {start} {end} {step}");
                store.made(&what, || matrix(series, start, end, step))
            }
            None => {
                let megabytes = number(&asked, "SIZE").unwrap_or(0);
                store.made(&format!("{megabytes} MB"), || {
                    let filling = "x".repeat(megabytes * 1_000_000);
                    format!(
                        r#"{{"status":"success","data":{{"resultType":"string","result":[1600000000,"{filling}"]}}}}"#
                    )
                })
            }
        },
    };
    let response = builder
        .header("content-type", "application/json")
        .header("x-mirror-api-key", "api_key")
        .body(Full::from(bytes))
        .unwrap();
    Ok(response)
}

fn matrix(series: usize, start: usize, end: usize, step: usize) -> String {
    let mut text = r#"{"status":"success","data":{"resultType":"matrix","result":["#.to_owned();
    for n in 0..series {
        let comma = if n == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"metric":{{"__name__":"m","host":"host-{n:05}"}},"values":["#
        );
        for (i, time) in (start..=end).step_by(step.max(1)).enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(text, r#"{comma}[{time},"{}.25"]"#, n + i);
        }
        text.push_str("]}");
    }
    text.push_str("]}}");
    text
}
