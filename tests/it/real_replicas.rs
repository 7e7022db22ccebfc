//! Two real Prometheus servers with the same data as `urls` of one upstream, under a sliding load
//! on both APIs, while one of them is killed, restarted, stopped, slow, or down behind an nginx.
//! Heliostat is a process of its own, so that it is seen if it stops.
//! Prints what clients see, second by second: `cargo test --test it -- --nocapture real_replicas`.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::prometheus::{free_port, installed};
use crate::remote_write::{Sample, Written, fresh, write};
use crate::second_level::Process;
use crate::support::signal;

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const INTERVAL: i64 = 15 * SECOND;
/// Number of series that are polled in turn.
const STREAMS: i64 = 12;
/// The time-out of one attempt.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The interval between polls, for each API.
const PACE: Duration = Duration::from_millis(100);

/// One poll from its client's view.
struct Poll {
    asked: Duration,
    took: Duration,
    status: u16,
    /// Whether it was answered with expired data.
    expired: bool,
    /// The error in an answer of status 200, if it has one.
    wrong: Option<String>,
    /// Whether this process, which is not Heliostat, was not scheduled for long in the meantime, so that its
    /// time means nothing.
    stalled: bool,
}

/// An event at the first URL, or at Heliostat, this many seconds after the load began.
type Event<'a> = (u64, &'static str, Box<dyn FnMut(&Process) + Send + 'a>);

/// Clients that poll `server`.
#[derive(Clone)]
struct Load {
    client: reqwest::Client,
    url: String,
    begun: Instant,
    polls: Arc<Mutex<Vec<Poll>>>,
}

impl Load {
    /// Queries the last ten minutes of `stream`, by Prometheus' API or the mirror API.
    async fn poll(self, stream: i64, mirror: bool) {
        let now = SystemClock::default().now();
        let start = now - 10 * MINUTE;
        let request = if mirror {
            let condition = |key: &str, value: &str| {
                json!({
                    "key": key, "_type": "EqualityCondition",
                    "value": { "value": value, "_type": "StringValue" },
                })
            };
            let body = json!({
                "connectionDetails": {},
                "query": {
                    "conditions": [condition("__gauge__", "m"), condition("n", &stream.to_string())],
                    "startTime": start, "endTime": now, "_type": "MetricsQuery",
                    "aggregation": {
                        "method": "EVENT_COUNT", "bucketSizeMillis": MINUTE, "_type": "Aggregation",
                    },
                },
            });
            let request = self.client.post(format!("{}/api/metric", self.url));
            let request = request.header("content-type", "application/json");
            request.body(body.to_string())
        } else {
            let (start, end) = (start / INTERVAL * 15, now / INTERVAL * 15);
            let query = format!("query=m%7Bn=%22{stream}%22%7D&start={start}&end={end}&step=15");
            self.client
                .get(format!("{}/api/v1/query_range?{query}", self.url))
        };
        let asked = Instant::now();
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let cache = response.headers().get("cache-status");
        let expired = cache.is_some_and(|c| c.to_str().unwrap().contains("ttl=-"));
        let text = response.text().await.unwrap();
        let poll = Poll {
            asked: asked.duration_since(self.begun),
            took: asked.elapsed(),
            status,
            expired,
            wrong: wrong(&text, mirror, now).filter(|_| status == 200),
            stalled: false,
        };
        self.polls.lock().unwrap().push(poll);
    }
}

/// Returns the error in the answer `text` to a query made at `now`: both servers have a sample for
/// each interval.
fn wrong(text: &str, mirror: bool, now: i64) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_str(text).ok()?;
    let points = match mirror {
        true => &answer["telemetry"]["points"],
        false => &answer["data"]["result"][0]["values"],
    };
    let points = points.as_array()?;
    let first = now - 10 * MINUTE;
    // Up to the last refresh, less half a second for the transfer.
    let known = now - 1500;
    if mirror {
        let whole = |start: &i64| start + MINUTE <= known;
        let first = first.div_euclid(MINUTE) * MINUTE;
        let due: Vec<_> = (0..)
            .map(|i| first + i * MINUTE)
            .take_while(whole)
            .collect();
        let of = |start: &i64| {
            let point = points.iter().find(|p| p[1].as_i64() == Some(*start));
            point.and_then(|p| p[0].as_f64())
        };
        let hole = due.iter().find(|start| of(start) != Some(4.0))?;
        return Some(format!(
            "{:?} in the bucket {} s ago",
            of(hole),
            (now - hole) / 1000
        ));
    }
    let due = known.div_euclid(INTERVAL) - first.div_euclid(INTERVAL) + 1;
    let there = points.len() as i64;
    (there < due).then(|| format!("{there} points of {due}"))
}

