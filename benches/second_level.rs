//! Latency of an answer from a second level of the cache, compared with one from memory and one
//! from an upstream that takes 50 ms.
//!
//! One Heliostat fetches what is asked for; another, which knows nothing, is asked the same: beside it
//! over one Redis, or after it over one folder. Redis is left out where there is no `redis-server`.
//!
//! `cargo bench --bench second_level`: a minute. With `-- --short` some seconds.
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
use support::asking::{Ask, DAY, Shape};
use support::load::{Cache, Client};
use support::quantile;
use support::server::{Kind, Server, was_server};
use support::upstream::Upstream;

/// A Redis of its own; it ends when dropped.
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

/// Times of one request for each of so many lanes.
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
    let lanes = match std::env::args().any(|a| a == "--short") {
        true => 20,
        false => 400,
    };
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
        // What is fetched right at the start is not shared yet.
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
