//! A real Prometheus and a real VictoriaMetrics, if they are installed. Heliostat's answers are
//! compared with numbers computed here from the samples, never by the store.

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::support::{Reply, Server};

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const INTERVAL: i64 = 15 * SECOND;

/// Number of series that are polled for one window each.
const FLEET: i64 = 200;

const METHODS: [&str; 12] = [
    "MEAN",
    "PERCENTILE_25",
    "PERCENTILE_50",
    "PERCENTILE_75",
    "PERCENTILE_90",
    "PERCENTILE_95",
    "PERCENTILE_98",
    "PERCENTILE_99",
    "MAX",
    "MIN",
    "SUM",
    "EVENT_COUNT",
];

const ODD: [&str; 6] = [
    "a \"quoted\" word",
    "back\\slash\\",
    "two\nlines",
    "héliøstat ☀",
    "a.b|c",
    "{x=\"y\"}",
];

type Samples = Vec<(i64, f64)>;

struct Stored {
    metric: &'static str,
    label: (&'static str, String),
    samples: Samples,
}

/// The contents of the stores. They end shortly before now, so that the newest of them may still
/// change, and `end` is on a minute.
struct Data {
    end: i64,
    series: Vec<Stored>,
}

/// Returns a pseudo-random number, the same each time.
pub(crate) fn noise(n: i64) -> i64 {
    let mut x = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x >> 33) as i64
}

impl Data {
    fn new() -> Self {
        let now = SystemClock::default().now();
        let end = now - now % MINUTE - MINUTE;
        let mut data = Self {
            end,
            series: Vec::new(),
        };
        // At the edges of buckets, off them, and a millisecond before them.
        for (host, offset, from) in [("a", 0, 3 * DAY), ("b", 7_123, DAY), ("c", -1, 3 * DAY)] {
            let samples = times(end - from, end, INTERVAL, offset)
                .filter(|t| !within(*t, end - 20 * HOUR, 10 * MINUTE))
                .filter(|t| !within(*t, end - 10 * HOUR, 2 * MINUTE))
                .map(|t| (t, (noise(t) % 20_000 - 7_000) as f64 / 100.0))
                .collect();
            data.add("g_temp", ("host", host), samples);
        }
        for (host, offset, from, jitter) in
            [("a", 0, 3 * DAY, 0), ("b", 4_567, 2 * DAY + 77_000, 45)]
        {
            let mut value = 0;
            let mut samples = Samples::new();
            for t in times(end - from, end, INTERVAL, offset) {
                let n = t / INTERVAL;
                value += noise(n) % 900;
                if n % 700 == 3 {
                    value = noise(n) % 50;
                }
                let gone = within(t, end - 30 * HOUR, 20 * MINUTE)
                    || within(t, end - 16 * HOUR, 2 * HOUR)
                    || within(t, end - 9 * HOUR, 6 * MINUTE);
                let t = t + if jitter > 0 { noise(n) % jitter } else { 0 };
                if !gone && t < end {
                    samples.push((t, value as f64));
                }
            }
            data.add("c_total", ("host", host), samples);
        }
        let holes = times(end - DAY, end, INTERVAL, 0)
            .map(|t| {
                let hole = noise(t) % 7 == 0;
                let value = (noise(t) % 1000) as f64 / 100.0;
                (t, if hole { f64::NAN } else { value })
            })
            .collect();
        data.add("g_nan", ("host", "a"), holes);
        for (n, odd) in ODD.into_iter().enumerate() {
            let samples = times(end - HOUR, end, MINUTE, 0);
            data.add(
                "g_odd",
                ("odd", odd),
                samples.map(|t| (t, n as f64)).collect(),
            );
        }
        let slow = times(end - 30 * DAY, end, 5 * MINUTE, 2_000)
            .map(|t| (t, (noise(t) % 9_999) as f64 / 100.0))
            .collect();
        data.add("g_slow", ("host", "a"), slow);
        data
    }

    /// Adds many series of a day each.
    fn add_fleet(&mut self) {
        let end = self.end;
        for n in 0..FLEET {
            let samples = times(end - DAY, end, INTERVAL, n % 15_000)
                .map(|t| (t, (noise(t + n) % 9_999) as f64 / 100.0))
                .collect();
            self.add("fleet", ("n", &n.to_string()), samples);
        }
    }

    fn add(&mut self, metric: &'static str, label: (&'static str, &str), samples: Samples) {
        self.series.push(Stored {
            metric,
            label: (label.0, label.1.to_owned()),
            samples,
        });
    }

    fn of(&self, metric: &str) -> Vec<&Stored> {
        self.series.iter().filter(|s| s.metric == metric).collect()
    }

    fn one(&self, metric: &str, label: &str) -> &Samples {
        let found = self.of(metric).into_iter().find(|s| s.label.1 == label);
        &found.unwrap().samples
    }

    /// Returns the text that both stores import, with times in seconds or milliseconds.
    fn text(&self, millis: bool) -> String {
        let mut text = String::new();
        let mut metric = "";
        for series in &self.series {
            if series.metric != metric && !millis {
                metric = series.metric;
                writeln!(text, "# TYPE {metric} gauge").unwrap();
            }
            let value = series.label.1.replace('\\', "\\\\").replace('"', "\\\"");
            let value = value.replace('\n', "\\n");
            let head = format!("{}{{{}=\"{value}\"}}", series.metric, series.label.0);
            for (t, v) in &series.samples {
                if millis {
                    writeln!(text, "{head} {v} {t}").unwrap();
                } else {
                    writeln!(text, "{head} {v} {}.{:03}", t / 1000, t % 1000).unwrap();
                }
            }
        }
        text
    }
}

