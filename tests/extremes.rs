//! The memory that one request takes, with a count of all that the process has allocated. Random extreme
//! numbers through both APIs: no request that fits `max_body` makes the service allocate more than 64 MiB; and
//! bodies of a mebibyte in their worst shapes: reading one takes at most four times its bytes, eight times with
//! what is sent to the upstream. That is real, on another thread, and answers at once.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use heliostat::app::{App, Service};
use heliostat::clock::SystemClock;
use heliostat::config;
use heliostat::front::mirror::Method;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Held by the test that counts: all threads do.
static COUNTING: Mutex<()> = Mutex::new(());

/// Returns the most bytes that were allocated at a time during `work`, beyond those before it.
fn allocated(work: impl FnOnce()) -> usize {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    work();
    HEAP.peak_usage().saturating_sub(before)
}

/// The most bytes that a request may have allocated at any time.
const MOST: usize = 64 << 20;

/// Returns the number of requests: the full number where everything is checked.
fn requests() -> usize {
    match std::env::var("HELIOSTAT_REQUIRE_REAL").as_deref() {
        Ok("1") => 100_000,
        _ => 5_000,
    }
}

/// Pseudo-random numbers (xorshift64*): the same sequence each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[(self.next() % all.len() as u64) as usize]
    }

    /// Returns a number as text: mostly extreme, sometimes near a round one, sometimes arbitrary.
    fn number(&mut self) -> String {
        const EXTREME: &[&str] = &[
            "0",
            "1",
            "-1",
            "2",
            "10",
            "1000",
            "60000",
            "3600000",
            "86400000",
            "1700000000",
            "1700000000000",
            "1700003600000",
            "9000000000",
            "253402300799999",
            "253402300799",
            "2147483647",
            "2147483648",
            "4294967295",
            "4294967296",
            "9007199254740992",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
            "1e300",
            "1e-300",
            "0.001",
            "0.0000001",
            "1.5",
            "1e18",
        ];
        match self.next() % 8 {
            0 => (self.next() >> (self.next() % 64)).to_string(),
            1 => {
                let near = 1_700_000_000_000_i64 + (self.next() % 100_000_000) as i64;
                near.to_string()
            }
            _ => self.of(EXTREME).to_owned(),
        }
    }

    fn mirror(&mut self) -> (Method, String) {
        let method = match self.next() % 6 {
            0 => Method::FieldNames,
            1 => Method::FieldValues,
            _ => Method::Metric,
        };
        let statistic = self.of(&["MEAN", "SUM", "PERCENTILE_99", "EVENT_COUNT", "MAX", "NONE"]);
        let (start, end, size) = (self.number(), self.number(), self.number());
        let (limit, offset, timeout) = (self.number(), self.number(), self.number());
        let aggregation = match self.next() % 4 {
            0 => String::new(),
            _ => format!(r#","aggregation":{{"method":"{statistic}","bucketSizeMillis":{size}}}"#),
        };
        let limit = match self.next() % 3 {
            0 => format!(r#","limit":{limit}"#),
            _ => String::new(),
        };
        let details = match self.next() % 6 {
            0 => format!(r#""requestTimeout":{timeout}"#),
            1 => r#""upstream":"prom""#.to_owned(),
            _ => String::new(),
        };
        let body = format!(
            r#"{{"connectionDetails":{{{details}}},"query":{{"conditions":[{{"key":"name","value":"up"}}],"startTime":{start},"endTime":{end},"offset":{offset},"field":{{"fieldName":"a","fieldType":{{"_type":"StringFieldType"}}}}{limit}{aggregation}}}}}"#
        );
        (method, body)
    }

    fn prometheus(&mut self) -> String {
        let endpoint = self.of(&["query_range", "query_range", "query", "labels", "series"]);
        let query = self.of(&[
            "up",
            "rate(up[5m])",
            "up%5B1000000h%5D",
            "up%20offset%209000000000s",
            "up%20offset%2018446744073709551616",
            "sum_over_time(up%5B9000000000s:1ms%5D)",
            "1e300",
        ]);
        let (time, mut limit) = (self.number(), self.number());
        let (start, end, step) = match self.next() % 4 {
            // Times that are on the grid of many steps, and cached: what one left is of use to another.
            0 => {
                let ends = ["0", "9000000000", "9000000000000"];
                let steps = ["0.001", "1", "1000000", "900000000", "9000000000"];
                limit = "0".to_owned();
                (
                    "0".to_owned(),
                    self.of(&ends).to_owned(),
                    self.of(&steps).to_owned(),
                )
            }
            _ => (self.number(), self.number(), self.number()),
        };
        format!(
            "/prometheus/prom/api/v1/{endpoint}?query={query}&match[]=up&start={start}&end={end}&step={step}\
             &time={time}&limit={limit}"
        )
    }
}

/// Answers each request at once, as stores of both kinds.
fn upstream() -> SocketAddr {
    const MIRROR: &str = r#"{"telemetry":{"points":[],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"},"_type":"MetricsResponse"}"#;
    const PROMETHEUS: &str = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut seen = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                        let head = String::from_utf8_lossy(&seen[..end]).to_ascii_lowercase();
                        let length = head
                            .lines()
                            .find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok());
                        let whole = end + 4 + length.unwrap_or(0_usize);
                        if seen.len() < whole {
                            break;
                        }
                        seen.drain(..whole);
                        let body = match head.contains("/api/v1/") {
                            true => PROMETHEUS,
                            false => MIRROR,
                        };
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-mirror-api-key: api_key\r\n\
                             content-length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                    match stream.read(&mut buffer) {
                        Ok(read) if read > 0 => seen.extend_from_slice(&buffer[..read]),
                        _ => return,
                    }
                }
            });
        }
    });
    address
}

