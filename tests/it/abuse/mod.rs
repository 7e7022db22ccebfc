//! One client against the service, over real sockets: table D of the public reports that Heliostat is
//! tried on. Each attack has a Heliostat of its own, as a process of its own, so that its peak memory is
//! its own. Beside it a well-behaved client at another address asks for `/healthz` and for a hit; all of
//! its requests succeed, and take less than 100 ms each.
//!
//! The machine may be busy, not least with the attack itself. So the well-behaved client, which has a
//! thread of its own, asks another Heliostat that nobody attacks the same at the same time. A slow answer
//! counts if that one's was quick; and one in fifty may be slow still, since only the server under attack
//! has work for both cores.
//!
//! To add an attack: write an `async fn(&Target)` in one of the files of this folder and a row in
//! [`ATTACKS`]. The upstream is `store.rs`: it answers what the attack's path or matchers ask for. An attack
//! may run for at most ten seconds; the whole table takes less than two minutes.
// Clients experience real time.
#![allow(clippy::disallowed_methods)]

mod attacks;
mod large;
mod raw;
mod slow;
mod store;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raw::{MODEST, exchange};
use store::Store;

/// The memory that most servers are configured with, in MiB, and what may come on top of it: the
/// bytes in flight, and the process itself.
const MEMORY: u64 = 32;
const IN_FLIGHT: u64 = 64;
const PROCESS: u64 = 64;

/// The longest time that the well-behaved client may wait for an answer.
const PROMPT: Duration = Duration::from_millis(100);

type Attack = for<'a> fn(&'a Target) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// The attacks: the name, the server's memory in MiB, and the attack itself.
const ATTACKS: &[(&str, u64, Attack)] = &[
    (
        "D3: large connectionDetails, values and tenants",
        MEMORY,
        |t| Box::pin(attacks::large_fields(t)),
    ),
    ("D3: as many large keys as fit", MEMORY, |t| {
        Box::pin(large::keys(t))
    }),
    ("D4: HTTP/2 streams without a window", MEMORY, |t| {
        Box::pin(attacks::closed_windows(t))
    }),
    ("D4: large answers that nobody reads", MEMORY, |t| {
        Box::pin(attacks::unread_answers(t))
    }),
    ("D5: heads of requests without their bodies", MEMORY, |t| {
        Box::pin(attacks::missing_bodies(t))
    }),
    ("D6: all of time in one bucket", MEMORY, |t| {
        Box::pin(large::all_of_time(t))
    }),
    ("D8: bodies that unfold", MEMORY, |t| {
        Box::pin(attacks::unfolding(t))
    }),
    ("D9: bodies in chunks of one byte", MEMORY, |t| {
        Box::pin(attacks::tiny_chunks(t))
    }),
    ("D10: more connections than there are", MEMORY, |t| {
        Box::pin(attacks::many_connections(t))
    }),
    ("D15: unfinished heads", MEMORY, |t| {
        Box::pin(attacks::unfinished_heads(t))
    }),
    ("D17: answers of tiny strings", 256, |t| {
        Box::pin(large::tiny_strings(t))
    }),
    ("D18: hits of large answers", 256, |t| {
        Box::pin(large::large_hits(t))
    }),
    ("E6: large answers of the store at once", 256, |t| {
        Box::pin(large::large_misses(t))
    }),
];