fn within(t: i64, start: i64, len: i64) -> bool {
    (start..start + len).contains(&t)
}

/// Returns the times `k·step + offset` in `[start, end)`.
fn times(start: i64, end: i64, step: i64, offset: i64) -> impl Iterator<Item = i64> {
    let first = start.div_euclid(step);
    (first..)
        .map(move |k| k * step + offset)
        .skip_while(move |t| *t < start)
        .take_while(move |t| *t < end)
}

/// Returns all samples of several series in order of time; samples of one time keep the order of
/// the series.
fn union<'a>(series: impl IntoIterator<Item = &'a Samples>) -> Samples {
    let mut all: Samples = series.into_iter().flatten().copied().collect();
    all.sort_by_key(|s| s.0);
    all
}

/// Returns per-second rates of samples at most an hour apart.
fn rates(samples: &Samples) -> Samples {
    let pairs = samples.windows(2).filter(|w| w[1].0 - w[0].0 <= HOUR);
    pairs
        .map(|w| {
            let increase = if w[1].1 < w[0].1 {
                w[1].1
            } else {
                w[1].1 - w[0].1
            };
            (w[1].0, increase * 1000.0 / (w[1].0 - w[0].0) as f64)
        })
        .collect()
}

/// Returns the values of an instant selector of Prometheus 2 on the grid of the interval.
fn looked_back(samples: &Samples, start: i64, end: i64) -> Samples {
    let at = |t: i64| {
        let newest = samples.partition_point(|s| s.0 <= t).checked_sub(1)?;
        let (seen, value) = samples[newest];
        (t - seen <= 5 * MINUTE).then_some((t, value))
    };
    times(start, end, INTERVAL, 0).filter_map(at).collect()
}

/// Returns the buckets of `size` that overlap `[start, end)`: start and value.
fn buckets(samples: &Samples, method: &str, size: i64, start: i64, end: i64) -> Samples {
    let mut found = Samples::new();
    let mut at = samples.partition_point(|s| s.0 < start - start % size);
    let last = (end - 1) - (end - 1) % size + size;
    while at < samples.len() && samples[at].0 < last {
        let bucket = samples[at].0 - samples[at].0 % size;
        let next = samples.partition_point(|s| s.0 < bucket + size);
        let mut values: Vec<f64> = samples[at..next].iter().map(|s| s.1).collect();
        let sum: f64 = values.iter().sum();
        let value = match method {
            "MEAN" => sum / values.len() as f64,
            "SUM" => sum,
            "EVENT_COUNT" => values.len() as f64,
            "MAX" => values.iter().copied().fold(f64::MIN, f64::max),
            "MIN" => values.iter().copied().fold(f64::MAX, f64::min),
            percentile => {
                let p: f64 = percentile["PERCENTILE_".len()..].parse().unwrap();
                values.sort_by(f64::total_cmp);
                let rank = p / 100.0 * (values.len() - 1) as f64;
                let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
                values[low] + (values[high] - values[low]) * (rank - rank.floor())
            }
        };
        found.push((bucket, value));
        at = next;
    }
    found
}

fn clip(samples: &Samples, start: i64, end: i64) -> Samples {
    let held = |s: &&(i64, f64)| (start..end).contains(&s.0);
    samples.iter().filter(held).copied().collect()
}

/// Fails unless both have the same times, and values that differ at most by rounding.
fn same(what: &str, got: &Samples, expected: &Samples) {
    for (g, e) in got.iter().zip(expected) {
        let near = (g.1 - e.1).abs() <= 1e-9 * e.1.abs().max(1e-3);
        assert!(g.0 == e.0 && near, "{what}: {g:?} where {e:?} was expected");
    }
    assert_eq!(got.len(), expected.len(), "{what}: number of points");
}

/// A store that runs until dropped.
pub(crate) struct Store {
    name: &'static str,
    pub(crate) url: String,
    child: Child,
    args: Vec<String>,
    ready: String,
    folder: tempfile::TempDir,
}

