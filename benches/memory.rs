//! Memory that the cache takes, compared with the weight it reports and with its limit.
//!
//! Heliostat is a process of its own, so that its resident memory is nobody else's. Caches are
//! first filled nearly full with lanes of one shape, and with keys of one kind, and the growth of memory is
//! compared with the weight of what is cached, of which it must be within a tenth; then they are made
//! to replace several times what they hold.
//!
//! Idle connections are opened to an empty server, and what each takes of its memory is printed: before
//! its first request, and after it.
//!
//! `cargo bench --bench memory`: a minute or so; or `-- --short`; or `-- --keys`, the keys only; or `-- --lanes 1000000`, which caches so
//! many lanes of an hour and asks for some of them and for all: some minutes, and 5 kB of memory a lane.
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

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use heliostat::clock::{Clock, SystemClock};
use support::asking::{Ask, DAY, Shape, mixed};
use support::load::{Cache, Target, Until, closed};
use support::server::{Kind, Server, was_server};
use support::upstream::Upstream;

const CONNECTIONS: u64 = 8;
/// The share of its limit to which a cache is filled before anything is evicted.
const FULL: f64 = 0.75;
/// The share of the cache that is filled before memory counts.
const FIRST: f64 = 0.2;
/// The most by which memory and weight may differ.
const AGREES: f64 = 1.1;
/// The number of times a cache replaces its contents.
const CHURN: u64 = 4;

/// The queries sent for each lane.
#[derive(Clone, Copy)]
struct Filling {
    name: &'static str,
    shape: Shape,
    points: i64,
}

const FILLINGS: [Filling; 3] = [
    Filling {
        name: "an hour of buckets of a minute",
        shape: Shape::Buckets,
        points: 60,
    },
    Filling {
        name: "a day of buckets of a minute",
        shape: Shape::Buckets,
        points: 1440,
    },
    Filling {
        name: "a day of raw points, 15 s",
        shape: Shape::Raw,
        points: 5760,
    },
];

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// A Heliostat that gets requests for ever new lanes.
struct Filled {
    server: Server,
    /// The next lane.
    lane: u32,
    end: i64,
    /// Memory and weight before the first lane that counts.
    rss: u64,
    bytes: u64,
}

impl Filled {
    fn start(upstream: &Upstream, memory: &str) -> Self {
        let mut filled = Self {
            server: Server::start(Kind::Heliostat(&upstream.config(memory))),
            lane: 0,
            end: (SystemClock::default().now() / DAY - 1) * DAY,
            rss: 0,
            bytes: 0,
        };
        // Code, connections and threads must exist before anything counts.
        for filling in &FILLINGS {
            filled.ask(filling, CONNECTIONS as u32, 1);
        }
        filled.rss = filled.server.rss();
        filled.bytes = filled.server.cache_bytes();
        filled
    }

    /// Requests `lanes` new lanes, and `windows` windows of each, one before the other.
    fn ask(&mut self, filling: &Filling, lanes: u32, windows: u32) {
        let span = filling.points * filling.shape.step();
        let next = |n: u64| {
            let end = self.end - (n as u32 / lanes) as i64 * span;
            let ask = Ask {
                shape: filling.shape,
                lane: self.lane + n as u32 % lanes,
                start: end - span,
                end,
            };
            (ask, Cache::Forwarded)
        };
        let target = Target::heliostat(self.server.address, filling.shape);
        closed(
            &target,
            CONNECTIONS,
            Until::Asked((lanes * windows).into()),
            next,
        );
        self.lane += lanes;
    }

    /// Requests new lanes until the cache weighs about `most` bytes; returns how many those were.
    fn fill(&mut self, filling: &Filling, most: f64) -> u32 {
        let before = self.server.cache_bytes() as f64;
        let mut lanes = 0;
        let mut batch = 8;
        loop {
            self.ask(filling, batch, 1);
            lanes += batch;
            let weighed = self.server.cache_bytes() as f64;
            let each = (weighed - before) / f64::from(lanes);
            let room = (most - weighed) / each;
            if room < 1.0 {
                return lanes;
            }
            // An estimate from a few lanes is not trusted with all of the room.
            batch = (room / 2.0).ceil() as u32;
        }
    }

    /// Returns the resident memory in excess of that at the start.
    fn grown(&self) -> f64 {
        self.server.rss().saturating_sub(self.rss) as f64
    }

