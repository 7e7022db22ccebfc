//! Cost of an answer, as a share of what the wire costs.
//!
//! The limit is hyper handing out as many bytes from memory. It, Heliostat and the load are three
//! processes on loopback; the upstream is a thread beside the load. Compare the ratios of one run:
//! absolute figures depend on the machine. Cases that are compared take turns in short rounds; the
//! requests/s are those of the best round, the times those of all.
//!
//! `cargo bench --bench end_to_end`: some minutes; `-- --short`: half a minute; `-- --storm`: the storm only;
//! `-- --misses`: what misses take, outside the kernel and in it; `-- --hits`: hits of the same windows only.
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

use std::io::Read;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use heliostat::clock::{Clock, SystemClock};
use heliostat::wire::encoding::Encoding;
use support::asking::{ALIKE, Ask, DAY, MINUTE, Shape, mixed};
use support::load::{Cache, Sample, Target, Until, body, closed, open, verify};
use support::server::{Kind, Server, cpu, cpu_of_all, usage, was_server};
use support::upstream::Upstream;

const SIZES: [i64; 3] = [50, 1440, 30_240];
/// Connections of a closed loop. A loop with misses has more, since each miss occupies a
/// connection.
const CONNECTIONS: u64 = 32;
const CONNECTIONS_WITH_MISSES: u64 = 128;
/// Connections of an open loop that send only misses.
const CONNECTIONS_FOR_MISSES: u64 = 64;
/// The number of positions of a sliding window.
const SLIDES: i64 = 200;
/// Time an upstream with a delay takes to answer, in milliseconds.
const LATENCY: u64 = 50;
/// The lane of full hits.
const LANE: u32 = 1;
/// Shorter answers are never compressed.
const WORTH_ENCODING: i64 = 384;

/// The amount of work in a run.
struct Amount {
    /// The number and the length of the rounds of each case.
    rounds: u32,
    round: Duration,
    /// The duration of cases that wait for the upstream.
    waiting: Duration,
    /// Numbers of points for the case of many streams.
    streams: &'static [i64],
    lanes: u32,
}

/// The results of one case.
#[derive(Default)]
struct Row {
    sample: Sample,
    /// CPU time of the server, and of the load generator and the upstream together.
    cpu: Duration,
    load_cpu: Duration,
    /// Requests per second in the best round, which other work on the machine disturbed least.
    per_second: f64,
}

/// Requests per second of bare hyper with as many bytes, and its CPU time for each in microseconds.
#[derive(Clone, Copy)]
struct Limit {
    per_second: f64,
    cpu: f64,
}

struct Bench {
    amount: Amount,
    /// Set if only hits are measured.
    only_hits: bool,
    upstream: Upstream,
    bare: Server,
    /// The end of the queried history, which has settled.
    end: i64,
    /// The next lane that has never been requested.
    new_lane: AtomicU32,
}

/// One case: the target, the number of connections, and the n-th request.
struct Case<'a> {
    name: String,
    server: &'a Server,
    target: Target,
    next: Box<dyn Fn(u64) -> (Ask, Cache) + Sync + 'a>,
}

impl Bench {
    fn ask(&self, shape: Shape, lane: u32, points: i64, back: i64) -> Ask {
        let end = self.end - back;
        Ask {
            shape,
            lane,
            start: end - points * shape.step(),
            end,
        }
    }

    /// Returns a request for a full window that has never been requested.
    fn new_ask(&self, points: i64) -> Ask {
        let lane = self.new_lane.fetch_add(1, Ordering::Relaxed);
        self.ask(Shape::Buckets, lane, points, 0)
    }

