//! More load than the limits allow, and stores that fail in part.
//!
//! - Overload: the upstream may be asked 50 times a second, by its rate or by its concurrency. Clients ask 0.9,
//!   1.1, 1.7 and 10 times as often, for streams that nobody asked for before (cold) or whose last
//!   minutes have expired (warm), from one address or from many. Printed: fresh answers of each window
//!   as a share of the limit, calls that were made and abandoned, and how soon the rest was told.
//! - Sick: one question in ten is slow, and one of the two URLs fails. Printed: what the others notice.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heliostat::app::Service;
use heliostat::clock::{Clock, SystemClock};
use heliostat::config;
use heliostat::front::{Body, listen};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::net::TcpListener;

use super::support::{self, Client, quantile};

const MINUTE: i64 = 60_000;
const INTERVAL: i64 = 15_000;
/// The size of the buckets that are asked for: some begin while calls wait, and are not part of these.
const BUCKET: i64 = 10_000;

/// The rate that the limits allow, in calls per second.
const LIMIT: f64 = 50.0;
/// The upstream's response time, and the number of concurrent calls that make `LIMIT`.
const TAKES: Duration = Duration::from_millis(80);
const AT_ONCE: usize = 4;

const LOADS: [f64; 4] = [0.9, 1.1, 1.7, 10.0];

/// The durations of the parts.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// One load.
    load: Duration,
    /// The windows in which answers are counted.
    window: Duration,
    /// The deadline of a request.
    deadline: Duration,
    /// `refresh` of warm streams, and their number.
    refresh: Duration,
    warm: u64,
    /// The duration of one kind of failure.
    sick: Duration,
}

impl Pace {
    pub(crate) fn new(short: bool) -> Self {
        let seconds = Duration::from_secs_f64;
        match short {
            true => Self {
                load: seconds(3.0),
                window: seconds(1.0),
                deadline: seconds(1.5),
                refresh: seconds(0.1),
                warm: 60,
                sick: seconds(2.0),
            },
            false => Self {
                load: seconds(30.0),
                window: seconds(10.0),
                deadline: seconds(5.0),
                refresh: seconds(1.0),
                warm: 600,
                sick: seconds(20.0),
            },
        }
    }
}

/// The state of a URL.
#[derive(Clone, Copy, PartialEq)]
enum Health {
    Well,
    /// It answers 503.
    Busy,
    /// It answers 502 with a page, as a gateway without a store does.
    Page,
    /// It does not answer.
    Hangs,
}

impl Health {
    const ALL: [Self; 4] = [Self::Well, Self::Busy, Self::Page, Self::Hangs];

    fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Busy => "answers 503",
            Self::Page => "answers a page, 502",
            Self::Hangs => "does not answer",
        }
    }
}

/// A mirror with its own port.
struct Store {
    takes: Duration,
    /// The response time of every tenth query.
    slow: AtomicU64,
    health: AtomicU8,
    calls: AtomicUsize,
}