    fn weighed(&self) -> f64 {
        self.server.cache_bytes().saturating_sub(self.bytes) as f64
    }
}

/// Fills a cache with lanes of one shape; prints their memory, and returns whether it agrees with their weight.
fn fill(upstream: &Upstream, mebibytes: u64, filling: &Filling) -> bool {
    let mut filled = Filled::start(upstream, &format!("{mebibytes}MiB"));
    let bound = (mebibytes << 20) as f64;
    // Buffers and tables of reading such lanes, too, must exist before anything counts.
    filled.fill(filling, bound * FIRST);
    (filled.rss, filled.bytes) = (filled.server.rss(), filled.server.cache_bytes());
    let lanes = filled.fill(filling, bound * FULL);
    let points = f64::from(lanes) * filling.points as f64;
    let (grown, weighed) = (filled.grown(), filled.weighed());
    println!(
        "{:>7}  {:<34}{lanes:>8}{:>13.1}{:>13.1}{:>10.3}{:>14.1}{:>12.1}",
        format!("{mebibytes}"),
        filling.name,
        mib(weighed),
        mib(grown),
        grown / weighed,
        weighed / points,
        grown / points,
    );
    (1.0 / AGREES..=AGREES).contains(&(grown / weighed))
}

/// Replaces the contents of a cache several times with lanes of all shapes, each of which grows
/// once; prints the peak memory.
fn churn(upstream: &Upstream, mebibytes: u64) {
    let mut filled = Filled::start(upstream, &format!("{mebibytes}MiB"));
    let bound = (mebibytes << 20) as f64;
    let (mut most, mut asked) = (0.0_f64, 0.0);
    let mut each = [0.0; FILLINGS.len()];
    let begun = Instant::now();
    let mut round = 0;
    while asked < bound * CHURN as f64 {
        let at = round % FILLINGS.len();
        let before = filled.weighed();
        // A hundredth of the limit each time, once its size in lanes is known.
        let lanes = match each[at] {
            0.0 => 8,
            each => (bound * 0.01 / each).ceil() as u32,
        };
        filled.ask(&FILLINGS[at], lanes, 2);
        if each[at] == 0.0 {
            each[at] = ((filled.weighed() - before) / f64::from(lanes)).max(1.0);
        }
        asked += each[at] * f64::from(lanes);
        most = most.max(filled.server.rss() as f64);
        round += 1;
    }
    println!(
        "{mebibytes:>7}{:>13.1}{:>13.1}{:>17.1}{:>16.1}{:>14.2}{:>20.2}{:>9.1}",
        mib(filled.rss as f64),
        mib(most),
        mib(most - filled.rss as f64),
        mib(filled.server.cache_bytes() as f64),
        most / bound,
        (most - filled.rss as f64) / bound,
        begun.elapsed().as_secs_f64(),
    );
}

/// Caches many small lanes, as large installations have them, and requests 10,000 of them and then
/// all.
fn many(upstream: &Upstream, lanes: u32) {
    const FEW: u64 = 10_000;
    let filling = &FILLINGS[0];
    let mut filled = Filled::start(upstream, "8GiB");
    let first = filled.lane;
    filled.ask(filling, lanes, 1);
    let all = f64::from(lanes) * filling.points as f64;
    println!(
        "\n{lanes} lanes of {}: RSS {:.1} MiB, grown by {:.1}, weighed {:.1} MiB: {:.1} bytes a point",
        filling.name,
        mib(filled.server.rss() as f64),
        mib(filled.grown()),
        mib(filled.weighed()),
        filled.grown() / all,
    );
    let span = filling.points * filling.shape.step();
    let target = Target::heliostat(filled.server.address, filling.shape);
    let hits = |of: u64| {
        let next = |n: u64| {
            let lane = first + (mixed(n) % of) as u32;
            let ask = Ask {
                shape: filling.shape,
                lane,
                start: filled.end - span,
                end: filled.end,
            };
            (ask, Cache::Hit)
        };
        closed(
            &target,
            CONNECTIONS,
            Until::Passed(Duration::from_secs(3)),
            next,
        )
    };
    let mut few = hits(FEW);
    let mut many = hits(lanes.into());
    let (few, many) = (few.quantile(0.99), many.quantile(0.99));
    println!(
        "p99 of hits of {FEW} of them {few:.0} µs, of all {many:.0} µs: {:.2} times",
        many / few
    );
}