impl Drop for Store {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns whether `program` is installed. If not, prints so, or fails if it is required.
pub(crate) fn installed(program: &str) -> bool {
    let run = Command::new(program).arg("--version").output();
    if run.is_ok() {
        return true;
    }
    let required = std::env::var_os("HELIOSTAT_REQUIRE_REAL").is_some_and(|v| v == "1");
    assert!(!required, "{program} is not installed, and is required");
    println!("SKIPPED: {program} is not installed");
    false
}

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

fn spawn(name: &str, args: &[String], folder: &tempfile::TempDir) -> Child {
    Command::new(name)
        .args(args)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Store {
    pub(crate) async fn start(
        name: &'static str,
        folder: tempfile::TempDir,
        args: &[String],
        port: u16,
        ready: &str,
    ) -> Self {
        let store = Self {
            name,
            url: format!("http://127.0.0.1:{port}"),
            child: spawn(name, args, &folder),
            args: args.to_vec(),
            ready: ready.to_owned(),
            folder,
        };
        store.is_ready().await;
        store
    }

    /// Kills it, so that it cannot shut down cleanly.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again with what it has stored.
    pub(crate) async fn start_again(&mut self) {
        self.launch();
        self.is_ready().await;
    }

    /// Does the same without waiting until it is ready.
    pub(crate) fn launch(&mut self) {
        self.child = spawn(self.name, &self.args, &self.folder);
    }

    pub(crate) async fn is_ready(&self) {
        let client = heliostat::upstream::Http::builder().build().unwrap();
        for _ in 0..200 {
            let asked = client
                .get(format!("{}{}", self.url, self.ready))
                .send()
                .await;
            if asked.is_ok_and(|r| r.status().is_success()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} did not become ready", self.name);
    }

    /// Sends it a signal, such as `STOP`.
    pub(crate) fn signal(&self, signal: &str) {
        crate::support::signal(&self.child, signal);
    }

    async fn prometheus(data: &Data) -> Option<Self> {
        if !installed("prometheus") || !installed("promtool") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("samples"), data.text(false) + "# EOF\n").unwrap();
        std::fs::write(path("prometheus.yml"), "").unwrap();
        // promtool reads the file once per block, so a few long blocks are faster than many short
        // ones.
        let made = Command::new("promtool")
            .args([
                "tsdb",
                "create-blocks-from",
                "openmetrics",
                "--quiet",
                "--max-block-duration=1000h",
            ])
            .args([path("samples"), path("data")])
            .output()
            .unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let port = free_port();
        let args = [
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
            "--storage.tsdb.retention.time=10y".to_owned(),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ];
        Some(Self::start("prometheus", folder, &args, port, "/-/ready").await)
    }

    async fn victoria_metrics(data: &Data) -> Option<Self> {
        if !installed("victoria-metrics") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let args = [
            format!("-storageDataPath={}", folder.path().join("data").display()),
            format!("-httpListenAddr=127.0.0.1:{port}"),
            "-retentionPeriod=100y".to_owned(),
        ];
        let store = Self::start("victoria-metrics", folder, &args, port, "/health").await;
        let client = heliostat::upstream::Http::builder().build().unwrap();
        let import = format!("{}/api/v1/import/prometheus", store.url);
        let sent = client
            .post(import)
            .body(data.text(true))
            .send()
            .await
            .unwrap();
        assert!(sent.status().is_success());
        let flush = format!("{}/internal/force_flush", store.url);
        assert!(
            client
                .get(flush)
                .send()
                .await
                .unwrap()
                .status()
                .is_success()
        );
        Some(store)
    }
}

/// A Heliostat in front of a store, which it knows by several names.
struct Rig<'a> {
    store: &'a Store,
    data: &'a Data,
    server: Server,
}

impl<'a> Rig<'a> {
    async fn new(store: &'a Store, data: &'a Data) -> Self {
        let mut toml = "[server]\nmax_points = 200000\nrequest_timeout = \"30s\"\n".to_owned();
        for (name, settings) in [
            ("local", "aggregate = \"local\"\ndefault = true"),
            ("pushed", "aggregate = \"upstream\""),
            ("auto", "raw_points_max = 1000"),
            ("error", "aggregate = \"local\"\nmulti_series = \"error\""),
            (
                "error-pushed",
                "aggregate = \"upstream\"\nmulti_series = \"error\"",
            ),
            (
                "slide",
                "settle = \"10m\"\nrefresh = \"0s\"\naggregate = \"local\"",
            ),
            (
                "slide-pushed",
                "settle = \"10m\"\nrefresh = \"0s\"\naggregate = \"upstream\"",
            ),
            ("fleet", "settle = \"10m\"\nrefresh = \"5m\""),
        ] {
            writeln!(
                toml,
                "[[upstream]]\nname = \"{}-{name}\"\nkind = \"prometheus\"\nurls = [\"{}\"]\nrate_limit = {{ per_second = 5000, burst = 5000 }}\n{settings}",
                store.name, store.url
            )
            .unwrap();
        }
        Self {
            store,
            data,
            server: Server::start(&toml).await,
        }
    }

    fn upstream(&self, name: &str) -> Value {
        json!({ "upstream": format!("{}-{name}", self.store.name) })
    }

    async fn ask(
        &self,
        upstream: &str,
        conditions: &[(&str, Value)],
        window: (i64, i64),
        aggregation: Option<(&str, i64)>,
    ) -> Reply {
        let mut query = json!({
            "conditions": written(conditions),
            "startTime": window.0,
            "endTime": window.1,
        });
        if let Some((method, size)) = aggregation {
            query["aggregation"] =
                json!({ "method": method, "bucketSizeMillis": size, "_type": "Aggregation" });
        }
        let body = json!({ "connectionDetails": self.upstream(upstream), "query": query });
        self.server.post("/api/metric", &body).await
    }

