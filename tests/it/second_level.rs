//! Persistence of the cache: real processes that are stopped and killed, with a folder that is
//! damaged in between.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::scripted::{Answer, Scripted, Seen};
use crate::support::{ADMIN, ADMIN_TOKEN, Server, metric};

pub(crate) const INTERVAL: i64 = 15_000;
pub(crate) const HOUR: i64 = 3_600_000;
pub(crate) const DAY: i64 = 24 * HOUR;

/// Returns the true value of a stream at a time.
fn truth(stream: u64, time: i64) -> f64 {
    let mixed = (time as u64 / 15_000 + stream * 977).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 40) as f64 / 100.0
}

fn stream(n: u64) -> Value {
    json!({ "key": "name", "value": { "value": format!("s{n}"), "_type": "StringValue" },
        "_type": "EqualityCondition" })
}

/// A mirror that has all data up to now.
pub(crate) async fn source() -> Scripted {
    let clock = Arc::new(SystemClock::default());
    let now = clock.clone();
    Scripted::start(clock, move |_, seen| {
        let query = &seen.json()["query"];
        let (start, end) = (&query["startTime"], &query["endTime"]);
        let (Some(start), Some(end)) = (start.as_i64(), end.as_i64()) else {
            return Answer::beyond_the_script();
        };
        let name = &query["conditions"][0]["value"]["value"];
        let Some(name) = name.as_str() else {
            return Answer::beyond_the_script();
        };
        let n: u64 = name[1..].parse().unwrap();
        let first = (start + INTERVAL - 1).div_euclid(INTERVAL);
        let last = (end.min(now.now()) - 1).div_euclid(INTERVAL);
        let points: Vec<Value> = (first..=last)
            .map(|k| k * INTERVAL)
            .map(|time| json!([truth(n, time), time]))
            .collect();
        let telemetry = json!({
            "points": points,
            "dataFormat": ["value", "timestamp"],
            "isPartial": false,
            "_type": "RawMetricTelemetry",
        });
        Answer::json(json!({ "telemetry": telemetry, "_type": "MetricsResponse" }))
    })
    .await
}

pub(crate) fn query(n: u64, start: i64, end: i64) -> Value {
    json!({
        "connectionDetails": {},
        "query": { "conditions": [stream(n)], "startTime": start, "endTime": end },
    })
}

/// Returns the expected answer to a query, except for the newest points.
pub(crate) fn expected(n: u64, start: i64, end: i64) -> Vec<Vec<f64>> {
    let first = (start + INTERVAL - 1).div_euclid(INTERVAL);
    let last = (end - 1).div_euclid(INTERVAL);
    let times = (first..=last).map(|k| k * INTERVAL);
    times
        .map(|time| vec![truth(n, time), time as f64])
        .collect()
}

pub(crate) fn configuration(url: &str, dir: &Path) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[cache.disk]\ndir = {dir:?}\nsize = \"64MiB\"\n{ADMIN}\
         [[upstream]]\nname = \"kept\"\nkind = \"mirror\"\nurls = [{url:?}]\n\
         rate_limit = {{ per_second = 100000, burst = 100000 }}\n"
    )
}

