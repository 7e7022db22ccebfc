//! Is a backend kept from harm, and what do clients get meanwhile?
//!
//! Everything runs in this process on loopback: an upstream that takes 400 ms and is allowed 50
//! calls a second, a Heliostat in front of it, and 64 connections that poll 2,000 streams, far
//! more than the upstream could answer. Each answer's buckets are compared with what the upstream
//! holds: none may be missing or wrong beyond the age that the answer admits. Then come overload of up to
//! ten times what is allowed, and stores that are partly sick.
//!
//! `cargo bench --bench protection`, or `-- --short` for a run of some seconds; `-- NAME …` runs the parts of these
//! names alone: `well`, `impatient`, `busy`, `closed`, `sooner`, `overload`, `sick`. After `overload` more words pick
//! cases: a load (`0.9`, `1.1`, `1.7`, `10`), `rate` or `concurrency`, `cold` or `warm`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

#[path = "protection/overload.rs"]
mod overload;
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heliostat::app::Service;
use heliostat::clock::{Clock, SystemClock};
use heliostat::config;
use heliostat::front::{Body, listen};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use support::{Client, quantile};
use tokio::net::TcpListener;

const LATENCY: Duration = Duration::from_millis(400);
const RATE: usize = 50;
const BURST: usize = 50;

const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const GREEDY_CONNECTIONS: u64 = 60;
const GREEDY_STREAMS: u64 = 1980;
const GREEDY_REST: Duration = Duration::from_millis(50);

const MODEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const MODEST_CONNECTIONS: u64 = 4;
const MODEST_STREAMS: u64 = 20;
const MODEST_REST: Duration = Duration::from_millis(250);

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// The distance of the upstream's points.
const INTERVAL: i64 = 15_000;

/// The fault that the upstream has from time to time.
#[derive(Clone, Copy, PartialEq)]
enum Outage {
    Never,
    /// It answers 503 at once.
    Busy,
    /// It answers the requests it has with 500 and closes its port.
    Closed,
}

/// The durations of a run.
#[derive(Clone, Copy)]
struct Times {
    part: Duration,
    flip: Duration,
    refresh: Duration,
}

/// One part of the bench.
#[derive(Clone, Copy)]
struct Part {
    /// The upstream's name.
    name: &'static str,
    title: &'static str,
    outage: Outage,
    /// The time in milliseconds after which clients give up, if they do.
    patience: Option<u32>,
    /// Time for which the breaker of a URL that failed stays open.
    breaker: Duration,
}

/// A number that depends on all bits of `n` (the finalizer of SplitMix64).
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// The value of `stream` at `time`; the mean of four of them is exact.
fn value(stream: u64, time: i64) -> f64 {
    (mixed(stream << 48 ^ time as u64) % 4096) as f64 / 4.0
}

/// The mean of a minute of `stream`.
fn mean(stream: u64, start: i64) -> f64 {
    let points = (0..4).map(|i| value(stream, start + i * INTERVAL));
    points.sum::<f64>() / 4.0
}

/// A slow upstream that counts its calls.
struct Upstream {
    begun: Instant,
    flip: Duration,
    outage: Outage,
    clock: SystemClock,
    calls: Mutex<Vec<Duration>>,
}

impl Upstream {
    fn is_dead(&self) -> bool {
        let flips = self.begun.elapsed().as_millis() / self.flip.as_millis();
        self.outage != Outage::Never && flips % 2 == 1
    }