/// Applies `events` to the first URL of `urls` under load for `seconds`, prints what clients saw,
/// and returns it.
async fn trial(
    title: &'static str,
    urls: &[&str],
    seconds: u64,
    mut events: Vec<Event<'_>>,
) -> Vec<Poll> {
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"real-replicas\"\nkind = \"prometheus\"\nurls = {urls:?}\ninterval = \"15s\"\n\
         refresh = \"1s\"\naggregate = \"local\"\ntimeout = \"{}s\"\nbreaker = {{ failures = 5, open = \"2s\" }}\n",
        TIMEOUT.as_secs()
    );
    let folder = tempfile::tempdir().unwrap();
    let server = Process::start(folder.path(), &config);
    let load = Load {
        client: server.client.clone(),
        url: server.url.clone(),
        begun: Instant::now(),
        polls: Arc::default(),
    };
    let names: Vec<_> = events.iter().map(|(at, what, _)| (*at, *what)).collect();
    let mut polling = Vec::new();
    let mut ticks = tokio::time::interval(PACE);
    let (mut before, mut stalls) = (Duration::ZERO, Vec::new());
    for n in 0.. {
        ticks.tick().await;
        let passed = load.begun.elapsed();
        if passed - before > 4 * PACE {
            stalls.push((before, passed));
        }
        before = passed;
        if passed >= Duration::from_secs(seconds) {
            break;
        }
        if events
            .first()
            .is_some_and(|(at, ..)| passed >= Duration::from_secs(*at))
        {
            let (_, _, mut happens) = events.remove(0);
            tokio::task::block_in_place(|| happens(&server));
        }
        for mirror in [false, true] {
            polling.push(tokio::spawn(load.clone().poll(n % STREAMS, mirror)));
        }
    }
    for poll in polling {
        poll.await.unwrap();
    }
    let mut polls = std::mem::take(&mut *load.polls.lock().unwrap());
    for poll in &mut polls {
        let until = poll.asked + poll.took;
        poll.stalled = stalls
            .iter()
            .any(|(from, to)| poll.asked < *to && *from < until);
    }
    print(title, seconds, &names, &polls);
    polls
}

fn print(title: &str, seconds: u64, events: &[(u64, &str)], polls: &[Poll]) {
    println!("\n== {title}");
    println!("second  polls       p50   slowest  errors  expired");
    for second in 0..seconds {
        let within = polls.iter().filter(|p| p.asked.as_secs() == second);
        let within: Vec<_> = within.collect();
        let mut took: Vec<_> = within.iter().map(|p| p.took).collect();
        took.sort_unstable();
        let millis = |at: usize| took.get(at).map_or(0.0, |t| t.as_secs_f64() * 1000.0);
        let event = events.iter().find(|(at, _)| *at == second);
        println!(
            "{second:>6}{:>7}{:>7.0} ms{:>7.0} ms{:>8}{:>9}  {}",
            within.len(),
            millis(took.len() / 2),
            millis(took.len().saturating_sub(1)),
            within.iter().filter(|p| p.status != 200).count(),
            within.iter().filter(|p| p.expired).count(),
            event.map_or("", |(_, what)| what)
        );
    }
}

/// Returns the faults that clients saw and that the healthy URL could have prevented.
fn faults(polls: &[Poll]) -> Vec<String> {
    // Where this process had no turn, attempts at the healthy URL time out as well.
    let timely = || polls.iter().filter(|p| !p.stalled);
    let failed = timely().filter(|p| p.status != 200).count();
    let expired = timely().filter(|p| p.expired).count();
    let slow = timely().filter(|p| p.took > TIMEOUT).count();
    let counted = [
        ("errors", failed, 0),
        ("expired answers", expired, 0),
        // Heliostat's own trial call may hang; the very first call may be a client's.
        ("answers that took longer than the timeout", slow, 2),
    ];
    let counted = counted.into_iter().filter(|(_, n, most)| n > most);
    let counted = counted.map(|(what, n, _)| format!("{n} {what}"));
    let wrong = polls.iter().filter_map(|p| p.wrong.clone()).take(3);
    counted.chain(wrong).collect()
}

/// Forwards connections to `target` and delays each answer by this many milliseconds.
async fn delaying(target: String, delay: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (target, delay) = (target.clone(), delay.clone());
            tokio::spawn(async move {
                let Ok(server) = TcpStream::connect(target).await else {
                    return;
                };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let asked = tokio::io::copy(&mut from_client, &mut to_server);
                let answered = async {
                    let mut piece = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = from_server.read(&mut piece).await {
                        let wait = Duration::from_millis(delay.load(Ordering::SeqCst));
                        tokio::time::sleep(wait).await;
                        if to_client.write_all(&piece[..n]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    _ = asked => {}
                    () = answered => {}
                }
            });
        }
    });
    url
}

/// An nginx that runs until dropped.
struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
    url: String,
    busy: String,
}