    /// Returns the limit for answers with this many points.
    fn limit(&self, name: &str, shape: Shape, points: i64) -> Case<'_> {
        let ask = self.ask(shape, LANE, points, 0);
        Case {
            name: name.to_owned(),
            server: &self.bare,
            target: Target {
                address: self.bare.address,
                path: format!("/{}", ask.length()),
                shape,
                encoding: Encoding::Identity,
            },
            next: Box::new(move |_| (ask, Cache::Absent)),
        }
    }

    fn hits<'a>(
        name: &str,
        server: &'a Server,
        shape: Shape,
        next: impl Fn(u64) -> Ask + Sync + 'a,
    ) -> Case<'a> {
        Case {
            name: name.to_owned(),
            server,
            target: Target::heliostat(server.address, shape),
            next: Box::new(move |number| (next(number), Cache::Hit)),
        }
    }

    /// Runs `cases` in turns.
    fn run(&self, cases: &[Case<'_>], connections: u64) -> Vec<Row> {
        let mut rows: Vec<Row> = cases.iter().map(|_| Row::default()).collect();
        for _ in 0..self.amount.rounds {
            for (case, row) in cases.iter().zip(&mut rows) {
                let more = case.run(connections, Until::Passed(self.amount.round));
                row.sample.add(more.sample);
                row.cpu += more.cpu;
                row.load_cpu += more.load_cpu;
                row.per_second = row.per_second.max(more.per_second);
            }
        }
        rows
    }

    /// Runs the cases for windows of `points`.
    fn windows(&self, points: i64) {
        let server = Server::start(Kind::Heliostat(&self.upstream.config("4GiB")));
        self.upstream.set_latency(0);
        for shape in [Shape::Buckets, Shape::Raw] {
            let more = 2 * SLIDES;
            let all = self.ask(shape, LANE, points + more, 0);
            verify(server.address, &all);
            // Both sides have rendered the answers.
            verify(server.address, &self.ask(shape, LANE, points, 0));
        }
        let buckets = |back| self.ask(Shape::Buckets, LANE, points, back);
        let slide = |number: u64| number as i64 % SLIDES;
        let mut cases = vec![
            self.limit("(a) limit: bare hyper", Shape::Buckets, points),
            Self::hits("(b) hit, fixed window", &server, Shape::Buckets, |_| {
                buckets(0)
            }),
            Self::hits("(c) hit, sliding, aligned", &server, Shape::Buckets, |n| {
                buckets(slide(n) * MINUTE)
            }),
            Self::hits(
                "(c) hit, sliding, not aligned",
                &server,
                Shape::Buckets,
                |n| buckets(slide(n) * 61_000 + 17_000),
            ),
            self.limit("(a) limit: as many bytes as (d)", Shape::Raw, points),
            Self::hits("(d) hit, raw points", &server, Shape::Raw, |_| {
                self.ask(Shape::Raw, LANE, points, 0)
            }),
        ];
        if points >= WORTH_ENCODING {
            for encoding in [Encoding::Gzip, Encoding::Zstd] {
                let name = format!("(b) hit, {}", encoding.name().unwrap());
                let mut case = Self::hits(&name, &server, Shape::Buckets, |_| buckets(0));
                case.target.encoding = encoding;
                cases.insert(2, case);
            }
        }
        let mut rows = self.run(&cases, CONNECTIONS);
        let raw = cases.len() - 2;
        let limits = [rows[0].limit(), rows[raw].limit()];
        let hits = rows[1].sample.per_second();
        for (at, (case, row)) in cases.iter().zip(&mut rows).enumerate() {
            row.print(&case.name, points, limits[usize::from(at >= raw)]);
        }
        if self.only_hits {
            return;
        }
        for case in &cases {
            if case.target.encoding != Encoding::Identity {
                print_unpacking(case, &buckets(0));
            }
        }

        self.upstream.set_latency(LATENCY);
        let tail = Case {
            name: "(e) refresh of the tail, upstream 50 ms".to_owned(),
            server: &server,
            target: Target::heliostat(server.address, Shape::Buckets),
            next: Box::new(move |number| refreshed(points, number)),
        };
        tail.run(CONNECTIONS, Until::Asked(CONNECTIONS));
        let mut row = tail.run(CONNECTIONS, Until::Passed(self.amount.waiting));
        row.print(&tail.name, points, limits[0]);
        let miss = Case {
            name: "(f) cold miss, upstream 50 ms".to_owned(),
            next: Box::new(|_| (self.new_ask(points), Cache::Forwarded)),
            ..tail
        };
        let mut row = miss.run(CONNECTIONS, Until::Passed(self.amount.waiting));
        row.print(&miss.name, points, limits[0]);

        let fixed = |_| (buckets(0), Cache::Hit);
        self.beside_misses("(b)", points, &miss, hits, fixed);
    }

    /// Measures hits at a given load while a thousand clients send different new queries at once.
    fn storm(&self, points: i64) {
        const MISSES: u64 = 1000;
        /// Well below the capacity of the machine.
        const PER_SECOND: f64 = 1000.0;
        self.upstream.set_latency(0);
        let server = Server::start(Kind::Heliostat(&self.upstream.config("4GiB")));
        let ask = self.ask(Shape::Buckets, LANE, points, 0);
        verify(server.address, &ask);
        let target = Target::heliostat(server.address, Shape::Buckets);
        let hits = || {
            let start = Barrier::new(CONNECTIONS as usize);
            let duration = self.amount.waiting;
            open(&target, CONNECTIONS, PER_SECOND, duration, &start, |_| {
                (ask, Cache::Hit)
            })
        };
        let mut alone = hits();
        let (mut beside, mut misses) = std::thread::scope(|scope| {
            let hitting = scope.spawn(hits);
            std::thread::sleep(self.amount.waiting / 4);
            let miss = |_| (self.new_ask(points), Cache::Forwarded);
            let misses = closed(&target, MISSES, Until::Asked(MISSES), miss);
            (hitting.join().unwrap(), misses)
        });
        println!(
            "{:<42}{points:>7}  at {PER_SECOND:.0} requests/s: p99 {:.1} ms; beside {MISSES} misses at once {:.1} ms, \
             the slowest {:.1} ms (misses: p50 {:.1}, p99 {:.1} ms)",
            "(i) hits beside a storm of misses",
            alone.quantile(0.99) / 1000.0,
            beside.quantile(0.99) / 1000.0,
            beside.quantile(1.0) / 1000.0,
            misses.quantile(0.5) / 1000.0,
            misses.quantile(0.99) / 1000.0,
        );
    }

    /// Shows what cold misses of `points`, and refreshes of the tail of as many, take.
    fn misses(&self, points: i64) {
        let server = Server::start(Kind::Heliostat(&self.upstream.config("4GiB")));
        let target = Target::heliostat(server.address, Shape::Buckets);
        self.upstream.set_latency(LATENCY);
        let asked = (240_000 / points as u64).clamp(200, 1000);
        let miss = |_| (self.new_ask(points), Cache::Forwarded);
        print_usage("cold miss", points, &server, asked, || {
            closed(&target, CONNECTIONS, Until::Asked(asked), miss)
        });
        print_usage("refresh of the tail", points, &server, asked, || {
            closed(&target, CONNECTIONS, Until::Asked(asked), |n| {
                refreshed(points, n)
            })
        });
    }

    /// Polls many streams one after the other.
    fn streams(&self, points: i64) {
        const STREAMS: u32 = 10_000;
        let server = Server::start(Kind::Heliostat(&self.upstream.config("4GiB")));
        let next = |n: u64| {
            let lane = (n % u64::from(STREAMS)) as u32;
            self.ask(Shape::Buckets, lane, points, 0)
        };
        let cases = [
            self.limit("(a) limit: bare hyper", Shape::Buckets, points),
            Self::hits("(g) 10,000 streams in turn", &server, Shape::Buckets, next),
        ];
        let held = self.warm(&server, STREAMS, points);
        verify(server.address, &next(0));
        let mut rows = self.run(&cases, CONNECTIONS);
        let limit = rows[0].limit();
        for (case, row) in cases.iter().zip(&mut rows) {
            row.print(&case.name, points, limit);
        }
        println!("{held}");
    }

    /// Requests many lanes, some of them far more often than others.
    fn popularity(&self) {
        const POINTS: i64 = 60;
        let lanes = self.amount.lanes;
        let server = Server::start(Kind::Heliostat(&self.upstream.config("4GiB")));
        let held = self.warm(&server, lanes, POINTS);
        let popular = zipf(lanes);
        let known = |n: u64| {
            let lane = popular[n as usize % popular.len()];
            self.ask(Shape::Buckets, lane, POINTS, 0)
        };
        verify(server.address, &known(0));
        let cases = [
            self.limit("(a) limit: bare hyper", Shape::Buckets, POINTS),
            Self::hits("(h) Zipf, hits only", &server, Shape::Buckets, known),
        ];
        let mut rows = self.run(&cases, CONNECTIONS);
        let limit = rows[0].limit();
        let hits = rows[1].sample.per_second();
        for (case, row) in cases.iter().zip(&mut rows) {
            row.print(&case.name, POINTS, limit);
        }
        self.upstream.set_latency(LATENCY);
        let mixed = Case {
            name: "(h) Zipf, 1 % misses, upstream 50 ms".to_owned(),
            server: &server,
            target: Target::heliostat(server.address, Shape::Buckets),
            next: Box::new(|n| match mixed(n) % 100 {
                0 => (self.new_ask(POINTS), Cache::Forwarded),
                _ => (known(n), Cache::Hit),
            }),
        };
        let whole = self.amount.round * self.amount.rounds;
        let mut row = mixed.run(CONNECTIONS_WITH_MISSES, Until::Passed(whole));
        row.print(&mixed.name, POINTS, limit);
        println!("{held}; {lanes} lanes");
        let known = |n| (known(n), Cache::Hit);
        self.beside_misses("(h)", POINTS, &mixed, hits, known);
    }

    /// Requests `points` of each of `lanes` lanes; returns a description of what the cache holds
    /// then.
    fn warm(&self, server: &Server, lanes: u32, points: i64) -> String {
        self.upstream.set_latency(0);
        // Memory for code is needed whatever is cached.
        verify(server.address, &self.new_ask(points));
        let (bytes, rss) = (server.cache_bytes(), server.rss());
        let target = Target::heliostat(server.address, Shape::Buckets);
        let next = |n| {
            let ask = self.ask(Shape::Buckets, n as u32, points, 0);
            (ask, Cache::Forwarded)
        };
        closed(&target, CONNECTIONS, Until::Asked(lanes.into()), next);
        let held = (server.cache_bytes() - bytes) as f64;
        let grown = (server.rss() - rss) as f64;
        let all = f64::from(lanes) * points as f64;
        format!(
            "{:<42}{:.1} bytes a point weighed, {:.1} of RSS; RSS {} MiB",
            "    held",
            held / all,
            grown / all,
            server.rss() >> 20
        )
    }

    /// Prints the times of hits at an offered load, without misses and with one in a hundred. The
    /// load is half of the machine's capacity for an open loop, whose client takes more CPU time
    /// than that of a closed loop, and at most `most` requests per second.
    fn beside_misses(
        &self,
        name: &str,
        points: i64,
        case: &Case<'_>,
        most: f64,
        hits: impl Fn(u64) -> (Ask, Cache) + Sync,
    ) {
        self.upstream.set_latency(LATENCY);
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        let mut per_second = most / 8.0;
        for _ in 0..2 {
            let (hits, misses, cpu) = self.beside(case, points, per_second, &hits);
            let asked = hits.times.len() + misses.times.len();
            let bearable = cores * asked as f64 / cpu.as_secs_f64();
            // Other work may take CPU time as well, which shows in the rate of a closed loop.
            per_second = bearable.min(most) / 2.0;
        }
        let mut alone = Sample::default();
        let (mut beside, mut misses) = (Sample::default(), Sample::default());
        for _ in 0..2 {
            let start = Barrier::new(CONNECTIONS as usize);
            let duration = self.amount.waiting;
            let rate = per_second * 0.99;
            alone.add(open(
                &case.target,
                CONNECTIONS,
                rate,
                duration,
                &start,
                &hits,
            ));
            let more = self.beside(case, points, per_second, &hits);
            beside.add(more.0);
            misses.add(more.1);
        }
        let (before, after) = (alone.quantile(0.99), beside.quantile(0.99));
        println!(
            "{:<42}{points:>7}  at {per_second:.0} requests/s, half of capacity: p50 {:.0}, p99 {before:.0} µs; \
             with 1 % misses p50 {:.0}, p99 {after:.0} µs: {:.2} times (misses: p50 {:.1}, p99 {:.1} ms)",
            format!("{name} hits at a given load"),
            alone.quantile(0.5),
            beside.quantile(0.5),
            after / before,
            misses.quantile(0.5) / 1000.0,
            misses.quantile(0.99) / 1000.0,
        );
    }

    /// Sends hits, and misses at a hundredth of the rate beside them; returns the CPU time of the
    /// server, the load generator and the upstream.
    fn beside(
        &self,
        case: &Case<'_>,
        points: i64,
        per_second: f64,
        hits: impl Fn(u64) -> (Ask, Cache) + Sync + Send,
    ) -> (Sample, Sample, Duration) {
        let (target, duration) = (&case.target, self.amount.waiting);
        let start = &Barrier::new((CONNECTIONS + CONNECTIONS_FOR_MISSES) as usize + 1);
        let miss = |_| (self.new_ask(points), Cache::Forwarded);
        let cpu = || cpu_of_all(case.server.process_id()) + cpu_of_all(std::process::id());
        std::thread::scope(|scope| {
            let missing = scope.spawn(move || {
                let rate = per_second * 0.01;
                open(target, CONNECTIONS_FOR_MISSES, rate, duration, start, miss)
            });
            let hitting = scope.spawn(|| {
                let rate = per_second * 0.99;
                open(target, CONNECTIONS, rate, duration, start, hits)
            });
            start.wait();
            let before = cpu();
            let (hits, misses) = (hitting.join().unwrap(), missing.join().unwrap());
            (hits, misses, cpu() - before)
        })
    }
}