/// Prints the memory of the server for idle connections, without the kernel's share.
fn idle(upstream: &Upstream, connections: usize) {
    let server = Server::start(Kind::Heliostat(&upstream.config("64MiB")));
    let health = b"GET /healthz HTTP/1.1\r\nhost: bench\r\n\r\n";
    let ask = |stream: &mut TcpStream| {
        stream.write_all(health).unwrap();
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    };
    let connect = || TcpStream::connect(server.address).unwrap();
    // Code and threads must exist before anything counts.
    let mut first = connect();
    (0..100).for_each(|_| ask(&mut first));
    let before = server.rss();
    let mut open: Vec<TcpStream> = (0..connections).map(|_| connect()).collect();
    // The last connection has been accepted once it gets an answer.
    if let Some(last) = open.last_mut() {
        ask(last);
    }
    let accepted = server.rss();
    open.iter_mut().for_each(ask);
    let asked = server.rss();
    let each = |rss: u64| rss.saturating_sub(before) as f64 / connections as f64 / 1024.0;
    println!(
        "\n{connections} idle connections: {:.1} KiB each before their first request, {:.1} KiB after it",
        each(accepted),
        each(asked),
    );
}

/// Returns the values of any label: 2.2 MB of JSON.
fn list_of_values() -> String {
    let values: Vec<_> = (0..50_000).map(|n| format!("\"value-{n:035}\"")).collect();
    format!(r#"{{"status":"success","data":[{}]}}"#, values.join(","))
}

/// Answers every request with `body`.
fn answer_all(listener: &TcpListener, body: &str) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines.next().is_some_and(|l| l.is_ok_and(|l| !l.is_empty())) {}
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        // A client that has left does not matter to the bench.
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    }
}

/// Requests long lists of names and values, one after the other, with a small cache; prints the
/// peak memory.
fn lists() {
    const LISTS: u32 = 40;
    /// The most memory of the process, in MiB, with a cache of 16 MiB.
    const MOST: f64 = 60.0;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = listener.local_addr().unwrap();
    let body = list_of_values();
    let length = body.len();
    std::thread::spawn(move || answer_all(&listener, &body));
    for (path, name) in [("/api/field/value", "values"), ("/api/field/name", "names")] {
        let server = Server::start(Kind::Heliostat(&format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[cache]\nmemory = \"16MiB\"\n[[upstream]]\nname = \"lists\"\n\
             kind = \"prometheus\"\nurls = [\"http://{upstream}\"]\nrate_limit = {{ per_second = 1000 }}\n"
        )));
        let started = server.rss();
        let mut answered = 0;
        for n in 0..LISTS {
            let query = format!(
                r#"{{"connectionDetails":{{}},"query":{{"conditions":[{{"_type":"EqualityCondition","key":"__gauge__","value":{{"_type":"StringValue","value":"m{n}"}}}}],"field":{{"fieldName":"host","fieldType":"STRING","classified":false}},"fieldPrefix":"","limit":100000}}}}"#
            );
            let mut stream = TcpStream::connect(server.address).unwrap();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                query.len()
            );
            stream
                .write_all(format!("{head}{query}").as_bytes())
                .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200"), "an answer is one");
            answered = answer.len();
        }
        let peak = mib(server.peak() as f64);
        println!(
            "{LISTS} lists of {name} of {:.1} MB, answers of {:.1} MB, cache.memory 16 MiB: most {:.1} MiB, {:.1} at the start",
            length as f64 / 1e6,
            answered as f64 / 1e6,
            peak,
            mib(started as f64),
        );
        assert!(peak <= MOST, "{peak:.1} MiB for lists of {name}");
    }
}

/// A request whose key is the larger part of what is cached of it; of the number `n`.
struct Keys {
    name: &'static str,
    /// How much of the cache is for them: whole answers and lists have a part of it.
    part: f64,
    request: fn(u64) -> Vec<u8>,
}

fn post(path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn get(path: &str, tenant: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: bench\r\nx-scope-orgid: {tenant}\r\nconnection: close\r\n\r\n"
    )
    .into_bytes()
}

const TIMES: &str = r#""startTime":1600000000000,"endTime":1600000600000"#;