    async fn raw(
        &self,
        upstream: &str,
        conditions: &[(&str, Value)],
        window: (i64, i64),
    ) -> Samples {
        let reply = self.ask(upstream, conditions, window, None).await;
        reply.points().iter().map(|p| (p[1] as i64, p[0])).collect()
    }

    async fn buckets(
        &self,
        upstream: &str,
        conditions: &[(&str, Value)],
        window: (i64, i64),
        method: &str,
        size: i64,
    ) -> Samples {
        let reply = self
            .ask(upstream, conditions, window, Some((method, size)))
            .await;
        let points = reply.points();
        assert!(points.iter().all(|p| p[2] - p[1] == size as f64));
        points.iter().map(|p| (p[1] as i64, p[0])).collect()
    }

    async fn counted(&self, metric: &str, upstream: &str, more: &str) -> f64 {
        let series = format!(
            "heliostat_{metric}{{upstream=\"{}-{upstream}\"{more}}}",
            self.store.name
        );
        self.server.metric(&series).await
    }

    fn is_prometheus(&self) -> bool {
        self.store.name == "prometheus"
    }
}

fn written(conditions: &[(&str, Value)]) -> Vec<Value> {
    let condition = |(key, value): &(&str, Value)| {
        let kind = if value.is_array() {
            "InSetValue"
        } else {
            "StringValue"
        };
        json!({ "key": key, "value": { "value": value, "_type": kind }, "_type": "EqualityCondition" })
    };
    conditions.iter().map(condition).collect()
}

fn gauge(name: &str) -> (&'static str, Value) {
    ("__gauge__", json!(name))
}

fn counter(name: &str) -> (&'static str, Value) {
    ("__counter__", json!(name))
}

fn host(name: &str) -> (&'static str, Value) {
    ("host", json!(name))
}

fn expression(text: &str) -> [(&'static str, Value); 1] {
    [("~", json!(text))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus() {
    let mut data = Data::new();
    data.add_fleet();
    if let Some(store) = Store::prometheus(&data).await {
        let rig = Rig::new(&store, &data).await;
        rig.all().await;
        rig.expressions_look_back().await;
        rig.a_fleet_is_polled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_victoria_metrics() {
    let data = Data::new();
    if let Some(store) = Store::victoria_metrics(&data).await {
        Rig::new(&store, &data).await.all().await;
    }
}

impl Rig<'_> {
    async fn all(&self) {
        let clock = SystemClock::default();
        let mut begun = Duration::ZERO;
        macro_rules! step {
            ($($name:ident)*) => {$(
                self.$name().await;
                let now = clock.monotonic();
                println!("{}: {} took {:?}", self.store.name, stringify!($name), now - begun);
                begun = now;
            )*};
        }
        step! {
            health raw_gauges methods_computed_here counters pushed_down pushed_down_counters
            pushed_down_expressions long_ranges auto_chooses several_series odd_labels
            not_a_number browsing errors windows_slide
        }
        let _ = begun;
    }

    async fn health(&self) {
        let body = json!({ "connectionDetails": self.upstream("local") });
        let reply = self.server.post("/api/connection", &body).await;
        assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("OK")));
        let dead = format!(
            "[[upstream]]\nname = \"{}-dead\"\nkind = \"prometheus\"\nurls = [\"http://127.0.0.1:{}\"]\nretries = 0",
            self.store.name,
            free_port()
        );
        let body = json!({ "connectionDetails": {} });
        let reply = Server::start(&dead)
            .await
            .post("/api/connection", &body)
            .await;
        assert_eq!(
            (reply.status, &reply.json()["status"]),
            (200, &json!("FAILURE"))
        );
    }

    async fn raw_gauges(&self) {
        let (end, data) = (self.data.end, self.data);
        for (name, window) in [
            ("a", (end - DAY, end)),
            ("b", (end - 2 * DAY, end - HOUR)),
            ("c", (end - 7 * HOUR - 1, end - 3 * HOUR - 1)),
            // Both ends are on samples: the first is included, the last is not.
            ("a", (end - 3 * DAY, end - 3 * DAY + 2 * MINUTE)),
            ("a", (end - HOUR, end - HOUR + 1)),
        ] {
            let got = self
                .raw("local", &[gauge("g_temp"), host(name)], window)
                .await;
            assert!(!got.is_empty());
            assert_eq!(
                got,
                clip(data.one("g_temp", name), window.0, window.1),
                "{name} {window:?}"
            );
        }
    }

    async fn methods_computed_here(&self) {
        let (end, data) = (self.data.end, self.data);
        let window = (end - DAY + 12_345, end - 4_321);
        let all = union(data.of("g_temp").into_iter().map(|s| &s.samples));
        for method in METHODS {
            let got = self
                .buckets("local", &[gauge("g_temp")], window, method, MINUTE)
                .await;
            same(
                method,
                &got,
                &buckets(&all, method, MINUTE, window.0, window.1),
            );
        }
        for size in [7 * SECOND, 61 * SECOND, HOUR, 123_457] {
            for method in ["MEAN", "PERCENTILE_90", "SUM"] {
                let got = self
                    .buckets("local", &[gauge("g_temp")], window, method, size)
                    .await;
                same(
                    method,
                    &got,
                    &buckets(&all, method, size, window.0, window.1),
                );
            }
        }
    }

    async fn counters(&self) {
        let (end, data) = (self.data.end, self.data);
        for name in ["a", "b"] {
            let selector = [counter("c_total"), host(name)];
            let expected = rates(data.one("c_total", name));
            // Pieces in no order, some of which end within the gaps; then their union.
            let whole = (end - 3 * DAY, end);
            for (from, to) in [
                (50, 40),
                (29, 12),
                (35, 31),
                (9, 8),
                (3, 0),
                (12, 9),
                (72, 60),
            ] {
                let window = (end - from * HOUR + 4_000, end - to * HOUR + 4_000);
                let got = self.raw("local", &selector, window).await;
                same(name, &got, &clip(&expected, window.0, window.1));
            }
            let got = self.raw("local", &selector, whole).await;
            same(name, &got, &clip(&expected, whole.0, whole.1));
            // Cut at the boundaries of chunks, fetched from the last to the first.
            let chunk = 1024 * INTERVAL;
            let mut border = end - end % chunk;
            for _ in 0..6 {
                let got = self
                    .raw("auto", &selector, (border - 1, border + INTERVAL))
                    .await;
                same(name, &got, &clip(&expected, border - 1, border + INTERVAL));
                border -= chunk;
            }
        }
        let both = union(&[
            rates(data.one("c_total", "a")),
            rates(data.one("c_total", "b")),
        ]);
        let window = (end - DAY, end);
        for method in METHODS {
            let got = self
                .buckets("local", &[counter("c_total")], window, method, MINUTE)
                .await;
            same(
                method,
                &got,
                &buckets(&both, method, MINUTE, window.0, window.1),
            );
        }
    }

    async fn pushed_down(&self) {
        let (end, data) = (self.data.end, self.data);
        let window = (end - DAY + 12_345, end - 4_321);
        for name in ["a", "b", "c"] {
            let selector = [gauge("g_temp"), host(name)];
            for method in METHODS {
                let got = self
                    .buckets("pushed", &selector, window, method, MINUTE)
                    .await;
                let expected =
                    buckets(data.one("g_temp", name), method, MINUTE, window.0, window.1);
                same(&format!("{name} {method}"), &got, &expected);
            }
        }
        let all = union(data.of("g_temp").into_iter().map(|s| &s.samples));
        for size in [15 * SECOND, 61 * SECOND, HOUR, 123_457] {
            for method in ["MEAN", "MAX", "MIN", "SUM", "EVENT_COUNT"] {
                let got = self
                    .buckets("pushed", &[gauge("g_temp")], window, method, size)
                    .await;
                same(
                    method,
                    &got,
                    &buckets(&all, method, size, window.0, window.1),
                );
            }
            let selector = [gauge("g_temp"), host("a")];
            let got = self
                .buckets("pushed", &selector, window, "PERCENTILE_95", size)
                .await;
            let expected = buckets(
                data.one("g_temp", "a"),
                "PERCENTILE_95",
                size,
                window.0,
                window.1,
            );
            same("PERCENTILE_95", &got, &expected);
        }
    }

    async fn pushed_down_counters(&self) {
        let (end, data) = (self.data.end, self.data);
        let window = (end - 20 * HOUR, end - 5 * MINUTE);
        for name in ["a", "b"] {
            let selector = [counter("c_total"), host(name)];
            let expected = rates(data.one("c_total", name));
            for method in METHODS {
                let got = self
                    .buckets("pushed", &selector, window, method, MINUTE)
                    .await;
                let expected = buckets(&expected, method, MINUTE, window.0, window.1);
                same(&format!("{name} {method}"), &got, &expected);
            }
            for size in [7 * SECOND, 61 * SECOND, HOUR] {
                for method in ["SUM", "EVENT_COUNT", "MEAN"] {
                    let got = self
                        .buckets("pushed", &selector, window, method, size)
                        .await;
                    let expected = buckets(&expected, method, size, window.0, window.1);
                    same(&format!("{name} {method} {size}"), &got, &expected);
                }
            }
        }
        let both = union(&[
            rates(data.one("c_total", "a")),
            rates(data.one("c_total", "b")),
        ]);
        for method in ["MEAN", "SUM", "MAX", "MIN", "EVENT_COUNT"] {
            let got = self
                .buckets("pushed", &[counter("c_total")], window, method, 5 * MINUTE)
                .await;
            same(
                method,
                &got,
                &buckets(&both, method, 5 * MINUTE, window.0, window.1),
            );
        }
    }

    async fn pushed_down_expressions(&self) {
        let end = self.data.end;
        // There is no gap here: each store has its own rules for stale series.
        let window = (end - 9 * HOUR, end - 5 * MINUTE);
        let selector = expression("2 * g_temp{host=\"b\"} # twice");
        let doubled = looked_back(
            self.data.one("g_temp", "b"),
            window.0 - HOUR,
            window.1 + HOUR,
        );
        let doubled: Samples = doubled.into_iter().map(|(t, v)| (t, 2.0 * v)).collect();
        for size in [MINUTE, 61 * SECOND, 7 * SECOND] {
            for method in METHODS {
                let expected = buckets(&doubled, method, size, window.0, window.1);
                for upstream in ["local", "pushed"] {
                    let got = self
                        .buckets(upstream, &selector, window, method, size)
                        .await;
                    same(&format!("{upstream} {method} {size}"), &got, &expected);
                }
            }
        }
        // An expression without labels cannot be the subject of a subquery.
        for upstream in ["local", "pushed"] {
            let got = self
                .buckets(upstream, &expression("1 + 1"), window, "SUM", MINUTE)
                .await;
            let expected: Samples = times(window.0, window.1, MINUTE, 0)
                .map(|t| (t, 8.0))
                .collect();
            same(upstream, &got, &expected);
        }
    }

    async fn expressions_look_back(&self) {
        let end = self.data.end;
        let window = (end - 22 * HOUR, end - 18 * HOUR);
        let expected = looked_back(self.data.one("g_temp", "a"), window.0, window.1);
        assert!(expected.len() < 4 * 240);
        let selector = expression("g_temp{host=\"a\"}");
        let got = self.raw("local", &selector, window).await;
        same("raw", &got, &expected);
        for method in METHODS {
            let expected = buckets(&expected, method, MINUTE, window.0, window.1);
            let got = self
                .buckets("pushed", &selector, window, method, MINUTE)
                .await;
            same(method, &got, &expected);
        }
    }

    async fn long_ranges(&self) {
        let (end, data) = (self.data.end, self.data);
        let slow = data.one("g_slow", "a");
        let window = (end - 30 * DAY, end);
        for (upstream, size) in [
            ("pushed", HOUR),
            ("auto", HOUR),
            ("local", HOUR),
            ("pushed", 3 * MINUTE),
        ] {
            for method in ["MEAN", "PERCENTILE_75", "EVENT_COUNT"] {
                let got = self
                    .buckets(upstream, &[gauge("g_slow")], window, method, size)
                    .await;
                same(
                    upstream,
                    &got,
                    &buckets(slow, method, size, window.0, window.1),
                );
            }
        }
        let got = self.raw("local", &[gauge("g_slow")], window).await;
        same("raw", &got, &clip(slow, window.0, window.1));
        // More steps than one call can have.
        let window = (end - 4 * HOUR, end - 5 * MINUTE);
        let selector = [gauge("g_temp"), host("b")];
        for upstream in ["pushed", "local"] {
            let got = self
                .buckets(upstream, &selector, window, "MAX", 1_003)
                .await;
            same(
                upstream,
                &got,
                &buckets(data.one("g_temp", "b"), "MAX", 1_003, window.0, window.1),
            );
        }
        // More steps of an expression than one call can have.
        let window = (end - 3 * DAY, end - 2 * HOUR);
        let got = self.raw("local", &expression("vector(7)"), window).await;
        let expected: Samples = times(window.0, window.1, INTERVAL, 0)
            .map(|t| (t, 7.0))
            .collect();
        assert!(expected.len() > 11_000);
        same("steps", &got, &expected);
        // More steps of a subquery than a store evaluates at once.
        let got = self
            .buckets(
                "pushed",
                &expression("vector(7)"),
                (end - 30 * DAY, end - HOUR),
                "EVENT_COUNT",
                HOUR,
            )
            .await;
        let first = end - 30 * DAY - (end - 30 * DAY) % HOUR;
        let last = end - HOUR - 1;
        let expected: Samples = times(first, last, HOUR, 0).map(|t| (t, 240.0)).collect();
        same("subquery", &got, &expected);
    }

    async fn auto_chooses(&self) {
        let (end, data) = (self.data.end, self.data);
        let selector = [gauge("g_temp"), host("a")];
        // 1000 intervals are 250 minutes.
        for (len, raw) in [(3 * HOUR, true), (6 * HOUR, false)] {
            let window = (end - 2 * DAY, end - 2 * DAY + len);
            let before = self.counted("upstream_points_total", "auto", "").await;
            let got = self.buckets("auto", &selector, window, "MEAN", HOUR).await;
            same(
                "auto",
                &got,
                &buckets(data.one("g_temp", "a"), "MEAN", HOUR, window.0, window.1),
            );
            let points = self.counted("upstream_points_total", "auto", "").await - before;
            assert_eq!(points > 100.0, raw, "{points} points");
        }
    }

    async fn several_series(&self) {
        let (end, data) = (self.data.end, self.data);
        let window = (end - HOUR, end);
        let two = [gauge("g_temp"), ("host", json!(["a", "b"]))];
        let merged = union([data.one("g_temp", "a"), data.one("g_temp", "b")]);
        let got = self.raw("local", &two, window).await;
        assert_eq!(got, clip(&merged, window.0, window.1));
        for (upstream, aggregation) in [
            ("error", None),
            ("error", Some(("MEAN", MINUTE))),
            ("error-pushed", Some(("MEAN", MINUTE))),
        ] {
            let reply = self.ask(upstream, &two, window, aggregation).await;
            assert_eq!(
                (reply.status, &reply.json()["_type"]),
                (404, &json!("MetricNotFoundError"))
            );
            assert!(reply.text.contains("differ in host"), "{}", reply.text);
        }
        let one = [gauge("g_temp"), host("a")];
        assert_eq!(self.raw("error", &one, window).await.len(), 240);
        for method in METHODS {
            let got = self
                .buckets("error-pushed", &one, window, method, MINUTE)
                .await;
            same(
                method,
                &got,
                &buckets(data.one("g_temp", "a"), method, MINUTE, window.0, window.1),
            );
        }
        let reply = self
            .ask("pushed", &two, window, Some(("PERCENTILE_50", MINUTE)))
            .await;
        assert_eq!(reply.status, 422, "{}", reply.text);
    }

    async fn odd_labels(&self) {
        let window = (self.data.end - 2 * HOUR, self.data.end);
        for (n, odd) in ODD.into_iter().enumerate() {
            let got = self
                .raw("local", &[gauge("g_odd"), ("odd", json!(odd))], window)
                .await;
            assert_eq!(got, *self.data.one("g_odd", odd), "{odd:?}");
            let two = json!([odd, ODD[(n + 1) % ODD.len()], "nothing"]);
            let got = self
                .raw("local", &[gauge("g_odd"), ("odd", two)], window)
                .await;
            assert_eq!(got.len(), 120, "{odd:?}");
        }
        for near in ["a0b|c", "a.b", "c", "two", "{x=", ""] {
            let got = self
                .raw("local", &[gauge("g_odd"), ("odd", json!(near))], window)
                .await;
            assert_eq!(got, [], "{near:?}");
        }
    }

    async fn not_a_number(&self) {
        let window = (self.data.end - HOUR, self.data.end);
        let stored = clip(self.data.one("g_nan", "a"), window.0, window.1);
        let mut finite = stored.clone();
        finite.retain(|s| !s.1.is_nan());
        assert!(finite.len() < stored.len());
        let got = self.raw("local", &[gauge("g_nan")], window).await;
        assert_eq!(got, finite);
        let got = self
            .buckets("local", &[gauge("g_nan")], window, "MEAN", MINUTE)
            .await;
        same(
            "NaN",
            &got,
            &buckets(&finite, "MEAN", MINUTE, window.0, window.1),
        );
        if self.is_prometheus() {
            let mut details = self.upstream("local");
            details["nan_interpretation"] = json!("ZERO");
            let query = json!({ "conditions": written(&[gauge("g_nan")]), "startTime": window.0, "endTime": window.1 });
            let body = json!({ "connectionDetails": details, "query": query });
            let reply = self.server.post("/api/metric", &body).await;
            let got: Samples = reply.points().iter().map(|p| (p[1] as i64, p[0])).collect();
            let zero = |s: &(i64, f64)| (s.0, if s.1.is_nan() { 0.0 } else { s.1 });
            assert_eq!(got, stored.iter().map(zero).collect::<Samples>());
        }
    }

    async fn values(&self, field: &str, more: Value) -> (Vec<String>, Value) {
        let mut query = json!({
            "conditions": [],
            "field": { "fieldName": field, "fieldType": "STRING", "classified": false, "_type": "FieldDescriptor" },
        });
        for (key, value) in more.as_object().unwrap() {
            query[key] = value.clone();
        }
        let body = json!({ "connectionDetails": self.upstream("local"), "query": query });
        let reply = self.server.post("/api/field/value", &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let json = reply.json();
        let values = json["values"].as_array().unwrap().iter();
        let values = values.map(|v| v["value"].as_str().unwrap().to_owned());
        (values.collect(), json["isPartial"].clone())
    }

    async fn browsing(&self) {
        let body =
            json!({ "connectionDetails": self.upstream("local"), "query": { "conditions": [] } });
        let reply = self.server.post("/api/field/name", &body).await;
        let json = reply.json();
        let names = json["fields"].as_array().unwrap().iter();
        let names: Vec<_> = names.map(|f| f["fieldName"].as_str().unwrap()).collect();
        assert_eq!(names[..3], ["__gauge__", "__counter__", "~"]);
        assert!(
            names.contains(&"host") && names.contains(&"odd"),
            "{names:?}"
        );

        let all = self.values("host", json!({})).await;
        assert_eq!(
            all,
            (vec!["a".into(), "b".into(), "c".into()], json!(false))
        );
        let conditions = written(&[counter("c_total")]);
        let some = self
            .values("host", json!({ "conditions": conditions }))
            .await;
        assert_eq!(some.0, ["a", "b"]);
        let conditions = written(&[gauge("g_odd")]);
        let mut odd: Vec<String> = ODD.into_iter().map(str::to_owned).collect();
        odd.sort();
        let mut got = self
            .values("odd", json!({ "conditions": conditions }))
            .await
            .0;
        got.sort();
        assert_eq!(got, odd);
        let metrics = self
            .values("__gauge__", json!({ "fieldValuePrefix": "g_" }))
            .await
            .0;
        assert_eq!(metrics, ["g_nan", "g_odd", "g_slow", "g_temp"]);
        let page = json!({ "limit": 3, "fieldValuePrefix": "g_" });
        let page = self.values("__counter__", page).await;
        let three = ["g_nan", "g_odd", "g_slow"].map(str::to_owned);
        assert_eq!(page, (three.to_vec(), json!(true)));
        let folded = self.values("__counter__", json!({ "limit": 3 })).await;
        let mut expected = vec!["c_total", "g_*"];
        if self.is_prometheus() {
            expected.insert(1, "fleet");
        }
        assert_eq!(
            (folded.0, folded.1),
            (
                expected.iter().map(|v| v.to_string()).collect(),
                json!(false)
            )
        );
        let long_ago =
            json!({ "startTime": 1_000_000_000_000_i64, "endTime": 1_000_000_100_000_i64 });
        assert_eq!(self.values("host", long_ago).await.0, Vec::<String>::new());
        let lately = json!({ "startTime": self.data.end - HOUR, "endTime": self.data.end });
        assert_eq!(self.values("host", lately).await.0, ["a", "b", "c"]);
        assert_eq!(self.values("~", json!({})).await.0, Vec::<String>::new());
    }

    async fn errors(&self) {
        let window = (self.data.end - HOUR, self.data.end);
        for text in [
            "sum(",
            "nosuch_function(g_temp)",
            "g_temp{",
            "g_temp{host=~\"(\"}",
        ] {
            for (upstream, aggregation) in [("local", None), ("pushed", Some(("MEAN", MINUTE)))] {
                let reply = self
                    .ask(upstream, &expression(text), window, aggregation)
                    .await;
                let kind = reply.json()["_type"].clone();
                assert_eq!(
                    (reply.status, kind),
                    (404, json!("MetricNotFoundError")),
                    "{text}: {}",
                    reply.text
                );
            }
        }
        for selector in [
            gauge("nosuch_metric"),
            counter("nosuch_metric"),
            ("~", json!("nosuch_metric")),
        ] {
            for upstream in ["local", "pushed"] {
                let got = self
                    .buckets(
                        upstream,
                        std::slice::from_ref(&selector),
                        window,
                        "MEAN",
                        MINUTE,
                    )
                    .await;
                assert_eq!(got, []);
            }
        }
    }

    async fn windows_slide(&self) {
        let end = self.data.end;
        let selector = [gauge("g_temp"), host("a")];
        let mut polled = Vec::new();
        for slid in [0, INTERVAL, 2 * INTERVAL] {
            let window = (end - DAY + slid, end - MINUTE + slid);
            let before = self.counted("upstream_points_total", "slide", "").await;
            let got = self.raw("slide", &selector, window).await;
            assert_eq!(got, clip(self.data.one("g_temp", "a"), window.0, window.1));
            polled.push(self.counted("upstream_points_total", "slide", "").await - before);
        }
        // Ten minutes at 15 s are 40 points.
        assert!(polled[0] > 5000.0, "{polled:?}");
        assert!(
            polled[1..].iter().all(|p| (1.0..=41.0).contains(p)),
            "{polled:?}"
        );
        let mut polled = Vec::new();
        for slid in [0, MINUTE] {
            let window = (end - DAY + slid, end - 2 * MINUTE + slid);
            let before = self
                .counted("upstream_points_total", "slide-pushed", "")
                .await;
            let got = self
                .buckets("slide-pushed", &selector, window, "SUM", MINUTE)
                .await;
            let expected = buckets(
                self.data.one("g_temp", "a"),
                "SUM",
                MINUTE,
                window.0,
                window.1,
            );
            same("slide", &got, &expected);
            polled.push(
                self.counted("upstream_points_total", "slide-pushed", "")
                    .await
                    - before,
            );
        }
        assert!(polled[0] > 1400.0, "{polled:?}");
        assert!((1.0..=12.0).contains(&polled[1]), "{polled:?}");
    }

    async fn a_fleet_is_polled(&self) {
        let clock = SystemClock::default();
        for round in 0..3 {
            let begun = clock.monotonic();
            let slid = self.data.end + round * INTERVAL;
            let window = (slid - HOUR, slid);
            for n in 0..FLEET {
                let name = n.to_string();
                let selector = [gauge("fleet"), ("n", json!(name))];
                let got = self
                    .buckets("fleet", &selector, window, "MEAN", MINUTE)
                    .await;
                let samples = self.data.one("fleet", &name);
                same(
                    &name,
                    &got,
                    &buckets(samples, "MEAN", MINUTE, window.0, window.1),
                );
            }
            let calls = self
                .counted("upstream_requests_total", "fleet", ",outcome=\"ok\"")
                .await;
            println!(
                "{FLEET} polls, round {round}: {:?}, {calls} calls so far",
                clock.monotonic() - begun
            );
            // One call per stream: the first fetch reaches a refresh ahead, and its data lasts as
            // long.
            assert_eq!(calls, FLEET as f64);
        }
    }
}
