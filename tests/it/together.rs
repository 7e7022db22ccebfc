//! Limits that replicas keep together: four real processes over a real Redis, which is stopped,
//! killed, emptied and cut off, and an upstream that counts.

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
use crate::second_level::{Process, Redis, now, query};
use crate::support::metric;

const HOUR: i64 = 3_600_000;
const PER_SECOND: usize = 40;
const BURST: usize = 40;

/// An upstream that has no data and notes when it is asked.
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

    /// Most calls of any second.
    fn most_in_a_second(&self) -> usize {
        let mut calls = self.calls.lock().unwrap().clone();
        calls.sort();
        let within = |from: &Duration| {
            let end = *from + Duration::from_secs(1);
            calls.partition_point(|c| *c < end) - calls.partition_point(|c| c < from)
        };
        calls.iter().map(within).max().unwrap_or(0)
    }

    /// Calls made in so much time.
    async fn during(&self, time: Duration) -> usize {
        let (before, began) = (self.count(), self.clock.monotonic());
        tokio::time::sleep(time).await;
        let took = self.clock.monotonic() - began;
        // A busy machine may sleep longer.
        let made = self.count() - before;
        (made as f64 * time.as_secs_f64() / took.as_secs_f64()) as usize
    }
}

/// A way to Redis that can be cut.
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
         [replicas]\nname = {name:?}\nshare_limits = true\n{}\
         [[upstream]]\nname = \"counted\"\nkind = \"mirror\"\nurls = [{upstream:?}]\nretries = 0\n\
         max_concurrency = 200\nrate_limit = {{ per_second = {PER_SECOND}, burst = {BURST} }}\n",
        crate::support::ADMIN
    )
}

/// A number for each query of the tests in this process: no query is like another.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Asks `process` for what is in no cache, again and again, as long as `goes_on` says.
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

/// Waits until `done` says so, for a minute at most.
async fn until(what: &str, done: impl AsyncFn() -> bool) {
    for _ in 0..600 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: never");
}

/// Calls of all processes that were allowed by `source`.
async fn allowed_by(processes: &[Arc<Process>], source: &str) -> f64 {
    let name = format!("heliostat_limit_calls_total{{upstream=\"counted\",source={source:?}}}");
    let mut sum = 0.0;
    for process in processes {
        sum += metric(&process.metrics().await, &name);
    }
    sum
}

/// Waits until all have a share of a quarter and calls are allowed by the limit of all.
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
    // It says that it is alone, and the others are not.
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
