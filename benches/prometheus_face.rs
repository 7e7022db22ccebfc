//! Cost of an answer of the Prometheus API, as a share of what the wire costs, and the load of a
//! dashboard on the store behind it.
//!
//! First part: as in `end_to_end`, the limit is hyper handing out as many bytes from memory, in a
//! process of its own as Heliostat is; the upstream is a thread beside the load. A real Prometheus
//! is asked for the same bytes where it is installed. Cases take turns in short rounds; the
//! requests/s are those of the best round.
//!
//! Second part: a session of a dashboard as Grafana asks, in time that is told to pass. The calls
//! of the upstream and the samples it is asked for are counted; the least possible is that each
//! is fetched once after it has settled, and before that once a refresh.
//!
//! `cargo bench --bench prometheus_face`: two minutes; or `-- --short`: some seconds.
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

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use heliostat::app::Service;
use heliostat::clock::{Clock, SystemClock};
use heliostat::config;
use heliostat::wire::encoding::Encoding;
use support::load::{Cache, Due, Sample, Until, closed_of};
use support::prometheus::{Quick, Range, Real, Request, fetch};
use support::server::{Kind, Server, was_server};

const PATH: &str = "/api/v1/query_range";
const STEP: i64 = 15;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// Steps of a window, less one.
const STEPS: i64 = 1440;
/// The number of positions of a sliding window.
const SLIDES: i64 = 200;
const CONNECTIONS: u64 = 32;
/// Connections to a real Prometheus, which by default evaluates this many queries at once.
const CONNECTIONS_TO_REAL: u64 = 8;
/// The lane of hits, and the first of those that have never been requested.
const LANE: u32 = 1;
const NEW_LANES: u32 = 5_000_000;

/// One case: the target, and the n-th request.
struct Case<'a> {
    name: &'static str,
    address: SocketAddr,
    path: String,
    cache: Cache,
    next: Box<dyn Fn(u64) -> Range + 'a>,
}

impl Case<'_> {
    fn run(&self, connections: u64, until: Until) -> Sample {
        closed_of(self.address, connections, until, || {
            let mut request = Request::new(&self.path, &(self.next)(0));
            move |number, out| {
                let range = (self.next)(number);
                out.extend_from_slice(request.of(&range));
                Due {
                    length: range.length(),
                    cache: self.cache,
                    encoding: Encoding::Identity,
                }
            }
        })
    }
}

