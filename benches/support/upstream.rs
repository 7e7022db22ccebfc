//! A mirror in its own thread that answers for any lane and any time up to now, as [`Ask::answer`]
//! defines.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use heliostat::clock::{Clock, SystemClock};
use heliostat::front::{Body, listen};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::TcpListener;

use super::asking::{ALIKE, Ask, Shape};

/// The mirror. Its thread ends with the process.
pub(crate) struct Upstream {
    address: SocketAddr,
    latency: Arc<AtomicU64>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let latency = Arc::new(AtomicU64::new(0));
        let wait = latency.clone();
        let ready = Arc::new(Ready::default());
        let handler = move |request: http::Request<hyper::body::Incoming>, _| {
            let wait = Duration::from_millis(wait.load(Ordering::Relaxed));
            let ready = ready.clone();
            async move {
                let is_query = request.uri().path() == "/api/metric";
                let body = request.into_body().collect().await.unwrap().to_bytes();
                if !is_query {
                    return http::Response::new(Body::from(r#"{"status":"OK"}"#));
                }
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                http::Response::new(Body::from(ready.answer(&asked(&body))))
            }
        };
        let never = std::future::pending();
        std::thread::spawn(move || {
            runtime.block_on(listen::serve(
                listener,
                listen::Listening::default(),
                handler,
                never,
            ));
        });
        Self { address, latency }
    }

    /// Sets the response time from now on, in milliseconds.
    pub(crate) fn set_latency(&self, millis: u64) {
        self.latency.store(millis, Ordering::Relaxed);
    }

    /// Returns the configuration of a Heliostat in front of it, with this much cache memory. Data
    /// that has not settled is fetched again for each request, and every client that accepts
    /// compression gets it.
    pub(crate) fn config(&self, memory: &str) -> String {
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
compression = "always"
[cache]
memory = "{memory}"
[[upstream]]
name = "source"
kind = "mirror"
urls = ["http://{}"]
aggregate = "upstream"
refresh = "1ms"
rate_limit = {{ per_second = 1000000, burst = 1000000 }}
max_concurrency = 256
queue = 100000
"#,
            self.address
        )
    }
}

/// Answers for lanes that are alike, each written once: a measurement of hits beside misses should
/// not include the time for answering misses here.
#[derive(Default)]
struct Ready(Mutex<HashMap<(Shape, i64, i64), Bytes>>);

impl Ready {
    fn answer(&self, ask: &Ask) -> Bytes {
        if ask.lane < ALIKE {
            return ask.answer().into();
        }
        let mut ready = self.0.lock().unwrap();
        let key = (ask.shape, ask.start, ask.end);
        ready
            .entry(key)
            .or_insert_with(|| ask.answer().into())
            .clone()
    }
}

/// Reads the query from the body of a request, without the part of its range that lies in the
/// future.
fn asked(body: &[u8]) -> Ask {
    let request: Value = serde_json::from_slice(body).unwrap();
    let query = &request["query"];
    let conditions = query["conditions"].as_array().unwrap();
    let lane = conditions.iter().find(|c| c["key"] == "lane").unwrap();
    let time = |key: &str| query[key].as_i64().unwrap();
    let shape = if query["aggregation"].is_object() {
        assert_eq!(query["aggregation"]["bucketSizeMillis"], 60_000);
        Shape::Buckets
    } else {
        Shape::Raw
    };
    Ask {
        shape,
        lane: lane["value"]["value"].as_str().unwrap().parse().unwrap(),
        start: time("startTime"),
        end: time("endTime").min(SystemClock::default().now() + 1),
    }
}
