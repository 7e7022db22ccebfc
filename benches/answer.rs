//! What does an answer cost: a full hit, a refresh of the tail, a cold miss?
//!
//! Everything runs in this process on loopback: a source that takes 50 ms, a Heliostat in front
//! of it, and a client. The limit is a bare hyper server that hands out the same bytes. Compare
//! the ratios of one run; absolute figures depend on the machine.
//!
//! `cargo bench --bench answer`, or `-- --short` for a run of a few seconds.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heliostat::app::Service;
use heliostat::clock::{Clock, SystemClock};
use heliostat::config;
use heliostat::front::{Body, listen};
use support::{Client, quantile};
use tokio::net::TcpListener;

const DAY: i64 = 86_400_000;
const CONNECTIONS: u64 = 16;
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

const CONFIG: &str = r#"
[[upstream]]
name = "source"
kind = "demo"
demo = { latency = "50ms", per_second = 1000000 }
rate_limit = { per_second = 1000000, burst = 1000000 }
max_concurrency = 64
"#;

/// The machine's clocks, set forwards as the bench likes.
#[derive(Debug)]
struct BenchClock {
    machine: SystemClock,
    ahead_millis: AtomicU64,
}

impl BenchClock {
    fn pass(&self, millis: u64) {
        self.ahead_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for BenchClock {
    fn now(&self) -> i64 {
        self.machine.now() + self.ahead_millis.load(Ordering::Relaxed) as i64
    }

    fn monotonic(&self) -> Duration {
        self.machine.monotonic() + Duration::from_millis(self.ahead_millis.load(Ordering::Relaxed))
    }
}

/// Asks for what `body` says; the length of the answer's body, and its Cache-Status.
async fn ask(client: &mut Client, body: &str) -> (usize, String) {
    let answer = client.post(body).await;
    assert_eq!(answer.status(), 200);
    let cache = answer.header("cache-status").to_owned();
    (answer.body.len(), cache)
}

fn query(start: i64, end: i64) -> String {
    let conditions = [("name", "cpu.usage_percent"), ("host", "web-1")];
    support::query("{}", conditions, start, end)
}

/// One row of the table.
struct Row {
    what: &'static str,
    per_second: f64,
    p50: String,
    p99: String,
}

fn row(what: &'static str, mut times: Vec<Duration>, wall: Duration) -> Row {
    Row {
        what,
        per_second: times.len() as f64 / wall.as_secs_f64(),
        p50: quantile(&mut times, 0.5),
        p99: quantile(&mut times, 0.99),
    }
}

/// As many requests as `duration` allows, over several connections.
async fn load(
    what: &'static str,
    address: SocketAddr,
    duration: Duration,
    body: impl Fn(u64) -> String + Clone + Send + 'static,
    expected: &'static str,
) -> Row {
    let begun = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let body = body.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(address, LOCAL).await;
                let mut times = Vec::new();
                let mut round = number;
                while begun.elapsed() < duration {
                    let body = body(round);
                    let asked = Instant::now();
                    let (_, cache) = ask(&mut client, &body).await;
                    times.push(asked.elapsed());
                    assert!(cache.starts_with(expected), "{cache}");
                    round += CONNECTIONS;
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.unwrap());
    }
    row(what, times, begun.elapsed())
}

async fn run(duration: Duration, rounds: u64) -> Vec<Row> {
    let clock = Arc::new(BenchClock {
        machine: SystemClock::default(),
        ahead_millis: AtomicU64::new(0),
    });
    let local = (
        "HELIOSTAT_SERVER__LISTEN".to_owned(),
        "127.0.0.1:0".to_owned(),
    );
    let config = config::parse(CONFIG, "bench", &BTreeMap::from([local])).unwrap();
    let service = Service::bind(&config, clock.clone()).await.unwrap();
    let address = service.address().unwrap();
    tokio::spawn(service.run(std::future::pending()));

    // A day that has settled: 1,440 buckets.
    let end = clock.now() / DAY * DAY;
    let day = query(end - DAY, end);
    let mut client = Client::connect(address, LOCAL).await;
    ask(&mut client, &query(end - 2 * DAY, end)).await;
    let (length, _) = ask(&mut client, &day).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bare = listener.local_addr().unwrap();
    let bytes = bytes::Bytes::from(vec![b' '; length]);
    let handler = move |_, _| {
        let body = Body::from(bytes.clone());
        async move { http::Response::new(body) }
    };
    let never = std::future::pending();
    tokio::spawn(listen::serve(listener, handler, never, Duration::ZERO));

    println!("an answer has 1,440 buckets and {length} bytes; {CONNECTIONS} connections");
    let same = day.clone();
    let mut rows = vec![
        load(
            "limit: bare hyper, the same bytes",
            bare,
            duration,
            move |_| same.clone(),
            "",
        )
        .await,
        load(
            "full hit, one window",
            address,
            duration,
            move |_| day.clone(),
            "heliostat; hit",
        )
        .await,
    ];
    let slide = move |round: u64| {
        let back = (round % 1000) as i64 * 61_000;
        query(end - DAY - back, end - back)
    };
    rows.push(
        load(
            "full hit, a window that slides",
            address,
            duration,
            slide,
            "heliostat; hit",
        )
        .await,
    );

    let mut times = Vec::new();
    let begun = Instant::now();
    let tail = |clock: &BenchClock| query((clock.now() - DAY) / 60_000 * 60_000, clock.now());
    ask(&mut client, &tail(&clock)).await;
    for _ in 0..rounds {
        clock.pass(10_000);
        let asked = Instant::now();
        let (_, cache) = ask(&mut client, &tail(&clock)).await;
        times.push(asked.elapsed());
        assert!(
            cache.contains("fwd=stale") || cache.contains("fwd=partial"),
            "{cache}"
        );
    }
    rows.push(row(
        "refresh of the tail, source takes 50 ms",
        times,
        begun.elapsed(),
    ));

    let mut times = Vec::new();
    let begun = Instant::now();
    for round in 1..=rounds as i64 {
        let back = (10 + round * 2) * DAY;
        let asked = Instant::now();
        let (_, cache) = ask(&mut client, &query(end - back - DAY, end - back)).await;
        times.push(asked.elapsed());
        assert!(cache.contains("fwd=miss"), "{cache}");
    }
    rows.push(row("cold miss, source takes 50 ms", times, begun.elapsed()));
    rows
}

fn main() {
    let short = std::env::args().any(|a| a == "--short");
    let (duration, rounds) = if short {
        (Duration::from_millis(500), 5)
    } else {
        (Duration::from_secs(4), 50)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let rows = runtime.block_on(run(duration, rounds));
    let limit = rows[0].per_second;
    println!(
        "{:<42} {:>12} {:>12} {:>12} {:>10}",
        "", "requests/s", "p50", "p99", "of limit"
    );
    for row in &rows {
        let ratio = row.per_second / limit;
        println!(
            "{:<42} {:>12.0} {:>12} {:>12} {:>10}",
            row.what,
            row.per_second,
            row.p50,
            row.p99,
            if ratio > 0.01 {
                format!("{ratio:.2}")
            } else {
                "-".to_owned()
            },
        );
    }
}