/// Returns the request `number` for the last `points` buckets of the lane of its connection, the last of which
/// goes on.
fn refreshed(points: i64, number: u64) -> (Ask, Cache) {
    let end = SystemClock::default().now();
    let ask = Ask {
        shape: Shape::Buckets,
        lane: 1000 + (number % CONNECTIONS) as u32,
        start: end.div_euclid(MINUTE) * MINUTE - (points - 1) * MINUTE,
        end,
    };
    (ask, Cache::Forwarded)
}

/// Prints what `server` uses for each of the `asked` requests of `points` that `ask` sends it.
fn print_usage(name: &str, points: i64, server: &Server, asked: u64, ask: impl Fn() -> Sample) {
    const ROUNDS: u64 = 4;
    ask();
    let used = || (usage(server.process_id()), server.cpu());
    let (before, cpu_before) = used();
    for _ in 0..ROUNDS {
        ask();
    }
    let (after, cpu_after) = used();
    let each = |amount: f64| amount / (ROUNDS * asked) as f64;
    let (user, kernel) = (after.user - before.user, after.kernel - before.kernel);
    let share = user.as_secs_f64() / (user + kernel).as_secs_f64();
    let micros = each((cpu_after - cpu_before).as_secs_f64() * 1e6);
    println!(
        "{name:<24}{points:>7}{micros:>12.1}{:>12.1}{:>12.1}{:>12.1}",
        micros * share,
        micros * (1.0 - share),
        each((after.faults - before.faults) as f64),
    );
}

