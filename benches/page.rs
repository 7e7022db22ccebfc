//! The cost of open pages for clients that query data: the times of hits at a given load, without and with ten
//! pages open, each of which asks for what the overview shows every five seconds, in turns.
//!
//! `cargo bench --bench page`: two minutes; or `-- --short`: some seconds. Compare the figures of one run.
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

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};

use heliostat::clock::{Clock, SystemClock};
use support::asking::{Ask, DAY, Shape};
use support::load::{Cache, Sample, Target, open, verify};
use support::server::{Kind, Server, was_server};
use support::upstream::Upstream;

/// The number of open pages.
const PAGES: u32 = 10;
/// The interval of a page's requests.
const EVERY: Duration = Duration::from_secs(5);
/// The requests of a page that shows the overview.
const ASKED: [&str; 3] = ["traffic", "upstreams", "config"];

const CONNECTIONS: u64 = 32;
const POINTS: i64 = 1440;
/// Requests per second, well below the capacity of one core.
const PER_SECOND: f64 = 2000.0;

/// The token `token`.
const ADMIN: &str = "\n[access.admin]\ntokens = [\"sha256:3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0\"]\n";

/// Returns the size of the answers for one refresh of the overview.
fn look(address: SocketAddr) -> usize {
    let mut bytes = 0;
    for what in ASKED {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!(
            "GET /admin/v1/{what} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer token\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{what}");
        bytes += answer.len();
    }
    bytes
}

/// A page that is open until `closed`; its first refresh comes after `offset`.
fn page(address: SocketAddr, offset: Duration, closed: &(Mutex<bool>, Condvar)) {
    // A thread that wakes up to look at a clock would take more CPU time than a page.
    let wait = |until: Instant| {
        let (closed, changed) = closed;
        let left = until.saturating_duration_since(Instant::now());
        let open = |closed: &mut bool| !*closed;
        *changed
            .wait_timeout_while(closed.lock().unwrap(), left, open)
            .unwrap()
            .0
    };
    let mut next = Instant::now() + offset;
    while !wait(next) {
        look(address);
        next += EVERY;
    }
}

fn main() {
    if was_server() {
        return;
    }
    let short = std::env::args().any(|a| a == "--short");
    // A round is as long as a page's interval, so that each page sends its requests once in it.
    let (rounds, round) = if short { (1, EVERY / 5) } else { (12, EVERY) };
    let upstream = Upstream::start();
    let server = Server::start(Kind::Heliostat(&(upstream.config("1GiB") + ADMIN)));
    let now = SystemClock::default().now();
    let end = (now / DAY - 1) * DAY;
    let ask = Ask {
        shape: Shape::Buckets,
        lane: 1,
        start: end - POINTS * Shape::Buckets.step(),
        end,
    };
    verify(server.address, &ask);
    let target = Target::heliostat(server.address, Shape::Buckets);
    let hits = || {
        let start = Barrier::new(CONNECTIONS as usize);
        open(&target, CONNECTIONS, PER_SECOND, round, &start, |_| {
            (ask, Cache::Hit)
        })
    };
    let (mut alone, mut beside) = (Sample::default(), Sample::default());
    for _ in 0..rounds {
        alone.add(hits());
        let closed = (Mutex::new(false), Condvar::new());
        std::thread::scope(|scope| {
            for n in 0..PAGES {
                let (closed, offset) = (&closed, EVERY * n / PAGES);
                let offset = if short { offset / 5 } else { offset };
                scope.spawn(move || page(server.address, offset, closed));
            }
            beside.add(hits());
            *closed.0.lock().unwrap() = true;
            closed.1.notify_all();
        });
    }
    println!("one look at the overview: {} bytes", look(server.address));
    println!("hits of {POINTS} points at {PER_SECOND} requests/s, µs");
    let print = |name: &str, sample: &mut Sample| {
        let times = [0.5, 0.9, 0.99].map(|q| sample.quantile(q));
        println!(
            "{name:<24}p50 {:>7.0}  p90 {:>7.0}  p99 {:>7.0}",
            times[0], times[1], times[2]
        );
        times[2]
    };
    let (before, after) = (
        print("no page", &mut alone),
        print("ten pages open", &mut beside),
    );
    println!("p99 with ten pages: {:.3} times", after / before);
}