#[test]
fn no_request_makes_the_service_allocate_without_a_bound() {
    let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let store = upstream();
    let toml = format!(
        "[server]\nrequest_timeout = \"5s\"\n[cache]\nmemory = \"8MiB\"\n\
         [[upstream]]\nname = \"mirror\"\nkind = \"mirror\"\nurls = [\"http://{store}\"]\ndefault = true\n\
         rate_limit = {{ per_second = 1000000 }}\n\
         [[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\nurls = [\"http://{store}\"]\n\
         rate_limit = {{ per_second = 1000000 }}\n"
    );
    let config = config::parse(&toml, "test.toml", &BTreeMap::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let app = runtime
        .block_on(App::build(&config, Arc::new(SystemClock::default())))
        .unwrap();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for n in 0..requests() {
        let mut said = String::new();
        let mut status = 0;
        let (mirror, uri) = (random.mirror(), random.prometheus());
        let front = app.front.clone();
        let most = allocated(|| {
            let response = if n % 2 == 0 {
                said = mirror.1;
                runtime.block_on(front.ask(mirror.0, said.as_bytes()))
            } else {
                said = uri;
                runtime.block_on(front.get(said.parse().unwrap()))
            };
            status = response.status().as_u16();
        });
        *statuses.entry(status).or_default() += 1;
        assert!(
            most <= MOST,
            "request {n} had {most} bytes allocated: {said}"
        );
    }
    println!("{statuses:?}");
    // They do not all fail in the same way.
    assert!(
        statuses.get(&200).is_some_and(|n| *n > requests() / 100),
        "{statuses:?}"
    );
    assert!(!statuses.contains_key(&500), "{statuses:?}");
}

/// Bytes for a connection with its buffers, at both ends, and its task.
const CONNECTION: usize = 256 << 10;

/// Returns `part` as often as it fits into a mebibyte, behind `head`.
fn filled(head: &str, part: &str) -> String {
    format!(
        "{head}{}",
        part.repeat(((1 << 20) - 200 - head.len()) / part.len())
    )
}

/// Sends a POST of `body`, and returns the start of the answer.
fn posted(address: SocketAddr, path: &str, kind: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    // It may be refused, and the connection closed, before all has been sent.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
    answered(stream)
}

/// Sends a GET with `query`.
fn got(address: SocketAddr, path: &str, query: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(format!("GET {path}?").as_bytes());
    let _ = stream.write_all(query.as_bytes());
    let _ = stream.write_all(b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    answered(stream)
}

fn answered(mut stream: TcpStream) -> String {
    let mut start = [0; 400];
    let mut length = 0;
    while length < start.len() {
        match stream.read(&mut start[length..]) {
            Ok(read) if read > 0 => length += read,
            _ => break,
        }
    }
    String::from_utf8_lossy(&start[..length]).into_owned()
}

#[test]
fn reading_a_request_takes_at_most_four_times_its_bytes() {
    let _counting = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    // Nothing listens there: what the upstream gets is written, and not read in this process.
    let toml = "[server]\nlisten = \"127.0.0.1:0\"\n[cache]\nmemory = \"8MiB\"\n\
         [[upstream]]\nname = \"mirror\"\nkind = \"mirror\"\nurls = [\"http://127.0.0.1:9\"]\nretries = 0\n\
         default = true\n[[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\n\
         urls = [\"http://127.0.0.1:9\"]\nretries = 0\n";
    let config = config::parse(toml, "test.toml", &BTreeMap::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let clock = Arc::new(SystemClock::default());
    let service = runtime.block_on(Service::bind(&config, clock)).unwrap();
    let address = service.address().unwrap();
    runtime.spawn(service.run(std::future::pending()));

    let range = "start=1600000000&end=1600000600&step=60&query=";
    let shapes: &[(&str, &str, &str)] = &[
        ("query", "", "&"),
        ("query", "", "a&"),
        ("query", "", "=&"),
        ("query", "", "query&"),
        ("query", "", "%71uery=%61&"),
        ("query", "", "dedup=&"),
        ("query", "", "query=a;&"),
        ("query", "query=", "a"),
        ("query", "query=", "%61"),
        ("query", "query=", "%ff"),
        ("query", "query=", "\u{e9}"),
        ("query", "query=", "+"),
        ("query", "query=a", "-a"),
        ("query", "query=", "("),
        ("query", "query=a{", "a=\"\","),
        ("query", "query=a{b=~\"", "x|"),
        ("query_range", range, "a"),
        ("query_range", range, "-"),
        ("query_range", "query=a&x=", "y"),
        ("query_range", "", "start=1&"),
        ("series", "match[]=a&start=", "1"),
        ("series", "", "match[]=a&"),
        ("series", "", "match%5B%5D=%7Ba%3D%22b%22%7D&"),
        ("series", "match[]=", "a"),
        ("series", "match[]=a{", "b=\"\","),
        ("labels", "", "match[]&"),
        ("query_exemplars", "query=", "a"),
        ("read", "", "x"),
    ];
    let mut failures = Vec::new();
    let mut check = |what: String, length: usize, most: usize, said: &str| {
        let times = most.saturating_sub(CONNECTION) as f64 / length as f64;
        let status = said.get(9..12).unwrap_or("nothing");
        println!("{times:.2} times: {what}: {status}");
        // What is sent to the upstream is counted, too: a form may have three bytes for each.
        let most = if status == "502" { 8.0 } else { 4.0 };
        if times > most || status == "431" {
            failures.push(format!("{times:.2} times: {what}: {said}"));
        }
    };
    // The first time, threads and tables are set up.
    let form = "application/x-www-form-urlencoded";
    for (endpoint, head, part) in [("query", "query=a", ""), ("query", "query=", "a")] {
        let body = filled(head, if part.is_empty() { " " } else { part });
        let _ = posted(
            address,
            &format!("/prometheus/prom/api/v1/{endpoint}"),
            form,
            &body,
        );
    }
    for (endpoint, head, part) in shapes {
        let body = filled(head, part);
        let path = format!("/prometheus/prom/api/v1/{endpoint}");
        let mut said = String::new();
        let most = allocated(|| said = posted(address, &path, form, &body));
        check(
            format!("POST {endpoint} {head:.20}{part}…"),
            body.len(),
            most,
            &said,
        );
        if !matches!(*endpoint, "read") {
            let most = allocated(|| said = got(address, &path, &body));
            check(
                format!("GET {endpoint} {head:.20}{part}…"),
                body.len(),
                most,
                &said,
            );
        }
    }
    let details = r#"{"connectionDetails":"#;
    for (path, head, part) in [
        (
            "/api/metric",
            r#"{"connectionDetails":{"x":["#.to_owned(),
            r#"{"":0},"#,
        ),
        (
            "/api/metric",
            r#"{"connectionDetails":{},"query":{"conditions":["#.to_owned(),
            r#"{"":0},"#,
        ),
        ("/api/metric", "[".to_owned(), "["),
        ("/api/metric", format!("{details}{{\"x\":\""), "\\n"),
        ("/api/metric", format!("{details}{{\"x\":\""), "x"),
        (
            "/api/field/name",
            r#"{"query":{},"connectionDetails":{"#.to_owned(),
            r#""a":0,"#,
        ),
        ("/api/field/value", r#"{"x":["#.to_owned(), "0,"),
        ("/api/field/value", r#"{"x":["#.to_owned(), r#""","#),
        ("/api/connection", r#"{"x":["#.to_owned(), "[],"),
    ] {
        let body = filled(&head, part);
        let mut said = String::new();
        let most = allocated(|| said = posted(address, path, "application/json", &body));
        check(
            format!("POST {path} {head:.40}{part}…"),
            body.len(),
            most,
            &said,
        );
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