fn face(short: bool) {
    let (rounds, round) = match short {
        true => (4, Duration::from_millis(150)),
        false => (10, Duration::from_millis(500)),
    };
    let runtime = support::server::runtime(true);
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let clock = Arc::new(SystemClock::default());
    let end = (clock.now() / 1000 / DAY - 1) * DAY;
    let upstream = Quick::start(clock);
    let bare = Server::start(Kind::Bare);
    let server = Server::start(Kind::Heliostat(&upstream.config()));
    let first = end - (STEPS + SLIDES) * STEP;
    let real = Real::start(first, end, STEP);
    if real.is_none() {
        println!("SKIPPED: prometheus and promtool are not installed");
    }
    let new_lane = AtomicU32::new(NEW_LANES);
    println!(
        "{:<34}{:>7}{:>12}{:>11}{:>11}{:>10}{:>18}",
        "case", "series", "requests/s", "p50 µs", "p99 µs", "of limit", "times Prometheus"
    );
    for series in [1, 100] {
        let window = |lane, back: i64| Range {
            series,
            lane,
            start: end - (STEPS + back) * STEP,
            end: end - back * STEP,
            step: STEP,
        };
        let verify = |range: Range, cache: &str| {
            let answer = runtime.block_on(fetch(&client, server.address, PATH, &range));
            let (status, said, body) = answer.unwrap();
            assert!(said.starts_with(cache), "{said}");
            assert!(status == 200 && body == range.answer(), "{status}");
        };
        let all = Range {
            start: first,
            ..window(LANE, 0)
        };
        verify(all, "heliostat; fwd=miss");
        verify(window(LANE, 17), "heliostat; hit");
        let slide = |n: u64| window(LANE, n as i64 % SLIDES);
        let case = |name, cache, next: Box<dyn Fn(u64) -> Range>| Case {
            name,
            address: server.address,
            path: PATH.to_owned(),
            cache,
            next,
        };
        let fixed = window(LANE, 0);
        let cases = [
            Case {
                name: "limit: bare hyper",
                address: bare.address,
                path: format!("/{}", fixed.length()),
                cache: Cache::Absent,
                next: Box::new(move |_| fixed),
            },
            case("hit, fixed window", Cache::Hit, Box::new(move |_| fixed)),
            Case {
                name: "hit, sliding",
                next: Box::new(slide),
                ..case("", Cache::Hit, Box::new(move |_| fixed))
            },
            Case {
                name: "cold",
                cache: Cache::Forwarded,
                next: Box::new(|_| window(new_lane.fetch_add(1, Ordering::Relaxed), 0)),
                ..case("", Cache::Hit, Box::new(move |_| fixed))
            },
        ];
        let mut rows: Vec<_> = cases.iter().map(|_| (Sample::default(), 0.0f64)).collect();
        for _ in 0..rounds {
            for (case, row) in cases.iter().zip(&mut rows) {
                let more = case.run(CONNECTIONS, Until::Passed(round));
                row.1 = row.1.max(more.per_second());
                row.0.add(more);
            }
        }
        let direct = real.as_ref().map(|real| {
            runtime.block_on(real.verify(&client, &fixed));
            let case = Case {
                name: "a real Prometheus, sliding",
                address: real.address,
                path: PATH.to_owned(),
                cache: Cache::Absent,
                next: Box::new(slide),
            };
            let sample = case.run(CONNECTIONS_TO_REAL, Until::Passed(round * rounds));
            let per_second = sample.per_second();
            (case.name, (sample, per_second))
        });
        let per_direct = direct.as_ref().map(|(_, row)| row.1);
        let limit = rows[0].1;
        let named = cases.iter().map(|c| c.name).zip(rows);
        for (name, (mut sample, per_second)) in named.chain(direct) {
            println!(
                "{name:<34}{series:>7}{per_second:>12.0}{:>11.0}{:>11.0}{:>10.3}{:>18}",
                sample.quantile(0.5),
                sample.quantile(0.99),
                per_second / limit,
                per_direct.map_or("-".to_owned(), |d| format!("{:.1}", per_second / d)),
            );
        }
    }
}

/// A clock that is set by the bench.
#[derive(Debug)]
struct Told {
    start: i64,
    passed: AtomicI64,
}

impl Told {
    fn pass(&self, seconds: i64) {
        self.passed.fetch_add(seconds * 1000, Ordering::SeqCst);
    }
}

impl Clock for Told {
    fn now(&self) -> i64 {
        self.start + self.passed.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        // Some time after the start.
        Duration::from_millis(1_000_000 + self.passed.load(Ordering::SeqCst) as u64)
    }
}

/// The number of series of each panel.
const PANELS: [u32; 12] = [1, 1, 1, 2, 3, 4, 5, 8, 10, 12, 20, 50];
/// Seconds between refreshes of the dashboard, and Heliostat's default of `refresh`.
const REFRESH: i64 = 10;
/// Heliostat's default of `settle`, in seconds.
const SETTLE: i64 = 120;

/// The cost of one part of the session.
#[derive(Clone, Copy, Default)]
struct Cost {
    calls: u64,
    points: u64,
}

/// A lower bound on the work: the time of the last fetch of each evaluation time.
#[derive(Default)]
struct Least(HashMap<i64, i64>);

