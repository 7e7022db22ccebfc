//! Latency of an answer from a second level of the cache, compared with one from memory and one
//! from an upstream that takes 50 ms.
//!
//! One Heliostat fetches what is asked for; another, which knows nothing, is asked the same: beside it
//! over one Redis, or after it over one folder. Redis is left out where there is no `redis-server`.
//! Then: a process that is killed and started over a week of many lanes; how long it takes to open a
//! disk, and how much is on it; and hits beside misses while Redis does not answer.
//!
//! `cargo bench --bench second_level`: some minutes and 5 GiB of disk. With `-- --short` some
//! seconds.
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

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use heliostat::clock::{Clock, SystemClock};
use heliostat::store::disk::Disk;
use heliostat::store::key::{LaneName, Slot, ValueKey};
use heliostat::store::{CacheLevel, Put};
use support::asking::{Ask, DAY, Shape};
use support::load::{Cache, Client};
use support::quantile;
use support::server::{Kind, Server, was_server};
use support::upstream::Upstream;

/// A separate Redis; it ends when dropped.
struct Redis {
    child: Child,
    port: u16,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    fn start(dir: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, port })
    }
}

/// Returns the times of one request for each of `lanes` lanes.
fn times(server: &Server, shape: Shape, points: i64, lanes: u32, expected: Cache) -> Vec<Duration> {
    let mut client = Client::connect(server.address, "/api/metric", shape);
    let end = (SystemClock::default().now() / DAY - 1) * DAY;
    let ask = |lane| Ask {
        shape,
        lane,
        start: end - points * shape.step(),
        end,
    };
    let asks = (1..=lanes).map(|lane| {
        let began = Instant::now();
        client.ask(&ask(lane), expected);
        began.elapsed()
    });
    asks.collect()
}