impl Nginx {
    /// Starts one in front of `target`, and one that has no server and answers 503.
    async fn before(target: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, busy) = (free_port(), free_port());
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path temp;\n"))
            .concat();
        let config = format!(
            "pid nginx.pid; error_log stderr; worker_processes 1;\nevents {{}}\nhttp {{ access_log off;\n{temporary}\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {target}; \
             proxy_connect_timeout 1s; proxy_read_timeout 1s; }} }}\n\
             server {{ listen 127.0.0.1:{busy}; location / {{ return 503; }} }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let child = Command::new("nginx")
            .arg("-p")
            .arg(folder.path())
            .args(["-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self {
            child,
            folder,
            url: format!("http://127.0.0.1:{port}"),
            busy: format!("http://127.0.0.1:{busy}"),
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker ends with it only if it is asked to stop.
        let process = self.child.id().to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &process]).status();
        let _ = self.child.wait();
        let _ = self.folder.path();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_pair_do_not_notice_what_happens_to_one_of_it() {
    if !installed("nginx") {
        return;
    }
    let (Some(mut first), Some(second)) = (fresh().await, fresh().await) else {
        return;
    };
    let now = SystemClock::default().now();
    let start = (now - 20 * MINUTE).div_euclid(INTERVAL) * INTERVAL;
    let series = |n: i64| Written {
        labels: vec![("__name__", "m".to_owned()), ("n", n.to_string())],
        samples: (0..(20 + 5) * 4)
            .map(|i| (start + i * INTERVAL, Sample::Float((i * n) as f64)))
            .collect(),
    };
    let all: Vec<_> = (0..STREAMS).map(series).collect();
    for store in [&first, &second] {
        write(store, &all, 0, i64::MAX).await;
    }
    let (one, two) = (first.url.clone(), second.url.clone());
    let both = [one.as_str(), two.as_str()];
    let mut seen = Vec::new();

    let store = Mutex::new(&mut first);
    let events: Vec<Event<'_>> = vec![
        (2, "kill -9", Box::new(|_| store.lock().unwrap().kill())),
        (
            6,
            "starts again",
            Box::new(|_| store.lock().unwrap().launch()),
        ),
    ];
    seen.push((
        "killed",
        trial("killed and started again", &both, 10, events).await,
    ));
    first.is_ready().await;

    let events: Vec<Event<'_>> = vec![
        (2, "SIGSTOP", Box::new(|_| first.signal("STOP"))),
        (8, "SIGCONT", Box::new(|_| first.signal("CONT"))),
    ];
    seen.push((
        "stopped",
        trial("stopped and continued", &both, 12, events).await,
    ));

    let delay = Arc::new(AtomicU64::new(0));
    let target = one.trim_start_matches("http://").to_owned();
    let slow = delaying(target, delay.clone()).await;
    let events: Vec<Event<'_>> = vec![
        (
            2,
            "each answer takes 2 s",
            Box::new(|_| delay.store(2000, Ordering::SeqCst)),
        ),
        (
            7,
            "well again",
            Box::new(|_| delay.store(0, Ordering::SeqCst)),
        ),
    ];
    seen.push(("slow", trial("slow", &[&slow, &two], 10, events).await));

    let nginx = Nginx::before(&one).await;
    let events: Vec<Event<'_>> = vec![
        (
            2,
            "SIGSTOP behind nginx: 504",
            Box::new(|_| first.signal("STOP")),
        ),
        (6, "SIGCONT", Box::new(|_| first.signal("CONT"))),
    ];
    seen.push((
        "504",
        trial("nginx answers 504", &[&nginx.url, &two], 9, events).await,
    ));
    seen.push((
        "503",
        trial("nginx answers 503", &[&nginx.busy, &two], 5, Vec::new()).await,
    ));
    let store = Mutex::new(&mut first);
    let events: Vec<Event<'_>> = vec![
        (
            2,
            "kill -9 behind nginx: 502",
            Box::new(|_| store.lock().unwrap().kill()),
        ),
        (
            6,
            "starts again",
            Box::new(|_| store.lock().unwrap().launch()),
        ),
    ];
    seen.push((
        "502",
        trial("nginx answers 502", &[&nginx.url, &two], 9, events).await,
    ));
    for (title, polls) in seen {
        let faults = faults(&polls);
        assert!(faults.is_empty(), "{title}: {faults:?}");
    }

    // A Heliostat that stops is no stall of this process.
    let events: Vec<Event<'_>> = vec![
        (
            1,
            "SIGSTOP of Heliostat",
            Box::new(|p| signal(&p.child, "STOP")),
        ),
        (6, "SIGCONT", Box::new(|p| signal(&p.child, "CONT"))),
    ];
    let polls = trial("Heliostat stops", &both, 7, events).await;
    let faults = faults(&polls);
    assert!(
        faults.iter().any(|f| f.ends_with("than the timeout")),
        "{faults:?}"
    );
}
