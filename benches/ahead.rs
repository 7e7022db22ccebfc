//! The worth of `refresh_ahead`: streams that are polled once a minute and a dashboard that is refreshed
//! every ten seconds, in front of a store that takes 400 ms for each answer, with and without it.
//!
//! Both Heliostats run at the same time, in real time, each with a store of its own that counts its calls.
//! Streams are polled on time. The dashboard is refreshed as Grafana does it: a timer is set again when it
//! has fired, and fires some milliseconds late. (Polls that came exactly as long apart as data is served would
//! be hits by chance, half of them, without refreshes ahead.)
//!
//! Beside the polls a client asks for something that is not cached, now and then. When all polls have
//! ended, the calls that still come are counted.
//!
//! `cargo bench --bench ahead`: seven minutes. With `--short` less, to see that it runs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use heliostat::front::{Body, listen};
use http_body_util::BodyExt;
use serde_json::json;
use support::server::{Kind, Server, was_server};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

const LATENCY: Duration = Duration::from_millis(400);
const STEP: i64 = 15;

/// By how much a browser's timer is late.
const TIMER: Duration = Duration::from_millis(4);

/// The polls and their duration.
#[derive(Clone, Copy)]
struct Load {
    streams: u32,
    stream_pace: Duration,
    panels: u32,
    panel_pace: Duration,
    polls: u32,
}

impl Load {
    fn lasts(&self) -> Duration {
        self.stream_pace * self.polls
    }
}

/// A store that answers any query with a value at each step, and counts its calls.
struct Store {
    address: SocketAddr,
    calls: Arc<AtomicU64>,
}

impl Store {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let handler = move |request: http::Request<hyper::body::Incoming>, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                tokio::time::sleep(LATENCY).await;
                http::Response::new(Body::from(answer(&body)))
            }
        };
        let never = std::future::pending();
        let serve = listen::serve(listener, listen::Listening::default(), handler, never);
        tokio::spawn(serve);
        Self { address, calls }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn config(&self, ahead: bool) -> String {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"store\"\nkind = \"prometheus\"\n\
             default = true\nurls = [\"http://{}\"]\nrefresh_ahead = {ahead}\nrecheck = \"0s\"\n",
            self.address
        )
    }
}

/// The answer to a query with these parameters.
fn answer(form: &[u8]) -> String {
    let form: std::collections::HashMap<_, _> = url::form_urlencoded::parse(form).collect();
    let time = |name: &str| form.get(name).map(|t| t.parse::<f64>().unwrap() as i64);
    let (first, last) = match (time("start"), time("end"), time("time")) {
        (Some(start), Some(end), _) => (start, end),
        // The samples of a range selector, and some more than requested.
        (_, _, Some(time)) => (time - 900, time),
        _ => return json!({ "status": "success", "data": [] }).to_string(),
    };
    let first = (first + STEP - 1) / STEP * STEP;
    let values: Vec<_> = (first..=last)
        .step_by(STEP as usize)
        .map(|t| json!([t, "1"]))
        .collect();
    let series = json!([{ "metric": { "__name__": "x" }, "values": values }]);
    json!({ "status": "success", "data": { "resultType": "matrix", "result": series } }).to_string()
}

/// The response times, in milliseconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    /// Returns the share of answers that waited for the store for a good part of its response time.
    fn waited(&self) -> f64 {
        let least = LATENCY.as_secs_f64() * 1000.0 / 4.0;
        let waited = self.0.iter().filter(|t| **t > least).count();
        waited as f64 / self.0.len().max(1) as f64
    }

    fn quantile(&mut self, q: f64) -> f64 {
        self.0.sort_by(f64::total_cmp);
        let last = self.0.len().saturating_sub(1);
        self.0
            .get((last as f64 * q).round() as usize)
            .copied()
            .unwrap_or(0.0)
    }
}

/// The results for one Heliostat.
struct Outcome {
    /// Polls after the third.
    polls: Times,
    /// Queries for uncached data.
    cold: Times,
    calls: u64,
    /// Calls after the polls had ended.
    after: u64,
}

async fn timed(request: reqwest::RequestBuilder) -> f64 {
    let began = Instant::now();
    let reply = request.send().await.unwrap();
    assert_eq!(reply.status(), 200);
    reply.bytes().await.unwrap();
    began.elapsed().as_secs_f64() * 1000.0
}