/// Prints the length of an answer's body, and how long a client takes to decompress it.
fn print_unpacking(case: &Case<'_>, ask: &Ask) {
    let packed = body(&case.target, ask);
    let mut text = Vec::with_capacity(ask.length());
    let mut best = Duration::MAX;
    for _ in 0..50 {
        text.clear();
        let begun = Instant::now();
        match case.target.encoding {
            Encoding::Identity => text.extend_from_slice(&packed),
            Encoding::Gzip => {
                let mut reader = flate2::bufread::GzDecoder::new(&packed[..]);
                reader.read_to_end(&mut text).unwrap();
            }
            Encoding::Zstd => zstd::stream::copy_decode(&packed[..], &mut text).unwrap(),
        }
        best = best.min(begun.elapsed());
    }
    assert!(text == ask.answer());
    println!(
        "    {}: {} bytes instead of {}, unpacked in {:.0} µs",
        case.name,
        packed.len(),
        text.len(),
        best.as_secs_f64() * 1e6
    );
}

impl Case<'_> {
    fn run(&self, connections: u64, until: Until) -> Row {
        let own = std::process::id();
        let (before, load_before) = (self.server.cpu(), cpu(own));
        let sample = closed(&self.target, connections, until, &self.next);
        Row {
            cpu: self.server.cpu() - before,
            load_cpu: cpu(own) - load_before,
            per_second: sample.per_second(),
            sample,
        }
    }
}

