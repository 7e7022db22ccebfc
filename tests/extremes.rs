//! Random extreme numbers through both APIs: no request that fits `max_body` makes the service allocate
//! more than 64 MiB. The upstream is real, on another thread, and answers at once.
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
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use heliostat::app::App;
use heliostat::clock::SystemClock;
use heliostat::config;
use heliostat::front::mirror::Method;

/// The most bytes that a request may have allocated at any time.
const MOST: u64 = 64 << 20;

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
        let (start, end, step) = (self.number(), self.number(), self.number());
        let (time, limit) = (self.number(), self.number());
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
        let allocated = allocation_counter::measure(|| {
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
            allocated.bytes_max <= MOST,
            "request {n} had {} bytes allocated: {said}",
            allocated.bytes_max
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