/// A separate process; it is killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub(crate) fn start(folder: &Path, toml: &str) -> Self {
        let path = folder.join("config.toml");
        std::fs::write(&path, toml).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .args(["--config".as_ref(), path.as_os_str()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut said = Vec::new();
        let mut lines = log.lines().map(Result::unwrap);
        let line = lines.find(|line| {
            said.push(line.clone());
            line.contains("listening on")
        });
        let line = line.unwrap_or_else(|| panic!("{}", said.join("\n")));
        let url = line.split_whitespace().find(|w| w.starts_with("http://"));
        let url = url.unwrap().to_owned();
        // A process that writes to a pipe that nobody reads blocks some day.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            url,
            client: heliostat::upstream::Http::builder().build().unwrap(),
        }
    }

    pub(crate) async fn ask(&self, body: &Value) -> Option<Vec<Vec<f64>>> {
        let request = self.client.post(format!("{}/api/metric", self.url));
        let request = request.header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await.ok()?;
        let status = response.status();
        let text = response.text().await.ok()?;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        Some(serde_json::from_value(answer["telemetry"]["points"].clone()).unwrap())
    }

    /// Returns the status of the answer to a query, if there is one.
    pub(crate) async fn status(&self, body: &Value) -> Option<u16> {
        let request = self.client.post(format!("{}/api/metric", self.url));
        let request = request.header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await.ok()?;
        let status = response.status().as_u16();
        response.bytes().await.ok()?;
        Some(status)
    }

    pub(crate) async fn metrics(&self) -> String {
        let response = self.client.get(format!("{}/metrics", self.url)).send();
        response.await.unwrap().text().await.unwrap()
    }

    /// Waits until everything fetched has been written to `level`.
    pub(crate) async fn written(&self, level: &str) {
        loop {
            let text = self.metrics().await;
            let of = |name: &str, labels: &str| {
                metric(
                    &text,
                    &format!("heliostat_second_level_{name}{{level={level:?}{labels}}}"),
                )
            };
            let written = of("requests_total", ",op=\"write\",outcome=\"written\"");
            if of("queue_bytes", "") == 0.0 && written > 0.0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the number of reads from its disk that took longer than they may, or were not begun.
    async fn late_reads(&self) -> f64 {
        let text = self.metrics().await;
        let late = [
            ("read", "timeout"),
            ("read", "skipped"),
            ("wait", "timeout"),
        ];
        let late = late.map(|(op, outcome)| {
            let name = format!("heliostat_second_level_requests_total{{level=\"disk\",op={op:?},outcome={outcome:?}}}");
            metric(&text, &name)
        });
        late.iter().sum()
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        let mut kill = Command::new("kill");
        kill.args(["-TERM", &self.child.id().to_string()]);
        assert!(kill.status().unwrap().success());
    }

    /// Returns whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        // A process that has ended and was not waited for has no memory.
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        status.is_ok_and(|text| text.contains("State:\tZ"))
    }

    pub(crate) fn signal(&mut self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([name, &self.child.id().to_string()]);
        assert!(kill.status().unwrap().success());
        self.child.wait().unwrap();
    }
}

pub(crate) fn now() -> i64 {
    SystemClock::default().now()
}

#[tokio::test]
async fn a_restart_fetches_nothing_that_had_settled() {
    const STREAMS: u64 = 40;
    for signal in ["-TERM", "-KILL"] {
        let (source, folder) = (source().await, tempfile::tempdir().unwrap());
        let toml = configuration(&source.url, &folder.path().join("disk"));
        let mut process = Process::start(folder.path(), &toml);
        let begin = now() - DAY;
        for n in 0..STREAMS {
            process.ask(&query(n, begin, now())).await.unwrap();
        }
        let before = now();
        if signal == "-KILL" {
            process.written("disk").await;
        }
        process.signal(signal);
        let asked = source.seen().len();
        let process = Process::start(folder.path(), &toml);
        let mut took = Vec::new();
        for n in 0..STREAMS {
            let end = now();
            let clock = SystemClock::default();
            let began = clock.monotonic();
            let got = process.ask(&query(n, begin, end)).await.unwrap();
            took.push(clock.monotonic() - began);
            let all = expected(n, begin, end);
            // The newest point may have arrived during the query.
            assert!(got.len() + 2 >= all.len() && got.len() <= all.len());
            assert_eq!(got[..], all[..got.len()], "stream {n} after {signal}");
        }
        let settled = before - 120_000 - 2 * INTERVAL - 2000;
        let start = |call: &Seen| call.json()["query"]["startTime"].as_i64().unwrap();
        let calls = &source.seen()[asked..];
        let history = calls.iter().filter(|call| start(call) < settled).count();
        // On a machine that is busy with other tests a read may exceed its limit.
        let late = process.late_reads().await;
        assert!(
            history as f64 <= late,
            "{signal}: settled data is fetched {history} times, {late} reads were late"
        );
        assert!(source.seen().len() <= asked + STREAMS as usize);
        took.sort();
        println!(
            "first answers after {signal}: p50 {:?}",
            took[took.len() / 2]
        );
    }
}

