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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heliostat::app::Service;
use heliostat::clock::{Clock, SystemClock};
use heliostat::config;
use heliostat::front::{Body, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DAY: i64 = 86_400_000;
const CONNECTIONS: u64 = 16;

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

/// A connection that is kept, with as little around it as can be.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: vec![0; 1 << 20],
        }
    }

    /// Posts `body` and reads the answer; the length of its body, and its Cache-Status.
    async fn post(&mut self, body: &str) -> (usize, String) {
        let head = format!(
            "POST /api/metric HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body.as_bytes()].concat();
        self.stream.write_all(&request).await.unwrap();
        let mut filled = 0;
        let (head, body_start) = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            filled += read;
            let end = self.buffer[..filled]
                .windows(4)
                .position(|w| w == b"\r\n\r\n");
            if let Some(end) = end {
                let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
                break (head, end + 4);
            }
        };
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let field = |name: &str| {
            let line = head.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let length: usize = field("content-length:").parse().unwrap();
        let mut left = (body_start + length).saturating_sub(filled);
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            left = left.saturating_sub(read);
        }
        (length, field("cache-status:"))
    }
}

fn query(start: i64, end: i64) -> String {
    let condition = |key: &str, value: &str| {
        format!(
            r#"{{"key":"{key}","value":{{"value":"{value}","_type":"StringValue"}},"_type":"EqualityCondition"}}"#
        )
    };
    format!(
        r#"{{"connectionDetails":{{}},"query":{{"conditions":[{},{}],"startTime":{start},"endTime":{end},"aggregation":{{"method":"MEAN","bucketSizeMillis":60000,"_type":"Aggregation"}}}}}}"#,
        condition("name", "cpu.usage_percent"),
        condition("host", "web-1"),
    )
}

/// One row of the table.
struct Row {
    what: &'static str,
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

fn row(what: &'static str, mut times: Vec<Duration>, wall: Duration) -> Row {
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    Row {
        what,
        per_second: times.len() as f64 / wall.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
    }
}

/// As many requests as `duration` allows, over several connections.
async fn load(
    what: &'static str,
    address: &str,
    duration: Duration,
    body: impl Fn(u64) -> String + Clone + Send + 'static,
    expected: &'static str,
) -> Row {
    let begun = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (address, body) = (address.to_owned(), body.clone());
            tokio::spawn(async move {
                let mut client = Client::connect(&address).await;
                let mut times = Vec::new();
                let mut round = number;
                while begun.elapsed() < duration {
                    let body = body(round);
                    let asked = Instant::now();
                    let (_, cache) = client.post(&body).await;
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
    let address = service.address().unwrap().to_string();
    tokio::spawn(service.run(std::future::pending()));

    // A day that has settled: 1,440 buckets.
    let end = clock.now() / DAY * DAY;
    let day = query(end - DAY, end);
    let mut client = Client::connect(&address).await;
    client.post(&query(end - 2 * DAY, end)).await;
    let (length, _) = client.post(&day).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bare = listener.local_addr().unwrap().to_string();
    let bytes = bytes::Bytes::from(vec![b' '; length]);
    let handler = move |_| {
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
            &bare,
            duration,
            move |_| same.clone(),
            "",
        )
        .await,
        load(
            "full hit, one window",
            &address,
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
            &address,
            duration,
            slide,
            "heliostat; hit",
        )
        .await,
    );

    let mut times = Vec::new();
    let begun = Instant::now();
    let tail = |clock: &BenchClock| query((clock.now() - DAY) / 60_000 * 60_000, clock.now());
    client.post(&tail(&clock)).await;
    for _ in 0..rounds {
        clock.pass(10_000);
        let asked = Instant::now();
        let (_, cache) = client.post(&tail(&clock)).await;
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
        let (_, cache) = client.post(&query(end - back - DAY, end - back)).await;
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
            format!("{:.3} ms", row.p50.as_secs_f64() * 1000.0),
            format!("{:.3} ms", row.p99.as_secs_f64() * 1000.0),
            if ratio > 0.01 {
                format!("{ratio:.2}")
            } else {
                "-".to_owned()
            },
        );
    }
}