/// Requests the last ten minutes of the stream `number` by StackState's API.
fn stream(client: &reqwest::Client, base: &str, number: u32) -> reqwest::RequestBuilder {
    let now = SystemClock::default().now();
    let condition = |key: &str, value: String| {
        json!({
            "_type": "EqualityCondition", "key": key,
            "value": { "_type": "StringValue", "value": value },
        })
    };
    let conditions = [
        condition("__gauge__", "x".to_owned()),
        condition("stream", number.to_string()),
    ];
    let query = json!({
        "_type": "MetricsQuery", "startTime": now - 600_000, "endTime": now,
        "conditions": conditions,
    });
    let body = json!({ "connectionDetails": {}, "query": query });
    let request = client.post(format!("{base}/api/metric"));
    let request = request.header("content-type", "application/json");
    request.body(body.to_string())
}

/// Requests the last hour of the panel `name` as Grafana does.
fn panel(client: &reqwest::Client, base: &str, name: &str) -> reqwest::RequestBuilder {
    let end = SystemClock::default().now() / 1000 / STEP * STEP;
    let start = end - 3600;
    let path = format!("query_range?query={name}&start={start}&end={end}&step={STEP}");
    client.get(format!("{base}/api/v1/{path}"))
}

async fn run(ahead: bool, load: Load) -> Outcome {
    let store = Store::start().await;
    let server = Server::start(Kind::Heliostat(&store.config(ahead)));
    let base = format!("http://{}", server.address);
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let began = Instant::now() + Duration::from_secs(1);
    let mut polling = tokio::task::JoinSet::new();
    let kinds = [
        (load.streams, load.stream_pace, true),
        (load.panels, load.panel_pace, false),
    ];
    for (many, pace, is_stream) in kinds {
        for number in 0..many {
            let (client, base) = (client.clone(), base.clone());
            let phase = match is_stream {
                // Components are polled one after the other, the panels of a dashboard at once.
                true => pace * number / many,
                false => Duration::ZERO,
            };
            let polls = (load.lasts().as_millis() / pace.as_millis()) as u32;
            polling.spawn(async move {
                let mut times = Vec::new();
                let mut at = began + phase;
                for poll in 0..polls {
                    sleep_until(at).await;
                    at = match is_stream {
                        true => at + pace,
                        false => Instant::now() + pace + TIMER,
                    };
                    let took = match is_stream {
                        true => timed(stream(&client, &base, number)).await,
                        false => timed(panel(&client, &base, &format!("panel_{number}"))).await,
                    };
                    if poll >= 3 {
                        times.push(took);
                    }
                }
                times
            });
        }
    }
    let cold = {
        let (client, base) = (client.clone(), base.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for number in 0u32.. {
                let at = began + Duration::from_millis(1700) * number;
                if at > began + load.lasts() {
                    break;
                }
                sleep_until(at).await;
                times.push(timed(panel(&client, &base, &format!("cold_{number}"))).await);
            }
            Times(times)
        })
    };
    let mut polls = Times::default();
    while let Some(times) = polling.join_next().await {
        polls.0.extend(times.unwrap());
    }
    let cold = cold.await.unwrap();
    let calls = store.calls();
    // In this time each poll would have come once more.
    tokio::time::sleep(load.stream_pace * 3 / 2).await;
    Outcome {
        polls,
        cold,
        calls,
        after: store.calls() - calls,
    }
}

fn main() {
    if was_server() {
        return;
    }
    let short = std::env::args().any(|a| a == "--short");
    let load = match short {
        true => Load {
            streams: 10,
            stream_pace: Duration::from_secs(2),
            panels: 3,
            panel_pace: Duration::from_secs(2),
            polls: 4,
        },
        false => Load {
            streams: 200,
            stream_pace: Duration::from_secs(60),
            panels: 12,
            panel_pace: Duration::from_secs(10),
            polls: 5,
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (with, without) = runtime.block_on(async {
        let both = [true, false].map(|ahead| tokio::spawn(run(ahead, load)));
        let [with, without] = both;
        (with.await.unwrap(), without.await.unwrap())
    });
    println!(
        "{} streams every {:?}, {} panels every {:?}, a store that takes {LATENCY:?}",
        load.streams, load.stream_pace, load.panels, load.panel_pace
    );
    println!("refresh_ahead    waited     p50 ms    p99 ms   calls  after  not cached, p50 ms");
    let plain = without.calls;
    for (name, mut outcome) in [("false", without), ("true", with)] {
        println!(
            "{name:13} {:8.1} % {:10.1} {:9.1} {:7} {:6} {:14.1}",
            outcome.polls.waited() * 100.0,
            outcome.polls.quantile(0.5),
            outcome.polls.quantile(0.99),
            outcome.calls,
            outcome.after,
            outcome.cold.quantile(0.5),
        );
        if name == "true" {
            let ratio = outcome.calls as f64 / plain as f64;
            println!("calls: {ratio:.3} times those without");
        }
    }
}