/// Returns the number of kills; 20 unless the environment sets it.
#[allow(
    clippy::disallowed_methods,
    reason = "a test may be told how long to run"
)]
fn kills() -> u64 {
    let told = std::env::var("HELIOSTAT_KILLS").ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(20)
}

/// Returns a pseudo-random number, the same each time.
fn chance(n: u64) -> u64 {
    let x = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 20
}

#[tokio::test]
async fn whatever_is_killed_and_damaged_nothing_wrong_is_served() {
    let (source, folder) = (source().await, tempfile::tempdir().unwrap());
    let disk = folder.path().join("disk");
    let toml = configuration(&source.url, &disk);
    let begin = now() - DAY;
    for round in 0..kills() {
        let mut process = Process::start(folder.path(), &toml);
        let kill = tokio::time::sleep(Duration::from_millis(50 + chance(round) % 150));
        tokio::pin!(kill);
        for n in 0.. {
            let pick = chance(round * 1000 + n);
            let start = begin + (pick % 20) as i64 * HOUR;
            let end = start + 3 * HOUR;
            let body = query(pick % 7, start, end);
            let ask = process.ask(&body);
            tokio::select! {
                got = ask => assert_eq!(got.unwrap(), expected(pick % 7, start, end)),
                () = &mut kill => break,
            }
        }
        process.signal("-KILL");
        let mut files: Vec<_> = std::fs::read_dir(&disk)
            .unwrap()
            .map(|f| f.unwrap().path())
            .filter(|f| f.extension().is_some_and(|e| e == "segment"))
            .collect();
        files.sort();
        for i in 0..round % 4 {
            let file = &files[(chance(round * 7 + i) % files.len() as u64) as usize];
            let mut bytes = std::fs::read(file).unwrap();
            if !bytes.is_empty() {
                let at = chance(round * 31 + i) as usize % bytes.len();
                bytes[at] ^= 1 << (i % 8);
                std::fs::write(file, bytes).unwrap();
            }
        }
    }
}

#[tokio::test]
async fn what_is_invalidated_does_not_come_back_after_a_restart() {
    let (source, folder) = (source().await, tempfile::tempdir().unwrap());
    let toml = configuration(&source.url, &folder.path().join("disk"));
    let begin = now() - DAY;
    let process = Process::start(folder.path(), &toml);
    let body = |n| query(n, begin, begin + HOUR);
    for n in 0..20 {
        process.ask(&body(n)).await.unwrap();
    }
    process.written("disk").await;
    let call = process
        .client
        .post(format!("{}/admin/v1/invalidate", process.url))
        .bearer_auth(ADMIN_TOKEN)
        .header("content-type", "application/json");
    let range = json!({ "upstream": "kept", "startTime": begin, "endTime": begin + HOUR / 2 });
    let answer = call.body(range.to_string()).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    drop(process);
    let process = Process::start(folder.path(), &toml);
    // On a machine that is busy with other tests a read may exceed its limit: then the next one counts.
    for n in 0..20 {
        let (asked, late) = (source.seen().len(), process.late_reads().await);
        process.ask(&body(n)).await.unwrap();
        let calls = source.seen();
        assert_eq!(calls.len(), asked + 1);
        let query = &calls[asked].json()["query"];
        assert_eq!(query["startTime"], begin);
        if query["endTime"].as_i64().unwrap() < begin + HOUR {
            return;
        }
        assert!(process.late_reads().await > late, "{query}");
    }
    panic!("every read was late");
}