impl Row {
    /// Returns its figures, as the limit of other rows.
    fn limit(&self) -> Limit {
        Limit {
            per_second: self.per_second,
            cpu: self.each(self.cpu),
        }
    }

    /// Returns the microseconds of `cpu` for each request.
    fn each(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.sample.times.len() as f64
    }

    fn print(&mut self, name: &str, points: i64, limit: Limit) {
        let per_second = self.per_second;
        let (cpu, load_cpu) = (self.each(self.cpu), self.each(self.load_cpu));
        println!(
            "{name:<42}{points:>7}{per_second:>12.0}{:>11.0}{:>11.0}{:>9.3}{cpu:>11.1}{:>9.2}{load_cpu:>11.1}",
            self.sample.quantile(0.5),
            self.sample.quantile(0.99),
            per_second / limit.per_second,
            cpu / limit.cpu,
        );
    }
}

/// Returns lanes in the order in which a crowd requests them: the one of rank `r` with a weight of
/// `1 / r`.
fn zipf(lanes: u32) -> Vec<u32> {
    let mut sum = 0.0;
    let weights: Vec<f64> = (1..=lanes)
        .map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        })
        .collect();
    let pick = |n: u64| {
        let at = (mixed(n + 1) >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let rank = weights.partition_point(|w| *w < at) as u32;
        // Lanes of similar rank must not have been cached one after the other. The factor is prime.
        (u64::from(rank.min(lanes - 1)) * 7919 % u64::from(lanes)) as u32
    };
    (0..1 << 20).map(pick).collect()
}

