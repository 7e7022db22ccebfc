//! Limits that replicas share: four real processes with a real Redis, which is stopped, killed,
//! emptied and disconnected, and an upstream that counts calls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heliostat::clock::{Clock, SystemClock};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::scripted::{Answer, Scripted};
use crate::second_level::{Process, Redis, expected, now, query, source};
use crate::support::metric;

const HOUR: i64 = 3_600_000;
const PER_SECOND: usize = 40;
const BURST: usize = 40;

/// An upstream without data that notes the times of its calls.
struct Counting {
    upstream: Scripted,
    clock: Arc<SystemClock>,
    calls: Arc<Mutex<Vec<Duration>>>,
}

impl Counting {
    async fn start() -> Self {
        let clock = Arc::new(SystemClock::default());
        let calls: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let (noted, at) = (calls.clone(), clock.clone());
        let upstream = Scripted::start(clock.clone(), move |_, _| {
            noted.lock().unwrap().push(at.monotonic());
            Answer::json(json!({ "_type": "MetricsResponse", "telemetry": {
                "_type": "RawMetricTelemetry", "points": [], "dataFormat": ["value", "timestamp"],
                "isPartial": false,
            } }))
        })
        .await;
        Self {
            upstream,
            clock,
            calls,
        }
    }

    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Returns the most calls within any second.
    fn most_in_a_second(&self) -> usize {
        let mut calls = self.calls.lock().unwrap().clone();
        calls.sort();
        let within = |from: &Duration| {
            let end = *from + Duration::from_secs(1);
            calls.partition_point(|c| *c < end) - calls.partition_point(|c| c < from)
        };
        calls.iter().map(within).max().unwrap_or(0)
    }

    /// Returns the number of calls made during `time`.
    async fn during(&self, time: Duration) -> usize {
        let (before, began) = (self.count(), self.clock.monotonic());
        tokio::time::sleep(time).await;
        let took = self.clock.monotonic() - began;
        // On a busy machine the sleep may take longer.
        let made = self.count() - before;
        (made as f64 * time.as_secs_f64() / took.as_secs_f64()) as usize
    }
}

/// A connection to Redis that can be cut.
struct Cable {
    port: u16,
    cut: watch::Sender<bool>,
}

impl Cable {
    async fn to(redis: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    if *is_cut.borrow() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", redis)).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = is_cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Self { port, cut }
    }
}

fn configuration(redis: u16, upstream: &str, name: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\ndrain_grace = \"0s\"\n\
         [cache.shared]\nurls = [\"redis://127.0.0.1:{redis}\"]\nsecret = \"a secret of the tests\"\n\
         timeout = \"50ms\"\n[replicas]\nname = {name:?}\nshare_limits = true\n{}\
         [[upstream]]\nname = \"counted\"\nkind = \"mirror\"\nurls = [{upstream:?}]\nretries = 0\n\
         max_concurrency = 200\nrate_limit = {{ per_second = {PER_SECOND}, burst = {BURST} }}\n",
        crate::support::ADMIN
    )
}

/// Calls of a day that all replicas may make in the test of budgets.
const PER_DAY: usize = 1200;

/// The same, with a rate that is no matter and a budget of `PER_DAY` calls.
fn budgeted(redis: u16, upstream: &str, name: &str) -> String {
    let (mut toml, rate) = (
        configuration(redis, upstream, name),
        "per_second = 40, burst = 40",
    );
    assert!(toml.contains(rate));
    toml = toml.replace(
        rate,
        &format!("per_second = 100, burst = 20, per_day = {PER_DAY}"),
    );
    toml
}

/// The budget of calls that `process` shows.
async fn budget(process: &Process) -> serde_json::Value {
    let said = process.admin("upstreams", None).await;
    said["upstreams"][0]["state"]["budgets"][0].clone()
}