#[test]
fn a_folder_that_is_used_or_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let toml = format!("[server]\nlisten = \"127.0.0.1:0\"\n[cache.disk]\ndir = {disk:?}\n");
    let _first = Process::start(folder.path(), &toml);
    let second = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .args([
            "--config".as_ref(),
            folder.path().join("config.toml").as_os_str(),
        ])
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    let expected = format!("cache.disk.dir: another process uses {}", disk.display());
    assert!(said.contains(&expected), "{said}");
    // A concurrent check does not need the folder.
    let check = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .args([
            "check".as_ref(),
            "--config".as_ref(),
            folder.path().join("config.toml").as_os_str(),
        ])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[tokio::test]
async fn a_change_of_the_folder_waits_for_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start("").await;
    let dir = folder.path().join("disk");
    let toml = format!("[cache.disk]\ndir = {dir:?}\n");
    assert_eq!(server.reload(&toml).await.unwrap().restart, ["cache.disk"]);
    assert!(!dir.exists());
}

/// On a machine that is busy with other tests a read may take more than the default of 50 ms.
const TIMEOUT: &str = "1s";

/// A separate Redis; it ends when dropped.
pub(crate) struct Redis {
    child: Child,
    pub(crate) port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    /// Starts a Redis; returns `None` if it is neither installed nor required.
    #[allow(
        clippy::disallowed_methods,
        reason = "CI says that nothing may be skipped"
    )]
    pub(crate) async fn start() -> Option<Self> {
        let port = {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let dir = tempfile::tempdir().unwrap();
        let Ok(child) = Self::spawn(port, dir.path()) else {
            let required = std::env::var("HELIOSTAT_REQUIRE_REAL").is_ok_and(|v| v == "1");
            assert!(!required, "redis-server is required");
            println!("skipped: there is no redis-server");
            return None;
        };
        let redis = Self { child, port, dir };
        redis.listens().await;
        Some(redis)
    }

    fn spawn(port: u16, dir: &Path) -> std::io::Result<Child> {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
    }

    async fn listens(&self) {
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills it and starts an empty one in its place.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.start_empty().await;
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts an empty one in the place of one that was killed.
    pub(crate) async fn start_empty(&mut self) {
        self.child = Self::spawn(self.port, self.dir.path()).unwrap();
        self.listens().await;
    }

    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        let output = cli.args(["-p", &self.port.to_string()]).args(arguments);
        String::from_utf8(output.output().unwrap().stdout).unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([name, &self.child.id().to_string()]);
        assert!(kill.status().unwrap().success());
    }

    pub(crate) fn configuration(&self, url: &str, name: &str, timeout: &str) -> String {
        Self::configuration_at(self.port, url, name, timeout)
    }

    pub(crate) fn configuration_at(port: u16, url: &str, name: &str, timeout: &str) -> String {
        format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[cache.shared]\nurls = [\"redis://127.0.0.1:{}\"]\n\
             secret = \"a secret of the tests\"\ntimeout = \"{timeout}\"\n[replicas]\nname = {name:?}\n{ADMIN}\
             [[upstream]]\nname = \"kept\"\nkind = \"mirror\"\nurls = [{url:?}]\n\
             rate_limit = {{ per_second = 100000, burst = 100000 }}\n",
            port
        )
    }
}

impl Process {
    /// Calls the admin API and returns its answer.
    pub(crate) async fn admin(&self, call: &str, body: Option<Value>) -> Value {
        let url = format!("{}/admin/v1/{call}", self.url);
        let request = match body {
            None => self.client.get(url),
            Some(body) => self
                .client
                .post(url)
                .header("content-type", "application/json")
                .body(body.to_string()),
        };
        let answer = request.bearer_auth(ADMIN_TOKEN).send().await.unwrap();
        serde_json::from_str(&answer.text().await.unwrap()).unwrap()
    }