fn main() {
    if was_server() {
        return;
    }
    let short = std::env::args().any(|a| a == "--short");
    let amount = if short {
        Amount {
            rounds: 4,
            round: Duration::from_millis(100),
            waiting: Duration::from_millis(400),
            streams: &[50],
            lanes: 10_000,
        }
    } else {
        Amount {
            rounds: 10,
            round: Duration::from_millis(400),
            waiting: Duration::from_secs(3),
            streams: &[50, 1440],
            lanes: 100_000,
        }
    };
    let only_hits = std::env::args().any(|a| a == "--hits");
    let now = SystemClock::default().now();
    let bench = Bench {
        amount,
        only_hits,
        upstream: Upstream::start(),
        bare: Server::start(Kind::Bare),
        end: (now / DAY - 1) * DAY,
        new_lane: AtomicU32::new(ALIKE),
    };
    if std::env::args().any(|a| a == "--misses") {
        println!(
            "misses, {CONNECTIONS} at once, upstream {LATENCY} ms: CPU µs each, and new pages of memory"
        );
        println!(
            "{:<24}{:>7}{:>12}{:>12}{:>12}{:>12}",
            "", "points", "CPU", "user", "kernel", "pages"
        );
        return SIZES.into_iter().for_each(|points| bench.misses(points));
    }
    println!(
        "{CONNECTIONS} connections ({CONNECTIONS_WITH_MISSES} where some miss); a point is a bucket of a minute or a raw point"
    );
    println!(
        "{:<42}{:>7}{:>12}{:>11}{:>11}{:>9}{:>11}{:>9}{:>11}",
        "case",
        "points",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "of limit",
        "CPU µs/req",
        "of limit",
        "of load"
    );
    if std::env::args().any(|a| a == "--storm") {
        bench.storm(60);
        return;
    }
    for points in SIZES {
        bench.windows(points);
    }
    if only_hits {
        return;
    }
    for points in bench.amount.streams {
        bench.streams(*points);
    }
    bench.popularity();
    bench.storm(60);
}