impl Store {
    async fn start(takes: Duration) -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let store = Arc::new(Self {
            takes,
            slow: AtomicU64::new(0),
            health: AtomicU8::new(0),
            calls: AtomicUsize::new(0),
        });
        let serving = store.clone();
        let handler = move |request, _| serving.clone().handle(request);
        tokio::spawn(async move {
            let never = std::future::pending();
            listen::serve(listener, listen::Listening::default(), handler, never).await;
        });
        (store, url)
    }

    fn is(&self, health: Health) {
        let at = Health::ALL.iter().position(|h| *h == health).unwrap();
        self.health.store(at as u8, Ordering::SeqCst);
    }

    async fn handle(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        let is_query = request.uri().path() == "/api/metric";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let health = Health::ALL[usize::from(self.health.load(Ordering::SeqCst))];
        let failed = |status, text: &'static str| {
            let mut response = http::Response::new(Body::from(text));
            *response.status_mut() = status;
            response
        };
        match health {
            Health::Well => {}
            Health::Busy => return failed(http::StatusCode::SERVICE_UNAVAILABLE, "not now"),
            Health::Page => {
                return failed(http::StatusCode::BAD_GATEWAY, "<html>Bad Gateway</html>");
            }
            Health::Hangs => std::future::pending().await,
        }
        if !is_query {
            return http::Response::new(Body::from(r#"{"status":"OK"}"#));
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        let request: Value = serde_json::from_slice(&body).unwrap();
        let query = &request["query"];
        let conditions = query["conditions"].as_array().unwrap();
        let stream = conditions.iter().find(|c| c["key"] == "stream").unwrap();
        let slow = stream["value"]["value"].as_str().unwrap().ends_with('0');
        let more = Duration::from_millis(self.slow.load(Ordering::SeqCst));
        tokio::time::sleep(if slow { self.takes + more } else { self.takes }).await;
        let start = query["startTime"].as_i64().unwrap();
        let end = query["endTime"]
            .as_i64()
            .unwrap()
            .min(SystemClock::default().now());
        let points: Vec<String> = (-(-start).div_euclid(INTERVAL)..)
            .map(|i| i * INTERVAL)
            .take_while(|t| *t < end)
            .map(|t| format!("[1,{t}]"))
            .collect();
        http::Response::new(Body::from(format!(
            r#"{{"telemetry":{{"points":[{}],"dataFormat":["value","timestamp"],"isPartial":false,"_type":"RawMetricTelemetry"}},"_type":"MetricsResponse"}}"#,
            points.join(",")
        )))
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Fresh,
    Expired,
    Refused,
}

/// An answer: when it came, how long it took, and its kind.
type Answered = (Duration, Duration, End);

/// Clients that send requests at a fixed rate, whether or not they are answered.
#[derive(Clone)]
struct Clients {
    address: SocketAddr,
    /// The number of their addresses.
    sources: u8,
    idle: Arc<Mutex<BTreeMap<IpAddr, Vec<Client>>>>,
    begun: Instant,
    answered: Arc<Mutex<Vec<(u64, Answered)>>>,
}

impl Clients {
    fn of(address: SocketAddr, sources: u8) -> Self {
        Self {
            address,
            sources,
            idle: Arc::default(),
            begun: Instant::now(),
            answered: Arc::default(),
        }
    }

    /// Requests the last ten minutes of `stream`.
    async fn ask(&self, stream: u64) -> End {
        let source = 10 + (stream % u64::from(self.sources)) as u8;
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 0, source));
        let idle = self
            .idle
            .lock()
            .unwrap()
            .get_mut(&source)
            .and_then(Vec::pop);
        let mut client = match idle {
            Some(client) => client,
            None => Client::connect(self.address, source).await,
        };
        let now = SystemClock::default().now();
        let text = stream.to_string();
        let conditions = [("name", "load"), ("stream", text.as_str())];
        let body = support::query("{}", conditions, (now - 10 * MINUTE, now), BUCKET);
        let asked = Instant::now();
        let answer = client.post(&body).await;
        let (took, at) = (asked.elapsed(), self.begun.elapsed());
        let end = match answer.status() {
            200 if answer.header("cache-status").contains("ttl=-") => End::Expired,
            200 => End::Fresh,
            _ => End::Refused,
        };
        self.answered
            .lock()
            .unwrap()
            .push((stream, (at, took, end)));
        self.idle
            .lock()
            .unwrap()
            .entry(source)
            .or_default()
            .push(client);
        end
    }

    /// Sends `per_second` requests per second for `duration`, for the stream that `pick` returns
    /// for the request's number. Returns the outcomes once all have ended.
    async fn load(
        mut self,
        per_second: f64,
        duration: Duration,
        pick: impl Fn(u64) -> u64,
    ) -> Vec<(u64, Answered)> {
        self.begun = Instant::now();
        self.answered = Arc::default();
        let mut asking = Vec::new();
        for n in 0.. {
            let due = Duration::from_secs_f64(n as f64 / per_second);
            if due >= duration {
                break;
            }
            tokio::time::sleep_until((self.begun + due).into()).await;
            let (clients, stream) = (self.clone(), pick(n));
            asking.push(tokio::spawn(async move { clients.ask(stream).await }));
        }
        for asked in asking {
            asked.await.unwrap();
        }
        std::mem::take(&mut *self.answered.lock().unwrap())
    }
}

async fn heliostat(name: &str, urls: &[String], pace: &Pace, limits: &str) -> SocketAddr {
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nrequest_timeout = \"{}ms\"\n\
         [[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = {urls:?}\nrefresh = \"{}ms\"\n\
         refresh_ahead = false\nrecheck = \"0s\"\n{limits}\n",
        pace.deadline.as_millis(),
        pace.refresh.as_millis(),
    );
    let config = config::parse(&config, "bench", &BTreeMap::new()).unwrap();
    let clock = Arc::new(SystemClock::default());
    let service = Service::bind(&config, clock).await.unwrap();
    let address = service.address().unwrap();
    tokio::spawn(service.run(std::future::pending()));
    address
}

