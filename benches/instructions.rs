//! Number of instructions per hit and per cold miss outside the kernel.
//!
//! Callgrind counts those of a server with one thread, from when it has everything cached until it
//! has been asked some hundred times. Unlike times, the figures hardly depend on the machine and on
//! what else it does.
//!
//! `cargo bench --bench instructions`; it needs valgrind, and does nothing without it; the row with
//! both levels of the cache behind a hit needs `redis-server`. `-- --profile` shows the functions in which
//! hits and misses spend their instructions.
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
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heliostat::clock::{Clock, SystemClock};
use support::asking::{ALIKE, Ask, DAY, MINUTE, Shape};
use support::load::{Cache, Client};
use support::prometheus::{Quick, Range, Request, vector};
use support::redis::{Redis, shared};
use support::server::{Kind, Server, was_server};
use support::upstream::Upstream;

const SIZES: [i64; 3] = [50, 1440, 30_240];
const WARM_UP: i64 = 20;
const HITS: i64 = 300;
/// The time for which work without requests is counted.
const IDLE: Duration = Duration::from_secs(10);
/// The number of positions of a sliding window.
const SLIDES: i64 = 200;

/// Misses are fewer: they are dearer.
const MISSES: i64 = 30;

/// The queries sent to a server.
#[derive(Clone, Copy)]
struct Case {
    kind: Kind<'static>,
    /// Whether each query is for a new lane.
    misses: bool,
    /// The distance of each window from the previous one, in milliseconds.
    slide: i64,
    shape: Shape,
    /// Set if it works without requests, too.
    beats: bool,
}

impl Case {
    /// Returns the instructions of one hit of `points`.
    fn instructions(&self, points: i64) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        self.instructions_in(folder.path(), points)
    }

    /// Returns the same, and leaves what callgrind has counted in `folder`.
    fn instructions_in(&self, folder: &Path, points: i64) -> u64 {
        // Each dump gets a number.
        let file = folder.join("callgrind.out");
        let out = format!("--callgrind-out-file={}", file.display());
        let server = Server::start_in_valgrind(&["--tool=callgrind", &out], self.kind);
        let end = (SystemClock::default().now() / DAY - 1) * DAY;
        let window = |lane: u32, back: i64, points: i64| Ask {
            shape: self.shape,
            lane,
            start: end - back - points * self.shape.step(),
            end: end - back,
        };
        let path = match self.kind {
            Kind::Bare => format!("/{}", window(1, 0, points).length()),
            Kind::Heliostat(_) => "/api/metric".to_owned(),
        };
        let mut client = Client::connect(server.address, &path, self.shape);
        let expected = match self.kind {
            Kind::Bare => Cache::Absent,
            Kind::Heliostat(_) => {
                client.ask(&window(1, 0, points + 2 * SLIDES), Cache::Forwarded);
                match self.misses {
                    true => Cache::Forwarded,
                    false => Cache::Hit,
                }
            }
        };
        let mut lane = ALIKE;
        let mut ask = |times| {
            for n in 0..times {
                lane += u32::from(self.misses);
                let lane = if self.misses { lane } else { 1 };
                client.ask(&window(lane, n % SLIDES * self.slide, points), expected);
            }
        };
        let times = if self.misses { MISSES } else { HITS };
        ask(WARM_UP);
        // What was fetched has been written.
        std::thread::sleep(Duration::from_millis(500));
        let counted = |during: &mut dyn FnMut()| counted(&server, folder, during);
        let (idle, long) = match self.beats {
            true => counted(&mut || std::thread::sleep(IDLE)),
            false => (0.0, IDLE),
        };
        let (all, took) = counted(&mut || ask(times));
        let beside = idle * took.as_secs_f64() / long.as_secs_f64();
        ((all - beside) / times as f64) as u64
    }
}

/// Returns the instructions of `server` and the time `during` something; its dumps are in `folder`.
fn counted(server: &Server, folder: &Path, during: &mut dyn FnMut()) -> (f64, Duration) {
    control(server, "--zero");
    let began = Instant::now();
    during();
    let took = began.elapsed();
    control(server, "--dump");
    // A server dumps once more when it ends.
    let kept = folder.join(KEPT);
    std::fs::copy(newest(folder), &kept).unwrap();
    let text = std::fs::read_to_string(kept).unwrap();
    let total = text.lines().find_map(|l| l.strip_prefix("totals: "));
    (total.unwrap().trim().parse::<f64>().unwrap(), took)
}