    /// Serves, with its port closed during outages of that kind.
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        let address = listener.local_addr().unwrap();
        let mut listener = Some(listener);
        loop {
            let open = match listener.take() {
                Some(open) => open,
                None => TcpListener::bind(address).await.unwrap(),
            };
            let upstream = self.clone();
            let handler = move |request, _| upstream.clone().handle(request);
            let closed = async {
                self.until(true).await;
                Duration::ZERO
            };
            listen::serve(open, listen::Listening::default(), handler, closed).await;
            self.until(false).await;
        }
    }

    /// Waits until the port is to be closed or opened.
    async fn until(&self, closed: bool) {
        while (self.outage == Outage::Closed && self.is_dead()) != closed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn handle(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        self.calls.lock().unwrap().push(self.begun.elapsed());
        let is_query = request.uri().path() == "/api/metric";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if !self.is_dead() {
            tokio::time::sleep(LATENCY).await;
        }
        if self.is_dead() {
            let mut response = http::Response::new(Body::from("not now"));
            *response.status_mut() = match self.outage {
                Outage::Closed => http::StatusCode::INTERNAL_SERVER_ERROR,
                _ => http::StatusCode::SERVICE_UNAVAILABLE,
            };
            return response;
        }
        if !is_query {
            return http::Response::new(Body::from(r#"{"status":"OK"}"#));
        }
        let request: Value = serde_json::from_slice(&body).unwrap();
        let query = &request["query"];
        let conditions = query["conditions"].as_array().unwrap();
        let stream = conditions.iter().find(|c| c["key"] == "stream").unwrap();
        let stream: u64 = stream["value"]["value"].as_str().unwrap().parse().unwrap();
        let start = query["startTime"].as_i64().unwrap();
        // There is no data from the future.
        let end = query["endTime"].as_i64().unwrap().min(self.clock.now() + 1);
        let first = -(-start).div_euclid(INTERVAL);
        let points: Vec<String> = (first..)
            .map(|i| i * INTERVAL)
            .take_while(|t| *t < end)
            .map(|t| format!("[{},{t}]", value(stream, t)))
            .collect();
        let body = format!(
            r#"{{"telemetry":{{"points":[{}],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"}},"_type":"MetricsResponse"}}"#,
            points.join(",")
        );
        http::Response::new(Body::from(body))
    }

    /// Returns the number of calls in the busiest second, and the total.
    fn busiest(&self) -> (usize, usize) {
        let calls = self.calls.lock().unwrap();
        let mut most = 0;
        let mut first = 0;
        for (last, at) in calls.iter().enumerate() {
            while *at - calls[first] >= Duration::from_secs(1) {
                first += 1;
            }
            most = most.max(last + 1 - first);
        }
        (most, calls.len())
    }
}

/// The outcomes of polls.
#[derive(Default)]
struct Tally {
    hits: Vec<Duration>,
    fresh: Vec<Duration>,
    stale: Vec<Duration>,
    refused: BTreeMap<u16, Vec<Duration>>,
    /// Faults found in answers of status 200.
    wrong: Vec<String>,
    wrong_answers: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.hits.extend(other.hits);
        self.fresh.extend(other.fresh);
        self.stale.extend(other.stale);
        for (status, times) in other.refused {
            self.refused.entry(status).or_default().extend(times);
        }
        self.wrong.extend(other.wrong);
        self.wrong_answers += other.wrong_answers;
    }

    fn answered(&self) -> Vec<Duration> {
        [&self.hits[..], &self.fresh, &self.stale].concat()
    }

    fn polls(&self) -> usize {
        self.answered().len() + self.refused.values().map(Vec::len).sum::<usize>()
    }

    fn share(&self, n: usize) -> String {
        format!("{:.1} %", n as f64 * 100.0 / self.polls().max(1) as f64)
    }
}

/// Compares an answer's buckets with the upstream's data. Up to `lag` before `asked` each must
/// exist and be right; after that, there must be no gap between them.
fn check(body: &[u8], stream: u64, start: i64, asked: i64, lag: i64) -> Result<(), String> {
    let answer: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let rows = answer["telemetry"]["points"]
        .as_array()
        .ok_or("no points")?;
    let mut next = start.div_euclid(MINUTE) * MINUTE;
    for row in rows {
        let at = row[1].as_i64().unwrap_or_default();
        if at != next {
            return Err(format!("a bucket at {at} where {next} should be"));
        }
        next += MINUTE;
        if next <= asked - lag && row[0].as_f64() != Some(mean(stream, at)) {
            return Err(format!(
                "the bucket {} s ago is {}",
                (asked - at) / 1000,
                row[0]
            ));
        }
    }
    if next + MINUTE <= asked - lag {
        return Err(format!("ends {} s ago", (asked - next) / 1000));
    }
    Ok(())
}

/// One connection's share of the load.
#[derive(Clone)]
struct Load {
    part: Part,
    times: Times,
    address: SocketAddr,
    source: IpAddr,
    begun: Instant,
    rest: Duration,
}

impl Load {
    /// Polls the streams that `pick` returns until the time is over.
    async fn run(self, mut pick: impl FnMut() -> u64) -> Tally {
        let clock = SystemClock::default();
        let mut client = Client::connect(self.address, self.source).await;
        let mut tally = Tally::default();
        let details = match self.part.patience {
            Some(millis) => format!(r#"{{"requestTimeout":{millis}}}"#),
            None => "{}".to_owned(),
        };
        while self.begun.elapsed() < self.times.part {
            let stream = pick();
            let asked = clock.now();
            let text = stream.to_string();
            let conditions = [("name", "load"), ("stream", text.as_str())];
            let body = support::query(&details, conditions, (asked - HOUR, asked), MINUTE);
            let sent = Instant::now();
            let answer = client.post(&body).await;
            let took = sent.elapsed();
            if answer.status() == 200 {
                let cache = answer.header("cache-status");
                let ttl = cache.split("ttl=").nth(1).map_or(0, |ttl| {
                    let end = ttl.find(';').unwrap_or(ttl.len());
                    ttl[..end].parse::<i64>().unwrap()
                });
                let refresh = self.times.refresh.as_millis() as i64;
                let lag = refresh + 1000 * (1 - ttl.min(0));
                if let Err(why) = check(answer.body, stream, asked - HOUR, asked, lag) {
                    tally.wrong_answers += 1;
                    tally.wrong.push(format!("{cache}: {why}"));
                    tally.wrong.truncate(3);
                }
                if ttl < 0 {
                    tally.stale.push(took);
                } else if cache.starts_with("heliostat; hit") {
                    tally.hits.push(took);
                } else {
                    assert!(cache.starts_with("heliostat; fwd="), "{cache}");
                    tally.fresh.push(took);
                }
            } else {
                let times = tally.refused.entry(answer.status()).or_default();
                times.push(took);
            }
            tokio::time::sleep(self.rest).await;
        }
        tally
    }
}

/// Picks streams as a crowd does: the one of rank `r` with a weight of `1 / r`.
fn popular(seed: u64) -> impl FnMut() -> u64 {
    let mut sum = 0.0;
    let weights: Vec<f64> = (1..=GREEDY_STREAMS)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let at = (mixed(state) >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let rank = weights.partition_point(|w| *w < at) as u64;
        MODEST_STREAMS + rank.min(GREEDY_STREAMS - 1)
    }
}

/// Picks a client's own streams in turn.
fn in_turn(number: u64) -> impl FnMut() -> u64 {
    let mut next = number;
    move || {
        next = (next + MODEST_CONNECTIONS) % MODEST_STREAMS;
        next
    }
}

async fn run(part: Part, times: Times) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = format!(
        r#"
[server]
listen = "127.0.0.1:0"
[[upstream]]
name = "{}"
kind = "mirror"
urls = ["http://{}"]
refresh = "{}ms"
settle = "2m"
rate_limit = {{ per_second = {RATE}, burst = {BURST} }}
max_concurrency = 32
queue = 4096
breaker = {{ failures = 5, open = "{}ms" }}
"#,
        part.name,
        listener.local_addr().unwrap(),
        times.refresh.as_millis(),
        part.breaker.as_millis(),
    );
    let config = config::parse(&config, "bench", &BTreeMap::new()).unwrap();
    let clock = Arc::new(SystemClock::default());
    let service = Service::bind(&config, clock).await.unwrap();
    let address = service.address().unwrap();
    tokio::spawn(service.run(std::future::pending()));
    let begun = Instant::now();
    let upstream = Arc::new(Upstream {
        begun,
        flip: times.flip,
        outage: part.outage,
        clock: SystemClock::default(),
        calls: Mutex::default(),
    });
    let serving = tokio::spawn(upstream.clone().serve(listener));
    let load = |source, rest| Load {
        part,
        times,
        address,
        source,
        begun,
        rest,
    };
    let greedy = (0..GREEDY_CONNECTIONS)
        .map(|n| tokio::spawn(load(GREEDY, GREEDY_REST).run(popular(mixed(n + 1)))))
        .collect();
    let modest = (0..MODEST_CONNECTIONS)
        .map(|n| tokio::spawn(load(MODEST, MODEST_REST).run(in_turn(n))))
        .collect();
    let greedy = all(greedy).await;
    let modest = all(modest).await;
    let took = begun.elapsed();
    let (busiest, calls) = upstream.busiest();
    serving.abort();
    print(&part, took, (busiest, calls), greedy, modest);
    print_metrics(address, part.name).await;
    let budget = BURST + (RATE as f64 * took.as_secs_f64()).ceil() as usize;
    assert!(calls <= budget, "{calls} calls, {budget} were allowed");
    // A call may be delayed on its way, so that it counts with those after it.
    assert!(busiest <= BURST + RATE + 2, "{busiest} calls in a second");
}

async fn all(tasks: Vec<tokio::task::JoinHandle<Tally>>) -> Tally {
    let mut tally = Tally::default();
    for task in tasks {
        tally.add(task.await.unwrap());
    }
    tally
}

fn print(
    part: &Part,
    took: Duration,
    (busiest, calls): (usize, usize),
    greedy: Tally,
    modest: Tally,
) {
    println!("\n== {}", part.title);
    let per_second = calls as f64 / took.as_secs_f64();
    println!(
        "upstream: {calls} calls, {per_second:.1} a second; at most {busiest} in one second, {} are allowed",
        BURST + RATE
    );
    println!(
        "{:<8}{:>7}{:>9}{:>9}{:>9}{:>9}{:>13}{:>13}{:>13}{:>13}",
        "caller",
        "polls",
        "hit",
        "fresh",
        "stale",
        "success",
        "all p50",
        "all p99",
        "fresh p50",
        "fresh p99"
    );
    let mut together = Tally::default();
    for (name, mut tally) in [("greedy", greedy), ("modest", modest)] {
        row(name, &mut tally);
        together.add(tally);
    }
    row("both", &mut together);
    for (status, times) in &mut together.refused.clone() {
        println!(
            "status {status}: {} of polls, after {} (p50), {} (p99)",
            together.share(times.len()),
            quantile(times, 0.5),
            quantile(times, 0.99)
        );
    }
    println!(
        "answers of status 200 with a hole or a wrong bucket that they do not admit: {}",
        together.wrong_answers
    );
    println!("peak memory of upstream, Heliostat and clients: {}", peak());
    assert!(together.wrong.is_empty(), "{:#?}", together.wrong);
}

fn row(name: &str, tally: &mut Tally) {
    let mut answered = tally.answered();
    println!(
        "{:<8}{:>7}{:>9}{:>9}{:>9}{:>9}{:>13}{:>13}{:>13}{:>13}",
        name,
        tally.polls(),
        tally.share(tally.hits.len()),
        tally.share(tally.fresh.len()),
        tally.share(tally.stale.len()),
        tally.share(answered.len()),
        quantile(&mut answered, 0.5),
        quantile(&mut answered, 0.99),
        quantile(&mut tally.fresh, 0.5),
        quantile(&mut tally.fresh, 0.99),
    );
}

/// Prints the metrics of Heliostat's upstream that are not 0.
async fn print_metrics(address: SocketAddr, upstream: &str) {
    let url = format!("http://{address}/metrics");
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let text = client.get(url).send().await.unwrap().text().await.unwrap();
    let label = format!("upstream=\"{upstream}\"");
    let wanted = ["upstream_requests", "rejected", "retries", "coalesced"];
    let found: Vec<String> = text
        .lines()
        .filter(|l| l.contains(&label) && wanted.iter().any(|w| l.contains(w)))
        .filter(|l| !l.ends_with(" 0"))
        .map(|l| {
            let line = l.replace(&format!("{label},"), "").replace(&label, "");
            line.trim_start_matches("heliostat_").replace("{}", "")
        })
        .collect();
    println!("metrics: {}", found.join(", "));
}

/// Returns the peak memory of this process.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.unwrap_or("not known").trim().to_owned()
}