/// A server under attack.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    store: Store,
    /// The configured memory, in MiB.
    memory: u64,
    process: Child,
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Target {
    async fn start(store: &Store, memory: u64, folder: &std::path::Path) -> Self {
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let config = folder.join(format!("{port}.toml"));
        let upstream = |name: &str, kind: &str, more: &str| {
            format!(
                "[[upstream]]\nname = {name:?}\nkind = {kind:?}\nurls = [\"http://{}\"]\n\
                 rate_limit = {{ per_second = 10000 }}\n{more}\n",
                store.address
            )
        };
        let text = [
            format!(
                "[server]\nlisten = \"127.0.0.1:{port}\"\ncompression = \"always\"\n[cache]\nmemory = \"{memory}MiB\"\n"
            ),
            upstream("mirror", "mirror", "default = true"),
            upstream("local", "mirror", "aggregate = \"local\""),
            upstream("prom", "prometheus", ""),
        ];
        std::fs::write(&config, text.concat()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let target = Self {
            address,
            store: store.clone(),
            memory,
            process,
        };
        for _ in 0..600 {
            let up = exchange(address, MODEST, HEALTH.as_bytes()).await;
            if up.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return target;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server did not start");
    }

    /// Returns the peak memory of the process so far, in MiB.
    fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Returns the limit on it (docs/protection.md).
    fn bound(&self) -> u64 {
        self.memory * 13 / 10 + IN_FLIGHT.max(self.memory / 4) + PROCESS
    }

    /// Returns the memory of the process, in MiB.
    fn resident(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).expect("the process lives");
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        let kilobytes: u64 = line
            .and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok())
            .unwrap();
        kilobytes / 1024
    }

    /// Returns the CPU time of the process.
    fn cpu(&self) -> Duration {
        let stat = format!("/proc/{}/stat", self.process.id());
        let stat = std::fs::read_to_string(stat).expect("the process lives");
        let fields = stat.rsplit(") ").next().unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse::<u64>().unwrap()).sum();
        // A tick is a hundredth of a second on Linux.
        Duration::from_millis(ticks * 10)
    }

    /// The sum of the samples of the metric `name`.
    async fn metric(&self, name: &str) -> f64 {
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let text = exchange(self.address, MODEST, request.as_bytes())
            .await
            .unwrap();
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{'])
                .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        samples.sum()
    }
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// A query whose answer is cached after the first time.
fn hit() -> String {
    let body = r#"{"connectionDetails":{},"query":{"conditions":[{"key":"a","value":"b"}],"startTime":1600000000000,"endTime":1600000600000}}"#;
    format!(
        "POST /api/metric HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The times of one round: of the server under attack, and of the one that is not attacked.
type Round = [(Duration, Duration); 2];

/// The well-behaved client, on a thread of its own.
struct Modest {
    stop: Arc<AtomicBool>,
    /// The number of its rounds so far.
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Round>>,
}

impl Modest {
    fn start(attacked: SocketAddr, spared: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let mut rounds = Vec::new();
                while !stopped.load(Ordering::Relaxed) {
                    let mut round = Round::default();
                    for (place, request) in round.iter_mut().zip([HEALTH.to_owned(), hit()]) {
                        let (attacked, spared) =
                            tokio::join!(time(attacked, &request), time(spared, &request));
                        *place = (attacked, spared);
                    }
                    rounds.push(round);
                    counted.store(rounds.len(), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                rounds
            })
        });
        Self {
            stop,
            rounds: made,
            thread,
        }
    }

    fn stop(self) -> Vec<Round> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .expect("the well-behaved client is answered")
    }
}

/// Returns how long `request` takes at `address`.
async fn time(address: SocketAddr, request: &str) -> Duration {
    let begun = Instant::now();
    let answer = exchange(address, MODEST, request.as_bytes()).await;
    let answer = answer.expect("the well-behaved client is answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:.300}");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_cannot_stop_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let store = store::start().await;
    let only = std::env::var("HELIOSTAT_ATTACK").unwrap_or_default();
    let mut failures = Vec::new();
    let spared = Target::start(&store, MEMORY, folder.path()).await;
    let slow = slow::SlowReader::start(Target::start(&store, MEMORY, folder.path()).await).await;
    for (name, memory, attack) in ATTACKS.iter().filter(|(name, ..)| name.contains(&only)) {
        let target = Target::start(&store, *memory, folder.path()).await;
        for address in [target.address, spared.address] {
            exchange(address, MODEST, hit().as_bytes()).await.unwrap();
        }
        let modest = Modest::start(target.address, spared.address);
        let begun = Instant::now();
        // Several short rounds rather than one long one, and so many that one request may be late by
        // chance: the machine may have no turn for it.
        while begun.elapsed() < Duration::from_secs(1)
            || modest.rounds.load(Ordering::Relaxed) < 30
                && begun.elapsed() < Duration::from_secs(20)
        {
            attack(&target).await;
        }
        let attacked_for = begun.elapsed();
        let rounds = modest.stop();
        let all: Vec<_> = rounds.iter().flatten().collect();
        let late = all
            .iter()
            .filter(|(ours, other)| *ours > PROMPT && *other < PROMPT / 2);
        let late = late.count();
        let (peak, bound) = (target.peak(), target.bound());
        println!(
            "{name}: {attacked_for:.1?}; {} requests beside it, {late} late, the slowest {:.1?}; peak {peak} MiB of {bound}",
            all.len(),
            all.iter().map(|(ours, _)| ours).max().unwrap(),
        );
        if all.len() < 4 || late * 50 > all.len() {
            failures.push(format!(
                "{name}: {late} of {} requests beside it were late",
                all.len()
            ));
        }
        if peak > bound {
            failures.push(format!("{name}: {peak} MiB, {bound} are allowed"));
        }
    }
    slow.finish();
    assert!(failures.is_empty(), "{failures:#?}");
}