/// Returns the value of the metric of `upstream` whose labels end with `rest`.
async fn metric(address: SocketAddr, name: &str, upstream: &str, rest: &str) -> f64 {
    let client = heliostat::upstream::Http::builder().build().unwrap();
    let url = format!("http://{address}/metrics");
    let text = client.get(url).send().await.unwrap().text().await.unwrap();
    let series = format!("{name}{{upstream=\"{upstream}\"{rest}}} ");
    let value = text.lines().find_map(|l| l.strip_prefix(&series));
    value.map_or(0.0, |v| v.parse().unwrap())
}

/// A kind of overload.
#[derive(Clone, Copy)]
struct Case {
    load: f64,
    by_rate: bool,
    warm: bool,
    sources: u8,
}

impl Case {
    /// Whether `words` name it: by load, limit and state, of which those that they do not name may be any.
    fn is_named_by(self, words: &[String]) -> bool {
        let named = |all: &[&str], own: &str| {
            let mut some = words
                .iter()
                .filter(|word| all.contains(&&***word))
                .peekable();
            some.peek().is_none() || some.any(|word| word == own)
        };
        let loads = LOADS.map(|load| load.to_string());
        named(
            &loads.each_ref().map(|load| &**load),
            &self.load.to_string(),
        ) && named(&["rate", "concurrency"], self.limit())
            && named(&["cold", "warm"], self.state())
    }

    fn limit(self) -> &'static str {
        if self.by_rate { "rate" } else { "concurrency" }
    }

    fn state(self) -> &'static str {
        if self.warm { "warm" } else { "cold" }
    }

    async fn run(self, pace: Pace) -> String {
        let Self {
            load,
            by_rate,
            warm,
            sources,
        } = self;
        let limits = match by_rate {
            true => "rate_limit = { per_second = 50, burst = 50 }".to_owned(),
            false => format!(
                "max_concurrency = {AT_ONCE}\nrate_limit = {{ per_second = 100000, burst = 100000 }}"
            ),
        };
        let name = format!("over-{load}-{by_rate}-{warm}-{sources}");
        let (store, url) = Store::start(TAKES).await;
        let address = heliostat(&name, &[url], &pace, &limits).await;
        let clients = Clients::of(address, sources);
        if warm {
            let mut asking = Vec::new();
            for first in 0..8 {
                let clients = clients.clone();
                asking.push(tokio::spawn(async move {
                    for stream in (first..pace.warm).step_by(8) {
                        assert!(clients.ask(stream).await == End::Fresh, "it is not warm");
                    }
                }));
            }
            for asked in asking {
                asked.await.unwrap();
            }
            tokio::time::sleep(pace.refresh).await;
        }
        let before = store.calls.load(Ordering::SeqCst);
        let pick = |n: u64| if warm { n % pace.warm } else { 1_000_000 + n };
        let answered = clients.load(load * LIMIT, pace.load, pick).await;
        let calls = store.calls.load(Ordering::SeqCst) - before;
        let abandoned = "heliostat_upstream_requests_total";
        let abandoned = metric(address, abandoned, &name, ",outcome=\"abandoned\"").await;
        let windows = pace.load.as_secs_f64() / pace.window.as_secs_f64();
        let mut shares = String::new();
        for window in 0..windows as u32 {
            let from = pace.window * window;
            let within = |(at, _, end): &Answered| {
                *end == End::Fresh && (from..from + pace.window).contains(at)
            };
            let fresh = answered.iter().filter(|(_, a)| within(a)).count();
            let share = fresh as f64 / (LIMIT * pace.window.as_secs_f64());
            shares += &format!("{:>7.1} %", 100.0 * share);
        }
        let ended = |which: End| {
            let all = answered.iter().filter(|(_, (_, _, end))| *end == which);
            let mut took: Vec<Duration> = all.map(|(_, (_, took, _))| *took).collect();
            let n = took.len();
            format!(
                "{n:>7}{:>12}{:>12}",
                quantile(&mut took, 0.5),
                quantile(&mut took, 0.99)
            )
        };
        let (refused, expired) = (ended(End::Refused), ended(End::Expired));
        format!(
            "{:<5}{:<13}{:<6}{sources:>7}{shares}{calls:>7}{abandoned:>10}{refused}{expired}",
            format!("{load}"),
            self.limit(),
            self.state(),
        )
    }
}

