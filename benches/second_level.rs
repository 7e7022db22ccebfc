//! Latency of an answer from a second level of the cache, compared with one from memory and one
//! from an upstream that takes 50 ms.
//!
//! One Heliostat fetches what is asked for; another, which knows nothing, is asked the same: beside it
//! over one Redis, or after it over one folder. Redis is left out where there is no `redis-server`.
//! Then: a process that is killed and started over a week of many lanes; how long it takes to open a
//! disk, and how much is on it; and hits beside misses while Redis is stopped, late, corrupted or full.
//!
//! `cargo bench --bench second_level`: some minutes and 12 GiB of disk. With `-- --short` some
//! seconds; `-- --part NAME` runs one part: levels, restart, opening, faults.
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

use std::path::Path;
use std::time::{Duration, Instant};

use heliostat::clock::{Clock, SystemClock};
use heliostat::store::disk::Disk;
use heliostat::store::key::{LaneName, Slot, ValueKey};
use heliostat::store::{CacheLevel, Put};
use support::asking::{Ask, DAY, Shape};
use support::load::{Cache, Client};
use support::redis::{Fault, Proxy, Redis, shared};
use support::server::{Kind, Server, was_server};
use support::upstream::Upstream;
use support::{quantile, signal};

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

/// Prints the effect of each fault of a Redis on hits and misses, and how soon it is used again. Each is
/// compared with the time right before, when all was well.
fn faults(upstream: &Upstream, long: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let Some(redis) = Redis::start(folder.path()) else {
        return;
    };
    upstream.set_latency(0);
    let proxy = Proxy::to(redis.port);
    let config = upstream.config("256MiB") + &shared(proxy.port, "50ms");
    let server = Server::start(Kind::Heliostat(&config));
    while server.metric("heliostat_replicas ") < 1.0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    times(&server, Shape::Raw, 60, 1, Cache::Forwarded);
    let mut lane = 1;
    let read =
        "heliostat_second_level_requests_total{level=\"shared\",op=\"read\",outcome=\"miss\"} ";
    println!(
        "{:<16}{:>12}{:>12}{:>12}{:>12}{:>10}{:>16}{:>10}{:>14}{:>14}",
        "Redis",
        "hits p50",
        "(well)",
        "hits p99",
        "(well)",
        "p99 times",
        "misses p50",
        "> 45 ms",
        "longest",
        "asked again"
    );
    for fault in ["stopped", "late", "corrupted", "full", "none"] {
        let (mut well, _) = beside(&server, long, &mut lane);
        match fault {
            "stopped" => redis.signal("-STOP"),
            "late" => proxy.set(Fault::Late),
            "corrupted" => proxy.set(Fault::Corrupted),
            "full" => {
                redis.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
                redis.command(&["CONFIG", "SET", "maxmemory", "1mb"]);
            }
            _ => {}
        }
        let (mut hits, mut misses) = beside(&server, long, &mut lane);
        match fault {
            "stopped" => redis.signal("-CONT"),
            "full" => redis.command(&["CONFIG", "SET", "maxmemory", "0"]),
            _ => proxy.set(Fault::None),
        }
        let (began, before) = (Instant::now(), server.metric(read));
        while server.metric(read) <= before {
            beside(&server, Duration::from_millis(20), &mut lane);
        }
        let again = began.elapsed();
        let late = misses.iter().filter(|m| **m > Duration::from_millis(45));
        let late = format!("{} of {}", late.count(), misses.len());
        let p99 = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() * 99 / 100].as_secs_f64()
        };
        println!(
            "{fault:<16}{:>12}{:>12}{:>12}{:>12}{:>10.2}{:>16}{late:>10}{:>14}{:>14}",
            quantile(&mut hits, 0.5),
            quantile(&mut well, 0.5),
            quantile(&mut hits, 0.99),
            quantile(&mut well, 0.99),
            p99(&mut hits) / p99(&mut well),
            quantile(&mut misses, 0.5),
            quantile(&mut misses, 1.0),
            format!("{again:.1?}"),
        );
    }
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
    // All parts, or one.
    let part = std::env::args().skip_while(|a| a != "--part").nth(1);
    let wanted = |name: &str| part.as_ref().is_none_or(|part| part == name);
    let upstream = Upstream::start();
    if wanted("levels") {
        levels(&upstream, if short { 20 } else { 400 });
    }
    if wanted("restart") {
        restart(&upstream, if short { 50 } else { 10_000 });
    }
    if wanted("opening") {
        opening(if short { 1 } else { 10 });
    }
    if wanted("faults") {
        faults(&upstream, Duration::from_secs(if short { 1 } else { 10 }));
    }
}

/// Prints what answers take from each level.
fn levels(upstream: &Upstream, lanes: u32) {
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
        let shared = config.clone() + &shared(redis.port, "1s");
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
}
