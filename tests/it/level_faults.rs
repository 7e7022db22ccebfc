//! Whatever happens to a second level, answers are right, no request waits long for it, and it is
//! used again once it works. Also what dashboards show of it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::scripted::{Answer, Scripted, Seen};
use crate::second_level::{DAY, HOUR, Process, Redis, configuration, expected, now, query, source};
use crate::support::{ADMIN, metric};

/// A fault in the replies of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Way {
    Open,
    /// Replies come 200 ms later.
    Late,
    /// Only the first half of each piece comes.
    Halved,
    /// One byte in seven is altered.
    Changed,
    /// The connection is closed.
    Shut,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Open,
        Self::Late,
        Self::Halved,
        Self::Changed,
        Self::Shut,
    ];
}

/// A proxy to a server that injects faults.
struct Proxy {
    port: u16,
    way: Arc<AtomicU8>,
}

impl Proxy {
    async fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(AtomicU8::new(0));
        let current = way.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(passed(from_client, to_server, None));
                tokio::spawn(passed(from_server, to_client, Some(current.clone())));
            }
        });
        Self { port, way }
    }

    fn set(&self, way: Way) {
        self.way.store(way as u8, Ordering::SeqCst);
    }
}

async fn passed(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Option<Arc<AtomicU8>>) {
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let way = way.as_ref().map_or(0, |way| way.load(Ordering::SeqCst));
        let mut some = &mut piece[..length];
        match Way::ALL[usize::from(way)] {
            Way::Open => {}
            Way::Late => tokio::time::sleep(Duration::from_millis(200)).await,
            Way::Halved => some = &mut some[..length / 2],
            Way::Changed => some.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x15),
            Way::Shut => return,
        }
        if to.write_all(some).await.is_err() {
            return;
        }
    }
}

/// The headers of an answer that state its source.
struct Told {
    status: String,
    /// Milliseconds that it waited for a second level, if it used one.
    second: Option<f64>,
}

impl Process {
    async fn told(&self, body: &Value, points: &[Vec<f64>]) -> Told {
        let request = self.client.post(format!("{}/api/metric", self.url));
        let request = request.header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let (status, timing) = (header("cache-status"), header("server-timing"));
        let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let got = answer["telemetry"]["points"].clone();
        let got: Vec<Vec<f64>> = serde_json::from_value(got).unwrap();
        assert_eq!(got, points, "{status}");
        let second = timing.split("second;dur=").nth(1);
        let second = second.map(|t| t.split(',').next().unwrap().parse().unwrap());
        Told { status, second }
    }

    /// Returns whether its shared level is used again.
    async fn is_well(&self) -> bool {
        let said = self.admin("cache", None).await;
        let level = &said["levels"][0];
        level["usable"] == true && level["breakers"]["read"]["open"] == 0
    }
}

/// Queries one hour after the other of data that another replica has shared.
struct Asker {
    process: Process,
    begin: i64,
    asked: i64,
    /// The last stream queried that nobody has shared.
    unshared: u64,
}

impl Asker {
    async fn next(&mut self) -> Told {
        let (stream, hour) = (self.asked as u64 % STREAMS, self.asked / STREAMS as i64);
        assert!(hour < 24 * DAYS, "there is no more that is shared");
        self.asked += 1;
        let start = self.begin + hour * HOUR;
        let body = query(stream, start, start + HOUR);
        let points = expected(stream, start, start + HOUR);
        self.process.told(&body, &points).await
    }
}

const STREAMS: u64 = 10;
const DAYS: i64 = 20;