fn signal(process: u32, name: &str) {
    let mut kill = Command::new("kill");
    assert!(
        kill.args([name, &process.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// Returns the bytes of all files in `dir`.
fn on_disk(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

const MIB: u64 = 1 << 20;

/// Kills a process that has fetched a week of each lane, and requests the last hour from its
/// successor.
fn restart(upstream: &Upstream, lanes: u32) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cache");
    let config = upstream.config("256MiB");
    let disk = format!("{config}\n[cache.disk]\ndir = {dir:?}\n");
    upstream.set_latency(0);
    let shape = Shape::Buckets;
    let first = Server::start(Kind::Heliostat(&disk));
    times(
        &first,
        shape,
        7 * DAY / shape.step(),
        lanes,
        Cache::Forwarded,
    );
    written(&first, "disk");
    signal(first.process_id(), "-9");
    drop(first);
    let began = Instant::now();
    let second = Server::start(Kind::Heliostat(&disk));
    let started = began.elapsed();
    // An answer that needed the upstream would not be a hit.
    let mut found = times(&second, shape, 60, lanes, Cache::Hit);
    let hits = &mut times(&second, shape, 60, lanes, Cache::Hit);
    println!(
        "restart after kill -9: {lanes} lanes of a week, {} MiB on disk; listening after {started:.1?}; \
         no call; first answers p50 {}, p99 {} (hits {}, {})",
        on_disk(&dir) / MIB,
        quantile(&mut found, 0.5),
        quantile(&mut found, 0.99),
        quantile(hits, 0.5),
        quantile(hits, 0.99),
    );
}

/// Fills a disk of `gib` beyond its size, and opens it.
fn opening(gib: u64) {
    const VALUE: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let size = gib << 30;
    let open = || {
        let clock = std::sync::Arc::new(SystemClock::default());
        Disk::open(folder.path(), size, clock).unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let disk = open();
    let (mut n, mut most) = (0u64, 0);
    while n * VALUE as u64 <= size / 10 * 11 {
        let put = |n: u64| {
            let mut lane = [0; 32];
            lane[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
            let bytes = n.to_le_bytes().repeat(VALUE / 8);
            Put {
                key: ValueKey::new(&LaneName(lane), Slot::Page(1)),
                replaces: None,
                bytes,
                ttl: Duration::from_secs(604_800),
            }
        };
        let puts = (n..n + 256).map(put).collect();
        runtime.block_on(disk.write(puts)).unwrap();
        n += 256;
        if n.is_multiple_of(4096) {
            most = most.max(on_disk(folder.path()));
        }
    }
    drop(disk);
    let began = Instant::now();
    let disk = open();
    let took = began.elapsed();
    let holdings = disk.holdings().unwrap();
    println!(
        "disk of {gib} GiB: {} values of 4 KiB; opened in {took:.0?}; at most {} MiB on disk, of {}",
        holdings.values,
        most / MIB,
        size / MIB,
    );
    assert!(most <= size);
}

/// Sends hits of one lane, and misses of new lanes beside them, for the time `long`.
fn beside(server: &Server, long: Duration, lane: &mut u32) -> (Vec<Duration>, Vec<Duration>) {
    let shape = Shape::Raw;
    let end = (SystemClock::default().now() / DAY - 1) * DAY;
    let ask = |lane| Ask {
        shape,
        lane,
        start: end - 60 * shape.step(),
        end,
    };
    let client = || Client::connect(server.address, "/api/metric", shape);
    let (mut one, mut two) = (client(), client());
    let until = Instant::now() + long;
    let timed = |client: &mut Client, ask: &Ask, expected| {
        let began = Instant::now();
        client.ask(ask, expected);
        began.elapsed()
    };
    std::thread::scope(|scope| {
        let hits = scope.spawn(|| {
            let mut took = Vec::new();
            while Instant::now() < until {
                took.push(timed(&mut one, &ask(1), Cache::Hit));
                std::thread::sleep(Duration::from_micros(100));
            }
            took
        });
        let mut misses = Vec::new();
        while Instant::now() < until {
            *lane += 1;
            misses.push(timed(&mut two, &ask(*lane), Cache::Forwarded));
            std::thread::sleep(Duration::from_millis(3));
        }
        (hits.join().unwrap(), misses)
    })
}

/// Prints how a Redis that does not respond affects hits and misses, and how soon it is used again.
fn stopped(upstream: &Upstream, long: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(folder.path()) else {
        return;
    };
    upstream.set_latency(0);
    let shared = format!(
        "{}\n[cache.shared]\nurls = [\"redis://127.0.0.1:{}\"]\nsecret = \"a secret of the bench\"\n",
        upstream.config("256MiB"),
        redis.port
    );
    let server = Server::start(Kind::Heliostat(&shared));
    while server.metric("heliostat_replicas ") < 1.0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    times(&server, Shape::Raw, 60, 1, Cache::Forwarded);
    let mut lane = 1;
    let show = |name: &str, (mut hits, mut misses): (Vec<Duration>, Vec<Duration>)| {
        let late = misses.iter().filter(|m| **m > Duration::from_millis(45));
        let late = late.count();
        println!(
            "{name:<16} hits p50 {}, p99 {}; {} misses p50 {}, {late} over 45 ms, longest {}",
            quantile(&mut hits, 0.5),
            quantile(&mut hits, 0.99),
            misses.len(),
            quantile(&mut misses, 0.5),
            quantile(&mut misses, 1.0),
        );
    };
    show("Redis well", beside(&server, long, &mut lane));
    signal(redis.child.id(), "-STOP");
    show("Redis stopped", beside(&server, long, &mut lane));
    signal(redis.child.id(), "-CONT");
    let began = Instant::now();
    let read =
        "heliostat_second_level_requests_total{level=\"shared\",op=\"read\",outcome=\"miss\"} ";
    let before = server.metric(read);
    while server.metric(read) <= before {
        beside(&server, Duration::from_millis(20), &mut lane);
    }
    println!("asked again {:.1?} after it goes on", began.elapsed());
    show("Redis well again", beside(&server, long, &mut lane));
}

fn written(server: &Server, level: &str) {
    let queue = format!("heliostat_second_level_queue_bytes{{level={level:?}}} ");
    while server.metric(&queue) > 0.0 {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn row(level: &str, shape: Shape, points: i64, mut all: [Vec<Duration>; 3]) {
    let [upstream, second, hit] = &mut all;
    println!(
        "{level:<8}{shape:<10}{points:>7}{:>14}{:>14}{:>14}{:>14}{:>14}",
        quantile(upstream, 0.5),
        quantile(second, 0.5),
        quantile(second, 0.99),
        quantile(hit, 0.5),
        quantile(hit, 0.99),
        shape = format!("{shape:?}"),
    );
}

fn main() {
    if was_server() {
        return;
    }
    let short = std::env::args().any(|a| a == "--short");
    let lanes = if short { 20 } else { 400 };
    let upstream = Upstream::start();
    upstream.set_latency(50);
    let config = upstream.config("256MiB");
    println!(
        "{:<8}{:<10}{:>7}{:>14}{:>14}{:>14}{:>14}{:>14}",
        "level", "shape", "points", "upstream p50", "level p50", "level p99", "hit p50", "hit p99"
    );
    for (shape, points) in [(Shape::Buckets, 60), (Shape::Raw, 60), (Shape::Raw, 1440)] {
        let folder = tempfile::tempdir().unwrap();
        let disk = format!(
            "{config}\n[cache.disk]\ndir = {:?}\n",
            folder.path().join("cache")
        );
        let first = Server::start(Kind::Heliostat(&disk));
        let fetched = times(&first, shape, points, lanes, Cache::Forwarded);
        written(&first, "disk");
        drop(first);
        let second = Server::start(Kind::Heliostat(&disk));
        let found = times(&second, shape, points, lanes, Cache::Hit);
        let hits = times(&second, shape, points, lanes, Cache::Hit);
        row("disk", shape, points, [fetched, found, hits]);
        let Some(redis) = Redis::start(folder.path()) else {
            println!("there is no redis-server: left out");
            continue;
        };
        let shared = format!(
            "{config}\n[cache.shared]\nurls = [\"redis://127.0.0.1:{}\"]\nsecret = \"a secret of the bench\"\ntimeout = \"1s\"\n",
            redis.port
        );
        let first = Server::start(Kind::Heliostat(&shared));
        while first.metric("heliostat_replicas ") < 1.0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Data fetched right at the start is not shared yet.
        std::thread::sleep(Duration::from_secs(1));
        let fetched = times(&first, shape, points, lanes, Cache::Forwarded);
        written(&first, "shared");
        let second = Server::start(Kind::Heliostat(&shared));
        while second.metric("heliostat_replicas ") < 2.0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        let found = times(&second, shape, points, lanes, Cache::Hit);
        let hits = times(&second, shape, points, lanes, Cache::Hit);
        row("shared", shape, points, [fetched, found, hits]);
    }
    restart(&upstream, if short { 50 } else { 10_000 });
    opening(if short { 1 } else { 4 });
    let long = if short { 2 } else { 10 };
    stopped(&upstream, Duration::from_secs(long));
}