/// Prints the answers under more load than the limits allow.
/// `words` name the cases, or none does.
pub(crate) async fn overload(pace: Pace, words: &[String]) {
    let window = humantime::format_duration(pace.window);
    println!("\n== overload: {LIMIT} calls a second are allowed, and a call takes {TAKES:?}");
    println!(
        "fresh answers in each window of {window} as a share of the limit; calls that were made, and abandoned; those that\n\
         were refused and those answered with expired data, with the time that took (p50, p99)"
    );
    let windows = (pace.load.as_secs_f64() / pace.window.as_secs_f64()) as usize;
    println!(
        "load limit by     state clients{:>width$}  calls abandoned{:>31}{:>31}",
        "fresh",
        "refused",
        "expired",
        width = 9 * windows - 1
    );
    for load in LOADS {
        let mut cases = Vec::new();
        for by_rate in [true, false] {
            for warm in [false, true] {
                for sources in [1, 16] {
                    cases.push(Case {
                        load,
                        by_rate,
                        warm,
                        sources,
                    });
                }
            }
        }
        cases.retain(|case| case.is_named_by(words));
        // Clients share the machine with the servers that they measure.
        let at_once = if load > 2.0 { 2 } else { 8 };
        for some in cases.chunks(at_once) {
            let running = some.iter().map(|case| tokio::spawn(case.run(pace)));
            for case in running.collect::<Vec<_>>() {
                println!("{}", case.await.unwrap());
            }
        }
    }
}

/// Prints how slow queries and a failing URL affect cheap queries.
pub(crate) async fn sick(pace: Pace) {
    const CHEAP: Duration = Duration::from_millis(20);
    const SLOW: u64 = 2000;
    const PER_SECOND: f64 = 40.0;
    println!(
        "\n== one question in ten takes {SLOW} ms more, and one URL of two is sick; the others take {CHEAP:?}"
    );
    println!(
        "{:<42}{:>8}{:>8}{:>13}{:>13}{:>13}",
        "first URL, questions", "cheap", "failed", "p50", "p99", "slowest"
    );
    let mut base = None;
    let all = Health::ALL.into_iter().map(|health| (health, true));
    for (health, slow) in [(Health::Well, false)].into_iter().chain(all) {
        let (first, first_url) = Store::start(CHEAP).await;
        let (second, second_url) = Store::start(CHEAP).await;
        let name = format!("sick-{}-{slow}", health as u8);
        let limits = "rate_limit = { per_second = 200, burst = 200 }";
        let urls = [first_url, second_url];
        let pace = Pace {
            deadline: Duration::from_secs(14),
            ..pace
        };
        let address = heliostat(&name, &urls, &pace, limits).await;
        let clients = Clients::of(address, 4);
        // Both URLs are known to be healthy, then one fails for a while; new streams are not
        // counted.
        let lead = pace.sick / 4;
        clients
            .clone()
            .load(PER_SECOND, lead, |n| 5_000_000 + n * 10 + 1)
            .await;
        first.is(health);
        clients
            .clone()
            .load(PER_SECOND, lead, |n| 6_000_000 + n * 10 + 1)
            .await;
        for store in [&first, &second] {
            store
                .slow
                .store(if slow { SLOW } else { 0 }, Ordering::SeqCst);
        }
        let answered = clients.load(PER_SECOND, pace.sick, |n| 7_000_000 + n).await;
        let cheap = answered.iter().filter(|(stream, _)| stream % 10 != 0);
        let cheap: Vec<_> = cheap.map(|(_, answered)| *answered).collect();
        let failed = cheap
            .iter()
            .filter(|(_, _, end)| *end != End::Fresh)
            .count();
        let mut took: Vec<Duration> = cheap.iter().map(|(_, took, _)| *took).collect();
        took.sort_unstable();
        let p99 = took[(took.len() - 1) * 99 / 100];
        let base = *base.get_or_insert(p99);
        println!(
            "{:<42}{:>8}{failed:>8}{:>13}{:>13}{:>13}  {:.2} times",
            format!(
                "{}, {}",
                health.name(),
                if slow { "some slow" } else { "all cheap" }
            ),
            cheap.len(),
            quantile(&mut took.clone(), 0.5),
            quantile(&mut took.clone(), 0.99),
            quantile(&mut took, 1.0),
            p99.as_secs_f64() / base.as_secs_f64(),
        );
    }
}
