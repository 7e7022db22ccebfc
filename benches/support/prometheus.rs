//! Range queries of PromQL, a Prometheus in a thread of its own that answers them quickly, and a
//! real one that answers the same bytes.
//!
//! The metric `s012` has 12 series, and so on. A matcher that all of them satisfy distinguishes
//! lanes.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use heliostat::clock::Clock;
use heliostat::front::{Body, listen};
use http_body_util::BodyExt;
use tokio::net::{TcpListener, TcpStream};
use url::form_urlencoded;

use super::asking::{cents, digits};

const HEAD: &str = r#"{"status":"success","data":{"resultType":"matrix","result":["#;
const TAIL: &str = "]}}";

/// A range query; times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    pub(crate) series: u32,
    pub(crate) lane: u32,
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) step: i64,
}

impl Range {
    /// Returns the number of samples in each series.
    pub(crate) fn points(&self) -> i64 {
        (self.end - self.start) / self.step + 1
    }

    /// Returns the length of its answer's body.
    pub(crate) fn length(&self) -> usize {
        let series = self.series as usize;
        let samples = self.points() as usize * r#"[1234567890,"12.34"],"#.len() - 1;
        let around = self.metric(0).len() + "]}".len();
        HEAD.len() + series * (around + samples + 1) - 1 + TAIL.len()
    }

    fn metric(&self, n: u32) -> String {
        let name = self.series;
        format!(r#"{{"metric":{{"__name__":"s{name:03}","n":"{n:03}"}},"values":["#)
    }

    /// Returns the body of its answer.
    pub(crate) fn answer(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.length() + 1);
        out.extend_from_slice(HEAD.as_bytes());
        let mut number = itoa::Buffer::new();
        for n in 0..self.series {
            out.extend_from_slice(self.metric(n).as_bytes());
            for time in (self.start..=self.end).step_by(self.step as usize) {
                let cents = cents(n, time * 1000);
                out.push(b'[');
                out.extend_from_slice(number.format(time).as_bytes());
                out.extend_from_slice(b",\"");
                out.extend_from_slice(number.format(cents / 100).as_bytes());
                out.extend_from_slice(&[b'.', b'0' + (cents / 10 % 10) as u8]);
                out.extend_from_slice(&[b'0' + (cents % 10) as u8, b'"', b']', b',']);
            }
            out.pop();
            out.extend_from_slice(b"]},");
        }
        out.pop();
        out.extend_from_slice(TAIL.as_bytes());
        out
    }

    /// Returns the form that requests it.
    pub(crate) fn form(&self) -> String {
        let Self {
            series,
            lane,
            start,
            end,
            step,
        } = self;
        format!(
            "query=s{series:03}%7Bl%21%3D%22{lane:07}%22%7D&start={start}&end={end}&step={step}"
        )
    }

    fn read(form: &[u8]) -> Self {
        let get = |name: &str| {
            let mut pairs = form_urlencoded::parse(form);
            let found = pairs.find(|(n, _)| n == name);
            found.map(|(_, v)| v.into_owned()).unwrap_or_default()
        };
        let seconds = |name: &str| {
            let text = get(name);
            let text = text.trim_end_matches('s');
            let seconds: f64 = text.parse().unwrap();
            seconds as i64
        };
        let query = get("query");
        Self {
            series: query[1..4].parse().unwrap(),
            lane: query[9..16].parse().unwrap(),
            start: seconds("start"),
            end: seconds("end"),
            step: seconds("step"),
        }
    }
}

/// A request as bytes, made once: variable parts have a fixed width and are overwritten.
pub(crate) struct Request {
    bytes: Vec<u8>,
    lane: usize,
    start: usize,
    end: usize,
}

impl Request {
    /// Returns a request for ranges with the number of series and the step of `like`.
    pub(crate) fn new(path: &str, like: &Range) -> Self {
        let form = Range {
            lane: 0,
            start: 1_111_111_111,
            end: 2_222_222_222,
            ..*like
        }
        .form();
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        );
        let place = |mark: &str| text.find(mark).unwrap();
        Self {
            lane: place("0000000"),
            start: place("1111111111"),
            end: place("2222222222"),
            bytes: text.into_bytes(),
        }
    }

    pub(crate) fn of(&mut self, range: &Range) -> &[u8] {
        digits(&mut self.bytes[self.lane..][..7], i64::from(range.lane));
        digits(&mut self.bytes[self.start..][..10], range.start);
        digits(&mut self.bytes[self.end..][..10], range.end);
        &self.bytes
    }
}

/// The requests that a [`Quick`] received.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) calls: AtomicU64,
    /// The number of samples answered.
    pub(crate) points: AtomicU64,
}

/// Returns a response with `body`, dated `now` in milliseconds.
fn answer(now: i64, body: Vec<u8>) -> http::Response<Body> {
    let now = std::time::UNIX_EPOCH + Duration::from_millis(now as u64);
    http::Response::builder()
        .header("content-type", "application/json")
        .header("date", httpdate::fmt_http_date(now))
        .body(Body::from(body))
        .unwrap()
}

