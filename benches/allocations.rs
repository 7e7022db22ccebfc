//! Number of allocations per hit.
//!
//! The server is the only thing in its thread, and the allocations of that thread are counted
//! while a client in another asks. Counting takes an allocator of its own, which is why this is
//! not part of a bench that measures time or instructions.
//!
//! `cargo bench --bench allocations`: some seconds.
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
use std::sync::mpsc;

use heliostat::clock::{Clock, SystemClock};
use support::asking::{Ask, DAY, MINUTE, Shape};
use support::load::{Cache, Client};
use support::redis::{Redis, shared};
use support::server;
use support::upstream::Upstream;
use tokio::sync::oneshot;

const SIZES: [i64; 3] = [50, 1440, 30_240];
const HITS: i64 = 1000;
/// The number of positions of a sliding window.
const SLIDES: i64 = 200;

/// Returns the allocations and allocated bytes of a request that is sent `HITS` times, window after
/// window; with a disk and, if there is one, a Redis behind the cache, if `second` is set.
fn count(config: Option<&str>, second: bool, shape: Shape, points: i64, slide: i64) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let redis = second.then(|| Redis::start(folder.path())).flatten();
    let runtime = server::runtime(false);
    let (address, started) = mpsc::channel();
    let announce = move |at| address.send(at).unwrap();
    match config {
        Some(config) => {
            let mut config = config.to_owned();
            if second {
                let disk = folder.path().join("disk");
                config += &format!("[cache.disk]\ndir = {disk:?}\n");
                let port = redis.as_ref().map(|redis| redis.port);
                config += &port.map_or(String::new(), |port| shared(port, "50ms"));
            }
            runtime.spawn(async move { server::heliostat(&config, announce).await });
        }
        None => {
            runtime.spawn(server::bare(announce));
        }
    }
    let (warm, is_warm) = oneshot::channel();
    let (go, may_go) = mpsc::channel();
    let (done, is_done) = oneshot::channel();
    let cached = config.is_some();
    let client = std::thread::spawn(move || {
        let mut hits = Hits::new(started.recv().unwrap(), cached, shape, points, slide);
        hits.ask(HITS);
        warm.send(()).unwrap();
        may_go.recv().unwrap();
        hits.ask(HITS);
        done.send(()).unwrap();
    });
    runtime.block_on(is_warm).unwrap();
    let counted = allocation_counter::measure(|| {
        go.send(()).unwrap();
        runtime.block_on(is_done).unwrap();
    });
    client.join().unwrap();
    let each = |all: u64| all / HITS as u64;
    (each(counted.count_total), each(counted.bytes_total))
}

struct Hits {
    client: Client,
    shape: Shape,
    points: i64,
    slide: i64,
    end: i64,
    expected: Cache,
}

impl Hits {
    /// A client of a server that has everything cached.
    fn new(address: SocketAddr, cached: bool, shape: Shape, points: i64, slide: i64) -> Self {
        let path = match cached {
            true => "/api/metric".to_owned(),
            false => format!("/{}", shape.length(points)),
        };
        let mut hits = Self {
            client: Client::connect(address, &path, shape),
            shape,
            points,
            slide,
            end: (SystemClock::default().now() / DAY - 1) * DAY,
            expected: Cache::Absent,
        };
        if cached {
            let all = hits.window(0, points + 2 * SLIDES);
            hits.client.ask(&all, Cache::Forwarded);
            hits.expected = Cache::Hit;
        }
        hits
    }

    fn window(&self, back: i64, points: i64) -> Ask {
        let end = self.end - back;
        Ask {
            shape: self.shape,
            lane: 1,
            start: end - points * self.shape.step(),
            end,
        }
    }

    fn ask(&mut self, hits: i64) {
        for hit in 0..hits {
            let window = self.window(hit % SLIDES * self.slide, self.points);
            self.client.ask(&window, self.expected);
        }
    }
}

fn main() {
    let config = Upstream::start().config("1GiB");
    let config = Some(config.as_str());
    let cases = [
        ("bare hyper, as many bytes", None, false, Shape::Buckets, 0),
        ("hit, fixed window", config, false, Shape::Buckets, 0),
        (
            "the same, both levels behind it",
            config,
            true,
            Shape::Buckets,
            0,
        ),
        (
            "hit, sliding, aligned",
            config,
            false,
            Shape::Buckets,
            MINUTE,
        ),
        (
            "hit, sliding, not aligned",
            config,
            false,
            Shape::Buckets,
            61_000,
        ),
        ("hit, raw points", config, false, Shape::Raw, 0),
        (
            "the same, both levels behind it",
            config,
            true,
            Shape::Raw,
            0,
        ),
    ];
    println!("allocations a request (and bytes allocated), at so many points");
    let [a, b, c] = SIZES.map(|s| s.to_string());
    println!("{:<32}{a:>16}{b:>16}{c:>16}", "");
    for (name, config, second, shape, slide) in cases {
        let [a, b, c] = SIZES.map(|points| {
            let (times, bytes) = count(config, second, shape, points, slide);
            format!("{times} ({bytes} B)")
        });
        println!("{name:<32}{a:>16}{b:>16}{c:>16}");
    }
}