const KEYS: [Keys; 8] = [
    Keys {
        name: "details of 15 kB",
        part: 1.0,
        request: |n| {
            post(
                "/api/metric",
                &format!(r#"{{"connectionDetails":{{"x":"{n:x>15000}"}},"query":{{{TIMES}}}}}"#),
            )
        },
    },
    Keys {
        name: "details of 400 values",
        part: 1.0,
        request: |n| {
            let values: Vec<_> = (0..400).map(|v| (n * 1000 + v).to_string()).collect();
            let values = values.join(",");
            post(
                "/api/metric",
                &format!(r#"{{"connectionDetails":{{"x":[{values}]}},"query":{{{TIMES}}}}}"#),
            )
        },
    },
    Keys {
        name: "details of 100 short members",
        part: 1.0,
        request: |n| {
            let members: Vec<_> = (0..100).map(|m| format!(r#""m{m}":"{n}""#)).collect();
            let members = members.join(",");
            post(
                "/api/metric",
                &format!(r#"{{"connectionDetails":{{{members}}},"query":{{{TIMES}}}}}"#),
            )
        },
    },
    Keys {
        name: "ten conditions",
        part: 1.0,
        request: |n| {
            let conditions: Vec<_> = (0..10)
                .map(|c| format!(r#"{{"key":"key{c}","value":"value-{n}-{c}"}}"#))
                .collect();
            let conditions = conditions.join(",");
            post(
                "/api/metric",
                &format!(
                    r#"{{"connectionDetails":{{}},"query":{{"conditions":[{conditions}],{TIMES}}}}}"#
                ),
            )
        },
    },
    Keys {
        name: "a prefix of 4 kB",
        part: 1.0 / 8.0,
        request: |n| {
            let field = r#""field":{"fieldName":"a","fieldType":"STRING"}"#;
            post(
                "/api/field/value",
                &format!(
                    r#"{{"connectionDetails":{{}},"query":{{{field},"fieldValuePrefix":"{n:x>4000}"}}}}"#
                ),
            )
        },
    },
    Keys {
        name: "a tenant of 250 bytes, whole answers",
        part: 1.0 / 8.0,
        request: |n| {
            get(
                "/prometheus/prom/api/v1/series?match[]=up&start=1600000000&end=1600000600",
                &format!("{n:x>250}"),
            )
        },
    },
    Keys {
        name: "a tenant of 250 bytes, lanes",
        part: 1.0,
        request: |n| {
            get(
                "/prometheus/prom/api/v1/query_range?query=up&start=1600000000&end=1600000600&step=60",
                &format!("{n:x>250}"),
            )
        },
    },
    Keys {
        name: "an expression of 2 kB",
        part: 1.0,
        request: |n| {
            let query = format!("up%7Ba=%22{n:x>2000}%22%7D");
            let path = "/prometheus/prom/api/v1/query_range";
            get(
                &format!("{path}?query={query}&start=1600000000&end=1600000600&step=60"),
                "t",
            )
        },
    },
];

/// Answers requests of both APIs with as little as there is, for ever.
fn answer_little(listener: &TcpListener) {
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        std::thread::spawn(move || {
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            loop {
                let (mut path, mut length) = (String::new(), 0);
                if reader.read_line(&mut path).unwrap_or(0) == 0 {
                    return;
                }
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                    let line = line.trim().to_ascii_lowercase();
                    if line.is_empty() {
                        break;
                    }
                    if let Some(value) = line.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body = match () {
                    () if path.contains("/api/metric") => {
                        r#"{"telemetry":{"points":[[1.0,1600000000000]],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#
                    }
                    () if path.contains("/api/field/value") => {
                        r#"{"_type":"FieldValues","values":[],"isPartial":false}"#
                    }
                    () if path.contains("/query_range") => {
                        r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#
                    }
                    () => r#"{"status":"success","data":[]}"#,
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                if writer
                    .write_all(format!("{head}{body}").as_bytes())
                    .is_err()
                {
                    return;
                }
            }
        });
    }
}

/// Fills caches with keys of each kind; prints what they take, and fails in a long run if that is not what they
/// weigh.
fn keys(mebibytes: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = listener.local_addr().unwrap();
    std::thread::spawn(move || answer_little(&listener));
    let upstream = |name: &str, kind: &str| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\nurls = [\"http://{store}\"]\n\
             rate_limit = {{ per_second = 100000 }}\nmetadata_ttl = \"1h\"\nrefresh = \"1h\"\n"
        )
    };
    // As much for each kind, whatever its part of the cache.
    let memory = |kind: &Keys| (mebibytes as f64 / kind.part).round();
    let config = |kind: &Keys| {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[cache]\nmemory = \"{}MiB\"\n{}default = true\n{}",
            memory(kind),
            upstream("mirror", "mirror"),
            upstream("prom", "prometheus")
        )
    };
    let bound = (mebibytes << 20) as f64;
    let mut off = Vec::new();
    println!(
        "\n{:>7}  {:<40}{:>8}{:>13}{:>13}{:>10}{:>14}{:>12}",
        "MiB",
        "filled with keys",
        "keys",
        "weighed MiB",
        "grown MiB",
        "grown/w.",
        "weighed B",
        "grown B"
    );
    for kind in &KEYS {
        let server = Server::start(Kind::Heliostat(&config(kind)));
        let ask = |n: u64| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(&(kind.request)(n)).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let text = String::from_utf8_lossy(&answer);
            assert!(text.starts_with("HTTP/1.1 200"), "{text:.400}");
        };
        let mut asked = 0;
        // Fills a share of the cache, and returns memory and weight.
        let mut fill = |share: f64| {
            let mut batch = 100;
            loop {
                (asked..asked + batch).for_each(ask);
                asked += batch;
                let weighed = server.cache_bytes() as f64;
                let room = (bound * share - weighed) / (weighed / asked as f64);
                if room < 1.0 {
                    return (server.rss() as f64, weighed, asked as f64);
                }
                batch = (room / 2.0).ceil() as u64;
            }
        };
        // Code, connections, threads and tables must exist before anything counts.
        let (rss, bytes, before) = fill(FIRST);
        let (grown, weighed, count) = fill(FULL);
        let (grown, weighed, count) = (grown - rss, weighed - bytes, count - before);
        println!(
            "{:>7}  {:<40}{count:>8}{:>13.1}{:>13.1}{:>10.3}{:>14.1}{:>12.1}",
            memory(kind),
            kind.name,
            mib(weighed),
            mib(grown),
            grown / weighed,
            weighed / count,
            grown / count,
        );
        if !(1.0 / AGREES..=AGREES).contains(&(grown / weighed)) {
            off.push(kind.name);
        }
    }
    // What an allocator keeps for itself counts for more in a short run.
    let long = mebibytes >= 64;
    assert!(
        off.is_empty() || !long,
        "memory and weight differ by more than a tenth: {off:?}"
    );
}

fn main() {
    if was_server() {
        return;
    }
    let short = std::env::args().any(|a| a == "--short");
    let upstream = Upstream::start();
    if std::env::args().any(|a| a == "--keys") {
        keys(if short { 16 } else { 64 });
        return;
    }
    let lanes = std::env::args().skip_while(|a| a != "--lanes").nth(1);
    if let Some(lanes) = lanes {
        many(&upstream, lanes.parse().expect("a number of lanes"));
        return;
    }
    idle(&upstream, if short { 500 } else { 8_000 });
    let sizes: &[u64] = if short { &[64] } else { &[64, 256] };
    println!(
        "{:>7}  {:<34}{:>8}{:>13}{:>13}{:>10}{:>14}{:>12}",
        "MiB",
        "filled with lanes of",
        "lanes",
        "weighed MiB",
        "grown MiB",
        "grown/w.",
        "weighed B/pt",
        "grown B/pt"
    );
    let mut agree = true;
    for mebibytes in sizes {
        for filling in &FILLINGS {
            agree &= fill(&upstream, *mebibytes, filling);
        }
    }
    assert!(agree, "memory and weight differ by more than a tenth");
    println!(
        "\nafter {CHURN} times the bound in lanes of all shapes\n{:>7}{:>13}{:>13}{:>17}{:>16}{:>14}{:>20}{:>9}",
        "MiB",
        "start MiB",
        "most MiB",
        "most - start MiB",
        "weighed MiB",
        "most / bound",
        "(most-start)/bound",
        "seconds"
    );
    for mebibytes in sizes {
        churn(&upstream, *mebibytes);
    }
    keys(if short { 16 } else { 64 });
    println!();
    lists();
    if !short {
        many(&upstream, 100_000);
    }
}