fn main() {
    let short = std::env::args().any(|a| a == "--short");
    let seconds = Duration::from_secs_f64;
    let times = if short {
        Times {
            part: seconds(3.0),
            flip: seconds(0.75),
            refresh: seconds(1.0),
        }
    } else {
        Times {
            part: seconds(20.0),
            flip: seconds(2.5),
            refresh: seconds(10.0),
        }
    };
    let part = |name, title, outage| Part {
        name,
        title,
        outage,
        patience: None,
        breaker: times.refresh,
    };
    let title = "the upstream is well; clients give up after 1 s";
    let impatient = Part {
        patience: Some(1000),
        ..part("impatient", title, Outage::Never)
    };
    let title = "the upstream answers 503 half of the time";
    let busy = part("busy", title, Outage::Busy);
    let title = "the upstream's port is closed half of the time";
    let closed = part("closed", title, Outage::Closed);
    let wait = humantime::format_duration(times.refresh / 5);
    let title = format!("the same, with breaker.open = {wait}");
    let sooner = Part {
        breaker: times.refresh / 5,
        ..part("sooner", title.leak(), Outage::Closed)
    };
    let well = part("well", "the upstream is well", Outage::Never);
    let parts = [well, impatient, busy, closed, sooner];
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|n| n == name);
    for part in parts.into_iter().filter(|part| wanted(part.name)) {
        runtime.block_on(run(part, times));
    }
    let pace = overload::Pace::new(short);
    if wanted("overload") {
        runtime.block_on(overload::overload(pace, &named));
    }
    if wanted("sick") {
        runtime.block_on(overload::sick(pace));
    }
}