    /// Waits until fetched data is written to the shared level: not before its first heartbeat.
    async fn writes(&self) {
        for hour in 100.. {
            let start = now() - hour * HOUR;
            self.ask(&query(99, start, start + HOUR)).await.unwrap();
            let written = "heliostat_second_level_requests_total{level=\"shared\",op=\"write\",outcome=\"written\"}";
            if metric(&self.metrics().await, written) > 0.0 {
                return;
            }
            assert!(hour < 1000);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until this many replicas are live.
    pub(crate) async fn replicas(&self, count: usize) -> Value {
        let clock = SystemClock::default();
        let began = clock.monotonic();
        loop {
            let said = self.admin("replicas", None).await;
            let live = said["replicas"].as_array().unwrap().iter();
            if live.filter(|r| r["live"] == true).count() == count {
                return said;
            }
            assert!(
                clock.monotonic() - began < Duration::from_secs(30),
                "{said}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_replica_beside_a_warm_one_fetches_the_tail_at_most_and_hears_what_is_invalidated() {
    const STREAMS: u64 = 20;
    let Some(redis) = Redis::start().await else {
        return;
    };
    let (source, one_dir, two_dir) = (
        source().await,
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let one = Process::start(
        one_dir.path(),
        &redis.configuration(&source.url, "one", TIMEOUT),
    );
    one.writes().await;
    let begin = now() - DAY;
    for n in 0..STREAMS {
        one.ask(&query(n, begin, now())).await.unwrap();
    }
    one.written("shared").await;
    let asked = source.seen().len();
    let two = Process::start(
        two_dir.path(),
        &redis.configuration(&source.url, "two", TIMEOUT),
    );
    let said = two.replicas(2).await;
    assert_eq!(said["shared"], true);
    let names: Vec<_> = said["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert_eq!(names, ["one", "two"]);
    for n in 0..STREAMS {
        let end = now();
        let got = two.ask(&query(n, begin, end)).await.unwrap();
        let all = expected(n, begin, end);
        assert!(got.len() + 3 >= all.len() && got.len() <= all.len());
        assert_eq!(got[..], all[..got.len()], "stream {n}");
    }
    let calls = source.seen();
    assert!(calls.len() <= asked + STREAMS as usize);
    for call in &calls[asked..] {
        let start = call.json()["query"]["startTime"].as_i64().unwrap();
        assert!(start > now() - HOUR, "history is fetched: {start}");
    }
    // An invalidation at one applies to both.
    let old = query(1, begin, begin + HOUR);
    two.ask(&old).await.unwrap();
    let range = json!({ "upstream": "kept", "startTime": begin, "endTime": begin + HOUR });
    let said = one.admin("invalidate", Some(range)).await;
    assert_eq!(said["replicas"], json!({ "applied": 2, "of": 2 }), "{said}");
    let asked = source.seen().len();
    two.ask(&old).await.unwrap();
    assert_eq!(source.seen().len(), asked + 1);
    // Data of another version is a miss.
    two.written("shared").await;
    drop(one);
    let mut changed = 0;
    for key in redis.cli(&["KEYS", "h1:*"]).lines() {
        if key.contains(":p") || key.ends_with(":t") {
            redis.cli(&[
                "SET",
                key,
                "\u{2}something of a later version, or of nobody",
            ]);
            changed += 1;
        }
    }
    assert!(changed > STREAMS);
    let three = Process::start(
        one_dir.path(),
        &redis.configuration(&source.url, "three", TIMEOUT),
    );
    three.replicas(2).await;
    let got = three.ask(&old).await.unwrap();
    assert_eq!(got, expected(1, begin, begin + HOUR));
    let unreadable = "heliostat_second_level_unreadable_total{level=\"shared\",reason=\"seal\"}";
    assert!(metric(&three.metrics().await, unreadable) > 0.0);
}

#[tokio::test]
async fn a_replica_with_a_disk_forgets_what_others_invalidate_also_while_it_is_away() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let source = source().await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let start = |n: usize| {
        let toml = redis.configuration(&source.url, ["one", "two"][n], "1s");
        let disk = folders[n].path().join("disk");
        let toml = format!("{toml}[cache.disk]\ndir = {disk:?}\nsize = \"64MiB\"\n");
        Process::start(folders[n].path(), &toml)
    };
    let (one, mut two) = (start(0), start(1));
    two.replicas(2).await;
    two.writes().await;
    let begin = now() / DAY * DAY - 3 * DAY;
    let hour = |n: i64| query(1, begin + n * HOUR, begin + (n + 1) * HOUR);
    for n in 0..3 {
        two.ask(&hour(n)).await.unwrap();
    }
    two.written("disk").await;
    let invalidate = async |n: i64| {
        let range = json!({ "upstream": "kept", "startTime": begin + n * HOUR, "endTime": begin + (n + 1) * HOUR });
        one.admin("invalidate", Some(range)).await["replicas"].clone()
    };
    let calls = async |process: &Process, n: i64| {
        let before = source.seen().len();
        process.ask(&hour(n)).await.unwrap();
        source.seen().len() - before
    };
    assert_eq!(invalidate(0).await, json!({ "applied": 2, "of": 2 }));
    assert_eq!(calls(&two, 0).await, 1, "it comes back from the disk");
    two.written("disk").await;
    two.signal("-KILL");
    let said = invalidate(1).await;
    assert_eq!(said["applied"], 1, "{said}");
    let two = start(1);
    two.replicas(2).await;
    // It has applied that once it has applied a later one.
    let clock = SystemClock::default();
    let began = clock.monotonic();
    while invalidate(50).await != json!({ "applied": 2, "of": 2 }) {
        assert!(clock.monotonic() - began < Duration::from_secs(30));
    }
    assert_eq!(calls(&two, 1).await, 1, "it comes back after a restart");
    assert_eq!(calls(&two, 2).await, 0, "nothing else is forgotten");
    assert_eq!(calls(&two, 0).await, 0, "nor what was fetched since");
}

#[tokio::test]
async fn answers_are_right_while_the_shared_level_is_stopped_and_after_it_is_lost() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let (source, folder) = (source().await, tempfile::tempdir().unwrap());
    let process = Process::start(
        folder.path(),
        &redis.configuration(&source.url, "one", "50ms"),
    );
    process.replicas(1).await;
    let begin = now() - 10 * DAY;
    let ask = async |n: u64| {
        let start = begin + (n % 200) as i64 * HOUR;
        let body = query(n % 5, start, start + HOUR);
        let got = process.ask(&body).await.unwrap();
        assert_eq!(got, expected(n % 5, start, start + HOUR));
    };
    for n in 0..50 {
        ask(n).await;
    }
    let waited =
        r#"heliostat_second_level_requests_total{level="shared",op="read",outcome="timeout"}"#;
    let before = metric(&process.metrics().await, waited);
    redis.signal("-STOP");
    for n in 100..400 {
        ask(n).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waited = metric(&process.metrics().await, waited) - before;
    assert!((1.0..60.0).contains(&waited), "{waited} requests waited");
    redis.signal("-CONT");
    process.replicas(1).await;
    redis.cli(&["FLUSHALL"]);
    for n in 0..50 {
        ask(n).await;
    }
}

#[tokio::test]
async fn check_says_what_about_a_shared_cache_will_hurt() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let toml = redis.configuration("http://127.0.0.1:1", "one", "50ms");
    let toml = toml.split("[[upstream]]").next().unwrap();
    std::fs::write(&path, toml).unwrap();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command
            .arg("check")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap()
    };
    let said = check();
    let (out, err) = (
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr),
    );
    assert!(said.status.success(), "{out}{err}");
    assert!(
        out.contains("cache.shared: redis://127.0.0.1:") && out.contains(": Redis "),
        "{out}"
    );
    for warning in ["maxmemory is not set", "maxmemory-policy is noeviction"] {
        assert!(err.contains(warning), "{err}");
    }
    drop(redis);
    let said = check();
    assert!(!said.status.success());
}