impl Least {
    /// Adds the cost of requesting these times of a panel at `now`.
    fn ask(&mut self, times: impl Iterator<Item = i64>, now: i64) -> Cost {
        let mut cells = 0;
        for time in times {
            let good = self
                .0
                .get(&time)
                .is_some_and(|at| time <= at - SETTLE || now - at < REFRESH);
            if !good {
                cells += 1;
                self.0.insert(time, now);
            }
        }
        let series: u32 = PANELS.iter().sum();
        Cost {
            calls: if cells > 0 { PANELS.len() as u64 } else { 0 },
            points: cells * u64::from(series),
        }
    }
}

fn session() {
    let runtime = support::server::runtime(true);
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let now = SystemClock::default().now();
    let clock = Arc::new(Told {
        start: now - now % 1000,
        passed: AtomicI64::new(0),
    });
    let upstream = Quick::start(clock.clone());
    let config = config::parse(&upstream.config(), "bench", &Default::default()).unwrap();
    let address = runtime.block_on(async {
        let service = Service::bind(&config, clock.clone()).await.unwrap();
        let address = service.address().unwrap();
        tokio::spawn(service.run(std::future::pending()));
        address
    });
    let mut least = Least::default();
    let counted = || Cost {
        calls: upstream.asked.calls.load(Ordering::SeqCst),
        points: upstream.asked.points.load(Ordering::SeqCst),
    };
    println!(
        "\n{:<34}{:>8}{:>8}{:>10}{:>10}{:>8}{:>14}",
        "dashboard of 12 panels", "calls", "least", "samples", "least", "ratio", "without cache"
    );
    let mut sum = (Cost::default(), Cost::default(), 0);
    for (name, rounds, length, step) in [
        ("6 h, step 15 s, first", 1, 6 * HOUR, 15),
        ("6 h, 20 refreshes of 10 s", 20, 6 * HOUR, 15),
        // Grafana's step for about a thousand pixels.
        ("7 d, step 10 min", 1, 7 * DAY, 600),
        ("back to 6 h", 1, 6 * HOUR, 15),
    ] {
        let (before, mut due, mut asked) = (counted(), Cost::default(), 0);
        for _ in 0..rounds {
            let now = clock.now() / 1000;
            // Grafana moves both ends to the grid.
            let grid = |time: i64| time / step * step;
            let (start, end) = (grid(now - length), grid(now));
            for (panel, series) in (0..).zip(PANELS) {
                let range = Range {
                    series,
                    lane: panel,
                    start,
                    end,
                    step,
                };
                let answer = runtime.block_on(fetch(&client, address, PATH, &range));
                let (status, _, body) = answer.unwrap();
                assert!(status == 200 && body == range.answer(), "{range:?}");
                asked += range.points() as u64 * u64::from(series);
            }
            let more = least.ask((start..=end).step_by(step as usize), now);
            due.calls += more.calls;
            due.points += more.points;
            clock.pass(REFRESH);
        }
        let after = counted();
        let cost = Cost {
            calls: after.calls - before.calls,
            points: after.points - before.points,
        };
        row(name, cost, due, asked);
        sum.0.calls += cost.calls;
        sum.0.points += cost.points;
        sum.1.calls += due.calls;
        sum.1.points += due.points;
        sum.2 += asked;
    }
    row("all", sum.0, sum.1, sum.2);
    // A failure on any machine.
    assert!(sum.0.calls <= sum.1.calls * 5 / 4, "too many calls");
    assert!(sum.0.points <= sum.1.points * 5 / 4, "too many samples");
}

fn row(name: &str, cost: Cost, least: Cost, asked: u64) {
    println!(
        "{name:<34}{:>8}{:>8}{:>10}{:>10}{:>8.3}{:>14}",
        cost.calls,
        least.calls,
        cost.points,
        least.points,
        cost.points as f64 / least.points as f64,
        asked,
    );
}

fn main() {
    if was_server() {
        return;
    }
    let short = std::env::args().any(|a| a == "--short");
    face(short);
    session();
}