/// The copy of the last dump that was asked for.
const KEPT: &str = "kept";

/// Returns the newest dump in `folder`.
fn newest(folder: &Path) -> PathBuf {
    let dumps = std::fs::read_dir(folder).unwrap();
    let dumps = dumps.map(|entry| entry.unwrap().path());
    let newest = dumps.max_by_key(|path| path.metadata().unwrap().modified().unwrap());
    newest.unwrap()
}

/// Prints the functions in which a request spends most of its `instructions`, as counted in `folder`: by
/// themselves, and with those that they call.
fn print_profile(folder: &Path, name: &str, instructions: u64) {
    const SHOWN: usize = 40;
    println!("\n{name}: {instructions} instructions");
    for (option, title) in [
        ("--auto=no", "by themselves"),
        ("--inclusive=yes", "with what they call"),
    ] {
        let mut annotate = std::process::Command::new("callgrind_annotate");
        annotate.args([option, "--auto=no", "--threshold=100"]);
        let output = annotate.arg(folder.join(KEPT)).output().unwrap().stdout;
        println!("{title}:");
        let text = String::from_utf8_lossy(&output);
        let lines = text.lines().filter_map(|line| {
            let (share, function) = line.split_once('%')?;
            let share: f64 = share.rsplit('(').next()?.trim().parse().ok()?;
            let function = function.strip_prefix(") ")?;
            let function = function.split(" [").next()?.trim_start_matches("???:");
            (function != "PROGRAM TOTALS").then_some((share, function))
        });
        for (share, function) in lines.take(SHOWN) {
            let each = share / 100.0 * instructions as f64;
            println!("{each:>12.0}{share:>7.1} % {function:.110}");
        }
    }
}

/// A request of Prometheus' API: its name, its bytes, and the length of the body of its answer.
type Named = (String, Vec<u8>, usize);

/// Returns the configuration of a server, and the requests of Prometheus' API that are counted.
fn requests() -> (&'static str, Vec<Named>) {
    const MINUTES: i64 = 60;
    let clock = Arc::new(SystemClock::default());
    let end = (clock.now() / DAY - 1) * DAY / 1000;
    let config: &'static str = Quick::start(clock).config().leak();
    let range = |series| Range {
        series,
        lane: 1,
        start: end - (MINUTES - 1) * 60,
        end,
        step: 60,
    };
    let ranges = [1, 100].map(|series| {
        let range = range(series);
        let request = Request::new("/api/v1/query_range", &range)
            .of(&range)
            .to_vec();
        (
            format!("range of 60, {series} series"),
            request,
            range.length(),
        )
    });
    let query = format!("query=up&time={end}");
    let request = format!(
        "POST /api/v1/query HTTP/1.1\r\nhost: bench\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{query}",
        query.len()
    );
    let length = vector(&end.to_string()).len();
    let instant = ("instant, 1 series".to_owned(), request.into_bytes(), length);
    (config, ranges.into_iter().chain([instant]).collect())
}

/// Prints where hits of Prometheus' API spend their instructions.
fn profile_prometheus() {
    let (config, requests) = requests();
    for (name, request, length) in requests {
        let folder = tempfile::tempdir().unwrap();
        let hit = of_request(folder.path(), Kind::Heliostat(config), &request, length);
        print_profile(folder.path(), &name, hit);
    }
}

/// Prints the instructions of hits of Prometheus' API, beside bare hyper with as many bytes.
fn prometheus() {
    let (config, requests) = requests();
    println!(
        "\n{:<32}{:>10}{:>12}",
        "hits of Prometheus' API", "", "bare hyper"
    );
    for (name, request, length) in requests {
        let text = String::from_utf8(request.clone()).unwrap();
        let path = text.split(' ').nth(1).unwrap();
        let bare = text.replace(path, &format!("/{length}")).into_bytes();
        let of_request = |kind, request: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            of_request(folder.path(), kind, request, length)
        };
        let hit = of_request(Kind::Heliostat(config), &request);
        let limit = of_request(Kind::Bare, &bare);
        println!("{name:<32}{hit:>10}{limit:>12}");
    }
}