/// The longest that a request may wait for the level, in milliseconds, on a machine that is busy
/// with other tests; on an idle one it is 55.
const LONGEST: f64 = 500.0;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_befalls_a_shared_level_answers_are_right_and_soon_it_is_used_again() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let (source, proxy) = (source().await, Proxy::to(redis.port).await);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let warm = redis.configuration(&source.url, "warm", "1s");
    let warm = Process::start(folders[0].path(), &warm);
    warm.replicas(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = now() / DAY * DAY - (DAYS + 1) * DAY;
    for stream in 0..STREAMS {
        let body = query(stream, begin, begin + DAYS * DAY / 2);
        warm.ask(&body).await.unwrap();
        let body = query(stream, begin + DAYS * DAY / 2, begin + DAYS * DAY);
        warm.ask(&body).await.unwrap();
    }
    warm.written("shared").await;
    let toml = Redis::configuration_at(proxy.port, &source.url, "asker", "50ms");
    let mut asker = Asker {
        process: Process::start(folders[1].path(), &toml),
        begin,
        asked: 0,
        unshared: 1000,
    };
    asker.process.replicas(2).await;
    let (hot, hot_points) = (
        query(0, begin, begin + HOUR),
        expected(0, begin, begin + HOUR),
    );
    // On a busy machine reads run out of time, and then the breaker spares others: neither counts.
    let (mut found, mut timely) = (0, 0);
    for _ in 0..400 {
        let told = asker.next().await;
        let shared = told.status.contains("second level");
        found += usize::from(shared);
        timely += usize::from(shared || told.second.is_some_and(|millis| millis < 40.0));
        if timely == 40 {
            break;
        }
    }
    assert!(
        timely == 40 && found >= 20,
        "{found} of {timely} came from the shared level"
    );
    for trouble in [
        "Late", "Halved", "Changed", "Shut", "stopped", "full", "killed",
    ] {
        let before = asker.process.metrics().await;
        match trouble {
            "stopped" => redis.signal("-STOP"),
            "full" => {
                redis.cli(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
                redis.cli(&["CONFIG", "SET", "maxmemory", "1mb"]);
            }
            "killed" => redis.signal("-KILL"),
            way => proxy.set(*Way::ALL.iter().find(|w| format!("{w:?}") == way).unwrap()),
        }
        let (mut longest, mut asked) = (0f64, 0);
        for n in 0..60 {
            let told = asker.next().await;
            asked += usize::from(told.second.is_some());
            longest = longest.max(told.second.unwrap_or(0.0));
            if n % 3 == 1 {
                // Nobody has shared it yet.
                let (start, end) = (begin, begin + HOUR);
                asker.unshared += 1;
                let got = asker.process.ask(&query(asker.unshared, start, end)).await;
                assert_eq!(got.unwrap(), expected(asker.unshared, start, end));
            }
            if n % 3 == 0 {
                let told = asker.process.told(&hot, &hot_points).await;
                assert!(told.status.starts_with("heliostat; hit") && told.second.is_none());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let after = asker.process.metrics().await;
        let lost = |text: &str| {
            let lines = text.lines().filter(|line| {
                line.starts_with("heliostat_second_level_unreadable_total")
                    || line.starts_with("heliostat_second_level_requests_total")
                        && ["error", "timeout", "skipped", "full"]
                            .iter()
                            .any(|o| line.contains(&format!("outcome=\"{o}\"")))
            });
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.sum::<f64>()
        };
        let counted = lost(&after) - lost(&before);
        if trouble == "full" {
            // Only writes rest.
            assert!(asker.process.is_well().await, "it is not read");
        }
        match trouble {
            "stopped" => redis.signal("-CONT"),
            "full" => {
                redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            "killed" => redis.restart().await,
            _ => proxy.set(Way::Open),
        }
        let clock = SystemClock::default();
        let began = clock.monotonic();
        while !asker.process.is_well().await {
            asker.next().await;
            let took = clock.monotonic() - began;
            // 2 s on an idle machine.
            assert!(took < Duration::from_secs(20), "{trouble}: not used again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!(
            "{trouble}: {asked} of 60 asked it, the longest wait was {longest} ms; {counted} losses were counted; well after {:?}",
            clock.monotonic() - began
        );
        assert!(longest < LONGEST, "{trouble}: {longest} ms");
        assert!(counted > 0.0, "{trouble}");
    }
}

/// A Prometheus whose only series has the evaluation time as its value.
async fn prometheus() -> Scripted {
    Scripted::start(Arc::new(SystemClock::default()), |_, seen| {
        let asked = asked(seen);
        let number = |name: &str| asked[name].as_str().unwrap().parse::<f64>().unwrap();
        let path = seen.path.split('?').next().unwrap();
        let data = match path {
            "/api/v1/query_range" => {
                let (start, end, step) = (number("start"), number("end"), number("step"));
                let times = (0..).map(|i| start + f64::from(i) * step);
                let values = times.take_while(|t| *t <= end);
                let values: Vec<Value> = values.map(|t| json!([t, t.to_string()])).collect();
                json!({ "resultType": "matrix",
                    "result": [{ "metric": { "__name__": "up" }, "values": values }] })
            }
            "/api/v1/query" => {
                let time = number("time");
                json!({ "resultType": "vector",
                    "result": [{ "metric": { "__name__": "up" }, "value": [time, time.to_string()] }] })
            }
            _ => json!(["up"]),
        };
        Answer::json(json!({ "status": "success", "data": data }))
    })
    .await
}

/// Returns the parameters of a request, from its URL or its form.
fn asked(seen: &Seen) -> Value {
    let url = seen.path.split_once('?').map_or("", |(_, query)| query);
    let body = String::from_utf8_lossy(&seen.body).into_owned();
    let pairs = [url, &body].map(|text| {
        let pairs = url::form_urlencoded::parse(text.as_bytes());
        pairs
            .into_owned()
            .map(|(n, v)| (n, Value::from(v)))
            .collect::<Vec<_>>()
    });
    pairs
        .concat()
        .into_iter()
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn dashboards_are_warm_after_a_restart_and_say_so() {
    let (upstream, folder) = (prometheus().await, tempfile::tempdir().unwrap());
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[cache.disk]\ndir = {:?}\nsize = \"64MiB\"\n{ADMIN}\
         [[upstream]]\nname = \"dash\"\nkind = \"prometheus\"\nurls = [{:?}]\n",
        folder.path().join("disk"),
        upstream.url
    );
    let mut process = Process::start(folder.path(), &toml);
    let end = now() / 60_000 * 60 - 3600;
    let range = format!(
        "query_range?query=up&start={}&end={end}&step=15",
        end - 3600
    );
    let instant = format!("query?query=sum(up)&time={end}");
    let get = async |process: &Process, path: &str| {
        let request = process.client.get(format!("{}/api/v1/{path}", process.url));
        let response = request.send().await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        let headers = (header("cache-status"), header("server-timing"));
        (headers, response.text().await.unwrap())
    };
    let explain = async |process: &Process, path: &str| {
        process.admin(&format!("explain/api/v1/{path}"), None).await
    };
    assert_eq!(explain(&process, &range).await["answer"], "fetch");
    let mut first = Vec::new();
    for path in [&range[..], &instant, "labels"] {
        first.push(get(&process, path).await.1);
    }
    assert_eq!(explain(&process, &range).await["answer"], "cache");
    process.written("disk").await;
    // Both settled answers, and the series.
    let values = async |process: &Process| {
        let said = process.admin("cache", None).await;
        let level = said["levels"][0].clone();
        assert_eq!(
            (&level["level"], &level["usable"]),
            (&json!("disk"), &json!(true))
        );
        assert!(level["bytes"].as_u64().unwrap() <= level["limitBytes"].as_u64().unwrap());
        level["values"].as_u64().unwrap()
    };
    while values(&process).await < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.signal("-KILL");
    let process = Process::start(folder.path(), &toml);
    let calls = upstream.seen().len();
    let said = explain(&process, &range).await;
    assert_eq!(said["answer"], "secondLevel", "{said}");
    let cached = said["stretches"][0]["cached"].as_array().unwrap();
    assert!(!cached.is_empty() && cached.iter().all(|part| part["secondLevel"] == true));
    let whole = explain(&process, &instant).await;
    assert_eq!(
        (&whole["answer"], &whole["whole"]["held"]),
        (&json!("secondLevel"), &json!("hit"))
    );
    for (path, body) in [&range, &instant].into_iter().zip(&first) {
        let ((status, timing), text) = get(&process, path).await;
        assert!(status.starts_with("heliostat; hit; ttl="), "{status}");
        assert!(status.ends_with("detail=\"second level\""), "{status}");
        assert!(timing.contains("second;dur="), "{timing}");
        assert_eq!(text, *body);
        let ((status, timing), text) = get(&process, path).await;
        assert!(
            status.starts_with("heliostat; hit") && !status.contains("second"),
            "{status}"
        );
        assert!(!timing.contains("second"), "{timing}");
        assert_eq!(text, *body);
    }
    assert_eq!(upstream.seen().len(), calls, "nothing is fetched");
    assert_eq!(explain(&process, &range).await["answer"], "cache");
}

/// A separate file system, unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_file_system_costs_nothing_but_its_help() {
    let (source, folder) = (source().await, tempfile::tempdir().unwrap());
    let dir = folder.path().join("disk");
    std::fs::create_dir(&dir).unwrap();
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&dir);
    if !mount.output().is_ok_and(|said| said.status.success()) {
        println!("skipped: no file system can be mounted");
        return;
    }
    let mounted = Mounted(&dir);
    let toml = configuration(&source.url, &dir);
    let mut process = Process::start(folder.path(), &toml);
    let begin = now() / DAY * DAY - 30 * DAY;
    let full =
        "heliostat_second_level_requests_total{level=\"disk\",op=\"write\",outcome=\"full\"}";
    let mut asked = 0;
    while metric(&process.metrics().await, full) == 0.0 {
        let (start, end) = (
            begin + asked * DAY % (20 * DAY),
            begin + asked * DAY % (20 * DAY) + DAY,
        );
        let stream = asked as u64 / 20;
        let got = process.ask(&query(stream, start, end)).await.unwrap();
        assert_eq!(got, expected(stream, start, end));
        asked += 1;
        assert!(asked < 400, "it is never full");
    }
    let dropped = "heliostat_second_level_dropped_total{level=\"disk\",reason=\"resting\"}";
    assert!(metric(&process.metrics().await, dropped) > 0.0);
    process.signal("-KILL");
    // Everything written is there, and every answer is right.
    let process = Process::start(folder.path(), &toml);
    let calls = source.seen().len();
    for n in 0..asked {
        let (start, end) = (
            begin + n * DAY % (20 * DAY),
            begin + n * DAY % (20 * DAY) + DAY,
        );
        let stream = n as u64 / 20;
        let got = process.ask(&query(stream, start, end)).await.unwrap();
        assert_eq!(got, expected(stream, start, end));
    }
    assert!(source.seen().len() - calls < asked as usize, "reads go on");
    drop(process);
    drop(mounted);
}