/// Returns the answer to an instant query at `time`: one series.
pub(crate) fn vector(time: &str) -> Vec<u8> {
    format!(
        r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{"__name__":"up"}},"value":[{time},"12.34"]}}]}}}}"#
    )
    .into_bytes()
}

/// A Prometheus that answers for any time. Its thread ends with the process.
pub(crate) struct Quick {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<Asked>,
}

impl Quick {
    /// Starts it; its answers are dated by `clock`.
    pub(crate) fn start(clock: Arc<dyn Clock>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Asked::default());
        let count = asked.clone();
        let handler = move |request: http::Request<hyper::body::Incoming>, _| {
            let (count, clock) = (count.clone(), clock.clone());
            async move {
                let url = request.uri().query().unwrap_or_default().to_owned();
                let form = request.into_body().collect().await.unwrap().to_bytes();
                let form = [&form, &b"&"[..], url.as_bytes()].concat();
                let mut pairs = form_urlencoded::parse(&form);
                if let Some((_, time)) = pairs.find(|(name, _)| name == "time") {
                    return answer(clock.now(), vector(&time));
                }
                let range = Range::read(&form);
                let points = range.points() as u64 * u64::from(range.series);
                count.calls.fetch_add(1, Ordering::Relaxed);
                count.points.fetch_add(points, Ordering::Relaxed);
                answer(clock.now(), range.answer())
            }
        };
        let never = std::future::pending();
        std::thread::spawn(move || {
            runtime.block_on(listen::serve(
                listener,
                listen::Listening::default(),
                handler,
                never,
            ));
        });
        Self { address, asked }
    }

    /// Returns the configuration of a Heliostat in front of it.
    pub(crate) fn config(&self) -> String {
        format!(
            r#"
[server]
listen = "127.0.0.1:0"
[cache]
memory = "1GiB"
[[upstream]]
name = "source"
kind = "prometheus"
urls = ["http://{}"]
default = true
rate_limit = {{ per_second = 1000000, burst = 1000000 }}
max_concurrency = 256
queue = 100000
"#,
            self.address
        )
    }
}

/// A real Prometheus that has the metrics `s001` and `s100`. It ends when dropped.
pub(crate) struct Real {
    process: Child,
    pub(crate) address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Real {
    /// Starts one with a sample every `step` seconds in `start..=end`, or returns `None` if
    /// Prometheus is not installed.
    pub(crate) fn start(start: i64, end: i64, step: i64) -> Option<Self> {
        for program in ["prometheus", "promtool"] {
            Command::new(program).arg("--version").output().ok()?;
        }
        let mut text = String::new();
        for series in [1, 100] {
            writeln!(text, "# TYPE s{series:03} gauge").unwrap();
            for n in 0..series {
                for time in (start..=end).step_by(step as usize) {
                    let cents = cents(n, time * 1000);
                    let (whole, part) = (cents / 100, cents % 100);
                    writeln!(
                        text,
                        "s{series:03}{{n=\"{n:03}\"}} {whole}.{part:02} {time}"
                    )
                    .unwrap();
                }
            }
        }
        text += "# EOF\n";
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("samples"), text).unwrap();
        std::fs::write(path("prometheus.yml"), "").unwrap();
        let made = Command::new("promtool")
            .args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"])
            .arg("--max-block-duration=1000h")
            .args([path("samples"), path("data")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", path("prometheus.yml")))
            .arg(format!("--storage.tsdb.path={}", path("data")))
            .arg("--storage.tsdb.retention.time=100y")
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            process,
            address,
            _folder: folder,
        })
    }

    /// Waits until it answers `range`, and compares every byte.
    pub(crate) async fn verify(&self, client: &reqwest::Client, range: &Range) {
        for round in 0.. {
            assert!(round < 200, "Prometheus did not become ready");
            let answer = fetch(client, self.address, "/api/v1/query_range", range).await;
            // It answers 503 until it has read its blocks.
            if let Some((200, _, body)) = answer {
                assert!(
                    body == range.answer(),
                    "a real Prometheus answers otherwise"
                );
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Returns the status, `Cache-Status` and body of the answer to `range`; `None` if there is none.
pub(crate) async fn fetch(
    client: &reqwest::Client,
    address: SocketAddr,
    path: &str,
    range: &Range,
) -> Option<(u16, String, Vec<u8>)> {
    TcpStream::connect(address).await.ok()?;
    let request = client.post(format!("http://{address}{path}"));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let reply = request.body(range.form()).send().await.ok()?;
    let status = reply.status().as_u16();
    let cache = reply.headers().get("cache-status");
    let cache = cache.map_or("", |c| c.to_str().unwrap()).to_owned();
    Some((status, cache, reply.bytes().await.ok()?.to_vec()))
}