/// A number for each query of the tests in this process, so that no two queries are the same.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Sends `process` queries for uncached data as long as `goes_on` is set.
fn load(process: &Arc<Process>, goes_on: &Arc<AtomicBool>, asking: &mut JoinSet<()>) {
    for _ in 0..8 {
        let (process, goes_on) = (process.clone(), goes_on.clone());
        asking.spawn(async move {
            while goes_on.load(Ordering::Relaxed) {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let start = now() - 100 * HOUR;
                let status = process.status(&query(n, start, start + HOUR)).await;
                if status != Some(200) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
    }
}

/// Waits until `done` returns true, for at most a minute.
async fn until(what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..600 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: never");
}

/// Returns the calls of all processes that were allowed by `source`.
async fn allowed_by(processes: &[Arc<Process>], source: &str) -> f64 {
    let name = format!("heliostat_limit_calls_total{{upstream=\"counted\",source={source:?}}}");
    let mut sum = 0.0;
    for process in processes {
        sum += metric(&process.metrics().await, &name);
    }
    sum
}

/// Waits until every process has a share of a quarter and calls are allowed by the common limit.
async fn well(processes: &[Arc<Process>]) {
    let share = "heliostat_limit_share{upstream=\"counted\"}";
    until("all have a share", async || {
        for process in processes {
            if metric(&process.metrics().await, share) != 0.25 {
                return false;
            }
        }
        true
    })
    .await;
    let before = allowed_by(processes, "shared").await;
    until("calls are allowed together", async || {
        allowed_by(processes, "shared").await > before + 10.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_keep_a_limit_together_whatever_becomes_of_redis() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let counting = Counting::start().await;
    let cable = Cable::to(redis.port).await;
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut processes = Vec::new();
    for (n, folder) in folders.iter().enumerate() {
        let port = if n == 3 { cable.port } else { redis.port };
        let toml = configuration(port, &counting.upstream.url, &format!("r{n}"));
        processes.push(Arc::new(Process::start(folder.path(), &toml)));
    }
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut asking = JoinSet::new();
    for process in &processes {
        load(process, &goes_on, &mut asking);
    }
    let limit = PER_SECOND + BURST;
    let check = |when: &str| {
        let most = counting.most_in_a_second();
        println!("{when}: most calls in a second so far {most}");
        assert!(most <= limit, "{when}: {most} calls in a second");
    };
    well(&processes).await;
    // The best of three: others use this machine, too.
    let span = Duration::from_secs(4);
    let mut best = 0;
    for _ in 0..3 {
        best = best.max(counting.during(span).await);
    }
    println!("well: {best} calls in {span:?}");
    assert!(
        best * 100 >= PER_SECOND * span.as_secs() as usize * 95,
        "{best} calls"
    );
    check("well");

    redis.signal("-STOP");
    let before = allowed_by(&processes, "share").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let alone = allowed_by(&processes, "share").await - before;
    assert!(
        alone >= PER_SECOND as f64,
        "{alone} calls while it was stopped"
    );
    redis.signal("-CONT");
    well(&processes).await;
    check("stopped");

    redis.cli(&["FLUSHALL"]);
    well(&processes).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    check("emptied");

    // One of them is cut off.
    cable.cut.send(true).unwrap();
    let one = &processes[3..];
    let before = allowed_by(one, "share").await;
    until("the one that is cut off uses its share", async || {
        allowed_by(one, "share").await > before + 20.0
    })
    .await;
    // It reports that it is alone; the others do not.
    let before = allowed_by(&processes[..3], "shared").await;
    let made = counting.during(Duration::from_secs(2)).await;
    assert!(allowed_by(&processes[..3], "shared").await > before);
    println!("one cut off: {made} calls in 2 s");
    check("one cut off");
    cable.cut.send(false).unwrap();
    well(&processes).await;
    check("back");

    redis.restart().await;
    well(&processes).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    check("killed");

    // Idle for a while: a whole burst at once.
    goes_on.store(false, Ordering::Relaxed);
    asking.join_all().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    goes_on.store(true, Ordering::Relaxed);
    let mut asking = JoinSet::new();
    for process in &processes {
        load(process, &goes_on, &mut asking);
        load(process, &goes_on, &mut asking);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    check("a burst");
    goes_on.store(false, Ordering::Relaxed);
    asking.join_all().await;
}

/// The same as `configuration`, with shares that are forgotten as soon as may be.
fn forgetful(redis: u16, upstream: &str, name: &str) -> String {
    let toml = configuration(redis, upstream, name);
    let shares = "share_limits = true\n";
    assert!(toml.contains(shares));
    toml.replace(shares, "share_limits = true\nforget_after = \"10s\"\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_go_on_when_redis_comes_back_empty_after_their_shares_have_lapsed() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let counting = Counting::start().await;
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut processes = Vec::new();
    for (n, folder) in folders.iter().enumerate() {
        let toml = forgetful(redis.port, &counting.upstream.url, &format!("r{n}"));
        processes.push(Arc::new(Process::start(folder.path(), &toml)));
    }
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut asking = JoinSet::new();
    for process in &processes {
        load(process, &goes_on, &mut asking);
    }
    well(&processes).await;
    redis.kill();
    // Longer than any share lasts.
    tokio::time::sleep(Duration::from_secs(11)).await;
    redis.start_empty().await;
    // Otherwise they would wait for `forget_after` from their first heartbeat on.
    let alone = allowed_by(&processes, "share").await;
    let made = counting.during(Duration::from_secs(2)).await;
    let alone = allowed_by(&processes, "share").await - alone;
    println!("just back: {made} calls in 2 s, {alone} by shares");
    assert!(made >= PER_SECOND / 2, "{made} calls");
    well(&processes).await;
    let most = counting.most_in_a_second();
    println!("most calls in a second {most}");
    assert!(most <= PER_SECOND + BURST, "{most} calls in a second");
    goes_on.store(false, Ordering::Relaxed);
    asking.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_cut_off_applies_on_return_what_was_invalidated() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let source = source().await;
    let cable = Cable::to(redis.port).await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let start = |n: usize, port: u16| {
        let toml = sharing(port, &source.url, ["one", "two"][n]);
        Process::start(folders[n].path(), &toml)
    };
    let (one, two) = (start(0, redis.port), start(1, cable.port));
    one.replicas(2).await;
    two.replicas(2).await;
    let begin = now() - 50 * HOUR;
    let body = query(1, begin, begin + HOUR);
    let calls = async |process: &Process| {
        let before = source.seen().len();
        let got = process.ask(&body).await.unwrap();
        assert_eq!(got, expected(1, begin, begin + HOUR));
        source.seen().len() - before
    };
    let invalidate = async || {
        let range = json!({ "upstream": "kept", "startTime": begin, "endTime": begin + HOUR });
        one.admin("invalidate", Some(range)).await["replicas"].clone()
    };
    assert_eq!(calls(&two).await, 1);
    assert_eq!(calls(&two).await, 0);
    cable.cut.send(true).unwrap();
    let said = invalidate().await;
    assert_eq!(said["applied"], 1, "{said}");
    assert_eq!(calls(&two).await, 0, "it could not hear of it");
    cable.cut.send(false).unwrap();
    let clock = SystemClock::default();
    let began = clock.monotonic();
    while calls(&two).await == 0 {
        assert!(
            clock.monotonic() - began < Duration::from_secs(30),
            "never applied"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(calls(&two).await, 0, "once");
    one.replicas(2).await;
    assert_eq!(invalidate().await, json!({ "applied": 2, "of": 2 }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_never_exceed_a_budget_by_a_call_whatever_becomes_of_redis() {
    let Some(mut redis) = Redis::start().await else {
        return;
    };
    let counting = Counting::start().await;
    let cable = Cable::to(redis.port).await;
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut processes = Vec::new();
    for (n, folder) in folders.iter().enumerate() {
        let port = if n == 3 { cable.port } else { redis.port };
        let toml = budgeted(port, &counting.upstream.url, &format!("r{n}"));
        processes.push(Arc::new(Process::start(folder.path(), &toml)));
    }
    let day = now() / (24 * HOUR);
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut asking = JoinSet::new();
    for process in &processes {
        load(process, &goes_on, &mut asking);
    }
    well(&processes).await;
    let show = |when: &str| println!("{when}: {} calls of {PER_DAY}", counting.count());
    show("well");
    redis.signal("-STOP");
    let before = counting.count();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(
        counting.count() > before,
        "leases are used while Redis is away"
    );
    redis.signal("-CONT");
    well(&processes).await;
    show("stopped");
    redis.cli(&["FLUSHALL"]);
    well(&processes).await;
    show("emptied");
    cable.cut.send(true).unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    show("one cut off");
    let before = counting.count();
    assert!(before < PER_DAY, "it is not tried how it ends");
    redis.restart().await;
    // One is still cut off, and has its lease until that is used.
    well(&processes[..3]).await;
    show("killed");
    cable.cut.send(false).unwrap();
    until("nothing is left", async || {
        let mut left = 0;
        for process in &processes {
            left += budget(process).await["left"].as_u64().unwrap();
        }
        left == 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    show("back");
    goes_on.store(false, Ordering::Relaxed);
    asking.join_all().await;
    if now() / (24 * HOUR) != day {
        println!("skipped: a day has begun");
        return;
    }
    // What was counted last may be on its way.
    let mut used = 0;
    for process in &processes {
        used += budget(process).await["used"].as_u64().unwrap() as usize;
    }
    println!("{used} of {PER_DAY} were used");
    assert_eq!(used, counting.count());
    // Calls that waited for a lease are counted once, too.
    let counted = allowed_by(&processes, "shared").await + allowed_by(&processes, "share").await;
    assert_eq!(counted as usize, used);
    // What was about to move from one to another when data was lost is lost, too.
    assert!((PER_DAY * 9 / 10..=PER_DAY).contains(&used), "{used}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_the_store_asks_one_replica_for_holds_for_the_other() {
    const PAUSE: u64 = 8;
    let Some(redis) = Redis::start().await else {
        return;
    };
    let clock = Arc::new(SystemClock::default());
    let calls: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (noted, at) = (calls.clone(), clock.clone());
    let upstream = Scripted::start(clock.clone(), move |n, _| {
        noted.lock().unwrap().push(at.monotonic());
        let answer = Answer::json(json!({ "_type": "MetricsResponse", "telemetry": {
            "_type": "RawMetricTelemetry", "points": [], "dataFormat": ["value", "timestamp"],
            "isPartial": false,
        } }));
        match n {
            0 => Answer {
                status: 429,
                headers: [("retry-after".to_owned(), PAUSE.to_string())].into(),
                ..answer
            },
            _ => answer,
        }
    })
    .await;
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |n: usize| {
        let toml = configuration(redis.port, &upstream.url, &format!("r{n}"));
        Process::start(folders[n].path(), &toml)
    };
    let (told, other) = (start(0), start(1));
    for process in [&told, &other] {
        process.replicas(2).await;
        let share = "heliostat_limit_share{upstream=\"counted\"}";
        until("it has a share", async || {
            metric(&process.metrics().await, share) > 0.0
        })
        .await;
    }
    let paused = async |process: &Process| {
        let said = process.admin("upstreams", None).await;
        said["upstreams"][0]["state"]["limiter"]["pausedSeconds"].as_f64()
    };
    assert_eq!(paused(&other).await, None);
    let start = now() - 100 * HOUR;
    let refused = told.status(&query(1, start, start + HOUR)).await;
    assert_ne!(refused, Some(200));
    until("the other has heard of it", async || {
        paused(&other).await.is_some()
    })
    .await;
    let began = clock.monotonic();
    let status = other.status(&query(2, start, start + HOUR)).await;
    assert_eq!(status, Some(200), "it waits for the end of the pause");
    assert!(clock.monotonic() > began);
    let calls = calls.lock().unwrap().clone();
    let after = calls[1] - calls[0];
    println!("the other called {after:?} after the pause was asked for");
    assert_eq!(calls.len(), 2);
    assert!(after >= Duration::from_secs(PAUSE), "{after:?}");
}

/// The configuration of a replica that shares data but no limits.
fn sharing(redis: u16, upstream: &str, name: &str) -> String {
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\ndrain_grace = \"0s\"\n\
         [cache.shared]\nurls = [\"redis://127.0.0.1:{redis}\"]\nsecret = \"a secret of the tests\"\n\
         timeout = \"1s\"\n[replicas]\nname = {name:?}\n{}\
         [[upstream]]\nname = \"kept\"\nkind = \"mirror\"\nurls = [{upstream:?}]\nretries = 0\n\
         rate_limit = {{ per_second = 100000, burst = 100000 }}\n",
        crate::support::ADMIN
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_replicas_asked_in_turn_cost_what_one_would() {
    const STREAMS: u64 = 1000;
    let Some(redis) = Redis::start().await else {
        return;
    };
    let source = source().await;
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |(n, folder): (usize, &tempfile::TempDir)| {
        let toml = sharing(redis.port, &source.url, &format!("r{n}"));
        Arc::new(Process::start(folder.path(), &toml))
    };
    let processes: Vec<_> = folders.iter().enumerate().map(start).collect();
    for process in &processes {
        process.replicas(4).await;
    }
    let end = now() - HOUR;
    let mut asking = JoinSet::new();
    for first in 0..4 {
        let processes = processes.clone();
        asking.spawn(async move {
            for n in (first..STREAMS).step_by(4) {
                let body = query(n, end - HOUR, end);
                for turn in 0..4 {
                    let process = &processes[((n + turn) % 4) as usize];
                    let got = process.ask(&body).await.unwrap();
                    assert_eq!(got, expected(n, end - HOUR, end));
                }
            }
        });
    }
    asking.join_all().await;
    let calls = source.seen().len();
    println!("{calls} calls for {STREAMS} streams, asked of four replicas in turn");
    assert!(calls as u64 * 10 <= STREAMS * 11, "{calls} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_while_it_fetches_delays_no_other_and_overwrites_nothing() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let clock = Arc::new(SystemClock::default());
    let end = now() - HOUR;
    // The value is the number of the call; the first two hang.
    let upstream = Scripted::start(clock.clone(), move |n, _| Answer {
        gate: n < 2,
        ..Answer::json(json!({ "_type": "MetricsResponse", "telemetry": {
            "_type": "RawMetricTelemetry", "points": [[n, end - HOUR]],
            "dataFormat": ["value", "timestamp"], "isPartial": false,
        } }))
    })
    .await;
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |n: usize| {
        let toml = sharing(redis.port, &upstream.url, &format!("r{n}"));
        Process::start(folders[n].path(), &toml)
    };
    let (hangs, mut dies, other) = (Arc::new(start(0)), start(1), start(2));
    for process in [&hangs, &dies, &other] {
        process.replicas(3).await;
    }
    // A replica that answers late.
    let (late, first) = (hangs.clone(), query(1, end - HOUR, end));
    let asked = first.clone();
    let slow = tokio::spawn(async move { late.ask(&asked).await });
    upstream.asked(1).await;
    let half = Duration::from_secs(7);
    let ask = async |process: &Process, body: &serde_json::Value| {
        let began = clock.monotonic();
        let got = process.ask(body).await.unwrap();
        let took = clock.monotonic() - began;
        assert!(took < half, "it took {took:?}");
        got[0][0]
    };
    // A replica that dies.
    let second = query(2, end - HOUR, end);
    let dying = async { dies.ask(&second).await };
    tokio::select! {
        _ = dying => panic!("it hangs"),
        () = upstream.asked(2) => {}
    }
    dies.signal("-KILL");
    assert_eq!(ask(&other, &second).await, 2.0);
    assert_eq!(ask(&other, &first).await, 3.0);
    other.written("shared").await;
    upstream.open();
    slow.await.unwrap().unwrap();
    // Its data is older than what is there, so there may be nothing to write.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reader = start(3);
    reader.replicas(3).await;
    assert_eq!(ask(&reader, &first).await, 3.0, "what is newer stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rolling_update_drops_no_request_keeps_the_limit_and_stays_warm() {
    const STREAMS: u64 = 30;
    let Some(redis) = Redis::start().await else {
        return;
    };
    let counting = Counting::start().await;
    let configured = |name: &str, new: bool| {
        let toml = configuration(redis.port, &counting.upstream.url, name);
        // The new one differs only in what does not change the data.
        let more = if new {
            "max_stale = \"2h\"\nqueue = 500\n"
        } else {
            ""
        };
        let toml = toml.replace("burst = 40 }", "burst = 40, per_day = 100000 }");
        toml.replace("timeout = \"50ms\"", "timeout = \"1s\"") + more
    };
    let folders: Vec<_> = (0..6).map(|_| tempfile::tempdir().unwrap()).collect();
    let start = |n: usize| {
        let toml = configured(&format!("r{n}"), n >= 3);
        Arc::new(Process::start(folders[n].path(), &toml))
    };
    let service: Arc<Mutex<Vec<Arc<Process>>>> = Arc::default();
    for n in 0..3 {
        service.lock().unwrap().push(start(n));
    }
    let pick = |service: &Mutex<Vec<Arc<Process>>>, n: u64| {
        let service = service.lock().unwrap();
        service[n as usize % service.len()].clone()
    };
    let has_share = async |process: &Process| {
        let share = "heliostat_limit_share{upstream=\"counted\"}";
        metric(&process.metrics().await, share) > 0.0
    };
    for n in 0..3 {
        let process = pick(&service, n);
        process.replicas(3).await;
        until("it has a share", async || has_share(&process).await).await;
    }
    let old = now() - 50 * HOUR;
    let warm = |n: u64| query(1_000_000 + n, old, old + HOUR);
    for n in 0..STREAMS {
        assert_eq!(pick(&service, n).status(&warm(n)).await, Some(200));
    }
    for n in 0..3 {
        pick(&service, n).written("shared").await;
    }
    // Clients query uncached data all the time.
    let goes_on = Arc::new(AtomicBool::new(true));
    let mut asking = JoinSet::new();
    for _ in 0..4 {
        let (service, goes_on) = (service.clone(), goes_on.clone());
        asking.spawn(async move {
            let mut asked = 0;
            while goes_on.load(Ordering::Relaxed) {
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                let process = pick(&service, n);
                let status = process.status(&query(n, old, old + HOUR)).await;
                assert_eq!(status, Some(200), "a request was dropped");
                asked += 1;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            asked
        });
    }
    for n in 0..3 {
        let new = start(3 + n);
        new.replicas(4).await;
        until("it has a share", async || has_share(&new).await).await;
        let ends = {
            let mut service = service.lock().unwrap();
            service.push(new);
            service.remove(0)
        };
        ends.terminate();
        let gone = async || ends.has_ended();
        until("it ends", gone).await;
        pick(&service, 2).replicas(3).await;
    }
    goes_on.store(false, Ordering::Relaxed);
    let asked: i32 = asking.join_all().await.into_iter().sum();
    let most = counting.most_in_a_second();
    println!("{asked} requests during the update; at most {most} calls in a second");
    assert!(most <= PER_SECOND + BURST, "{most} calls in a second");
    let calls = counting.count();
    for n in 0..STREAMS {
        assert_eq!(pick(&service, n).status(&warm(n)).await, Some(200));
    }
    assert_eq!(counting.count(), calls, "what was known is fetched again");
    // Of the budget nothing is doubled, and nothing is lost with those that have ended.
    let process = pick(&service, 0);
    until("all know what is left of the budget", async || {
        budget(&process).await["left"] == 100_000 - calls
    })
    .await;
}