/// Returns the instructions of a server of this `kind` for one `request`, whose answer has a body of
/// `length`; leaves what callgrind has counted in `folder`.
fn of_request(folder: &Path, kind: Kind<'static>, request: &[u8], length: usize) -> u64 {
    let file = folder.join("callgrind.out");
    let out = format!("--callgrind-out-file={}", file.display());
    let server = Server::start_in_valgrind(&["--tool=callgrind", &out], kind);
    let mut stream = TcpStream::connect(server.address).unwrap();
    let mut answer = vec![0; 1 << 20];
    let mut ask = |times| {
        for _ in 0..times {
            stream.write_all(request).unwrap();
            let mut filled = 0;
            let head = loop {
                filled += stream.read(&mut answer[filled..]).unwrap();
                let blank = answer[..filled].windows(4).position(|w| w == b"\r\n\r\n");
                if let Some(blank) = blank.filter(|blank| filled >= blank + 4 + length) {
                    assert_eq!(filled, blank + 4 + length);
                    break String::from_utf8_lossy(&answer[..blank]);
                }
            };
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
    };
    ask(WARM_UP);
    std::thread::sleep(Duration::from_millis(500));
    let (all, _) = counted(&server, folder, &mut || ask(HITS));
    (all / HITS as f64) as u64
}

/// Tells callgrind what to do with what it has counted of `server`.
fn control(server: &Server, what: &str) {
    let mut control = std::process::Command::new("callgrind_control");
    let done = control.arg(what).arg(server.process_id().to_string());
    let text = String::from_utf8_lossy(&done.output().unwrap().stdout).into_owned();
    assert!(text.contains("OK"), "callgrind_control: {text}");
}

fn main() {
    if was_server() {
        return;
    }
    let mut valgrind = std::process::Command::new("valgrind");
    if valgrind.arg("--version").output().is_err() {
        println!("valgrind is not here: instructions are not counted");
        return;
    }
    let config: &'static str = Upstream::start().config("1GiB").leak();
    let heliostat = |shape, slide| Case {
        kind: Kind::Heliostat(config),
        misses: false,
        slide,
        shape,
        beats: false,
    };
    let bare = Case {
        kind: Kind::Bare,
        misses: false,
        slide: 0,
        shape: Shape::Buckets,
        beats: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let redis = Redis::start(folder.path());
    let mut cases = vec![
        ("bare hyper, as many bytes", bare),
        ("hit, fixed window", heliostat(Shape::Buckets, 0)),
        ("hit, sliding, aligned", heliostat(Shape::Buckets, MINUTE)),
        (
            "hit, sliding, not aligned",
            heliostat(Shape::Buckets, 61_000),
        ),
        ("hit, raw points", heliostat(Shape::Raw, 0)),
        (
            "cold miss",
            Case {
                misses: true,
                ..heliostat(Shape::Buckets, 0)
            },
        ),
    ];
    if let Some(redis) = &redis {
        let disk = folder.path().join("disk");
        let shared = shared(redis.port, "50ms");
        let both = format!("{config}{shared}[cache.disk]\ndir = {disk:?}\n");
        let case = Case {
            kind: Kind::Heliostat(both.leak()),
            beats: true,
            ..heliostat(Shape::Buckets, 0)
        };
        cases.insert(2, ("the same, both levels behind it", case));
    }
    if std::env::args().any(|a| a == "--profile") {
        let miss = Case {
            misses: true,
            ..heliostat(Shape::Buckets, 0)
        };
        for (name, case, points) in [
            ("bare hyper", bare, SIZES[0]),
            ("hit", heliostat(Shape::Buckets, 0), SIZES[0]),
            ("cold miss", miss, SIZES[0]),
            ("cold miss", miss, SIZES[2]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let instructions = case.instructions_in(folder.path(), points);
            print_profile(
                folder.path(),
                &format!("{name} of {points} points"),
                instructions,
            );
        }
        return profile_prometheus();
    }
    println!("instructions a request, without the kernel, at so many points");
    println!(
        "{:<32}{:>10}{:>10}{:>10}{:>24}",
        "", SIZES[0], SIZES[1], SIZES[2], "growth of the last step"
    );
    for (name, case) in cases {
        let [small, day, weeks] = SIZES.map(|points| case.instructions(points));
        let growth = (weeks as f64 / day as f64 - 1.0) * 100.0;
        println!("{name:<32}{small:>10}{day:>10}{weeks:>10}{growth:>22.1} %");
    }
    prometheus();
}
