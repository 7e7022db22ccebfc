//! A store that answers the mirror API with a few points, and Prometheus' API with as many bytes as a
//! query asks for: `query=SIZE…`, in MB.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const POINTS: &str = r#"{"telemetry":{"points":[[1.0,1600000000000],[2.0,1600000060000]],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#;

/// Starts the store for the rest of the process.
pub(super) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            tokio::spawn(async move {
                let service = service_fn(answer);
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map(|b| b.to_bytes()).unwrap_or_default();
    let asked = format!("{query}&{}", String::from_utf8_lossy(&body));
    let text = match path.as_str() {
        "/api/metric" => POINTS.to_owned(),
        "/api/connection" => r#"{"status":"OK"}"#.to_owned(),
        _ => {
            let megabytes = asked.split("query=SIZE").nth(1).and_then(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse::<usize>().ok()
            });
            let filling = "x".repeat(megabytes.unwrap_or(0) * 1_000_000);
            format!(
                r#"{{"status":"success","data":{{"resultType":"string","result":[1600000000,"{filling}"]}}}}"#
            )
        }
    };
    let response = Response::builder()
        .header("content-type", "application/json")
        .header("x-mirror-api-key", "api_key")
        .body(Full::from(text))
        .unwrap();
    Ok(response)
}
