//! One client against the service, over real sockets. Each attack has a Heliostat of its own, as a process
//! of its own, so that its peak memory is its own. Beside it a well-behaved client at another address asks
//! for `/healthz` and for a hit; all of its requests succeed, and nine in ten within 100 ms, or within a
//! second where other processes keep the machine busy.
//!
//! To add an attack: write an `async fn(&Target)` in one of the files of this folder and a row in
//! [`ATTACKS`]. The upstream is `store.rs`: it answers what the attack's path or matchers ask for. An attack
//! may run for at most ten seconds; the whole table takes less than two minutes.
// What a client notices is real time.
#![allow(clippy::disallowed_methods)]

mod attacks;
mod raw;
mod store;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use raw::{MODEST, exchange};

/// The memory that the servers are configured with, in MiB, and what may come on top: the bytes in flight,
/// and the process itself.
const MEMORY: u64 = 32;
const IN_FLIGHT: u64 = 64;
const PROCESS: u64 = 64;

/// The bound on the peak of a server's memory, in MiB (docs/protection.md).
const PEAK: u64 = MEMORY * 13 / 10 + IN_FLIGHT + PROCESS;

/// The time that nine in ten requests of the well-behaved client may take; ten times as long while other
/// processes take more than `BUSY` of the machine.
const MOST: Duration = Duration::from_millis(100);
const BUSY: f64 = 0.1;

/// Processor time in clock ticks, since the start of the machine: of all cores, the part of it that was used,
/// and the part of that which this process and the server used.
struct Ticks {
    all: u64,
    used: u64,
    ours: u64,
}

impl Ticks {
    /// Returns the share of the machine that other processes have used since `before`.
    fn others_since(&self, before: &Self) -> f64 {
        let used = (self.used - before.used).saturating_sub(self.ours - before.ours);
        used as f64 / (self.all - before.all).max(1) as f64
    }
}

type Attack = for<'a> fn(&'a Target) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// The attacks: the line of docs/security.md or what is attacked, and the attack.
const ATTACKS: &[(&str, Attack)] = &[
    ("large connectionDetails, values and tenants", |t| {
        Box::pin(attacks::large_fields(t))
    }),
    ("bodies that unfold", |t| Box::pin(attacks::unfolding(t))),
    ("HTTP/2 streams without a window", |t| {
        Box::pin(attacks::closed_windows(t))
    }),
    ("large answers that nobody reads", |t| {
        Box::pin(attacks::unread_answers(t))
    }),
    ("heads of requests without their bodies", |t| {
        Box::pin(attacks::missing_bodies(t))
    }),
    ("bodies in chunks of one byte", |t| {
        Box::pin(attacks::tiny_chunks(t))
    }),
    ("unfinished heads", |t| {
        Box::pin(attacks::unfinished_heads(t))
    }),
    ("more connections than there are", |t| {
        Box::pin(attacks::many_connections(t))
    }),
];

/// A server under attack.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    process: Child,
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Target {
    async fn start(store: SocketAddr, folder: &std::path::Path) -> Self {
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let config = folder.join(format!("{port}.toml"));
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\n[cache]\nmemory = \"{MEMORY}MiB\"\n\
             [[upstream]]\nname = \"mirror\"\nkind = \"mirror\"\nurls = [\"http://{store}\"]\ndefault = true\n\
             rate_limit = {{ per_second = 10000 }}\n\
             [[upstream]]\nname = \"prom\"\nkind = \"prometheus\"\nurls = [\"http://{store}\"]\n\
             rate_limit = {{ per_second = 10000 }}\n"
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let target = Self { address, process };
        for _ in 0..600 {
            let up = exchange(address, MODEST, HEALTH.as_bytes()).await;
            if up.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return target;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server did not start");
    }

    fn ticks(&self) -> Ticks {
        let numbers = |text: &str| -> Vec<u64> {
            text.split_whitespace()
                .map(|n| n.parse().unwrap_or(0))
                .collect()
        };
        let machine = std::fs::read_to_string("/proc/stat").unwrap();
        let cores = numbers(machine.lines().next().unwrap().strip_prefix("cpu").unwrap());
        let idle = cores[3] + cores[4];
        let ours = [std::process::id(), self.process.id()].map(|id| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
            // The name, in parentheses, may have spaces; `utime` is the twelfth field after it.
            let after = numbers(stat.rsplit_once(')').unwrap().1);
            after[11] + after[12]
        });
        Ticks {
            all: cores.iter().take(8).sum(),
            used: cores.iter().take(8).sum::<u64>() - idle,
            ours: ours.iter().sum(),
        }
    }

    /// The most memory that the process has had so far, in MiB.
    fn peak(&self) -> u64 {
        let status = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(status).expect("the process lives");
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kilobytes: u64 = line
            .and_then(|l| l.trim().strip_suffix("kB")?.trim().parse().ok())
            .unwrap();
        kilobytes / 1024
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

/// Asks until it is dropped; the times are in `took`.
async fn ask_politely(address: SocketAddr, took: &std::sync::Mutex<Vec<Duration>>) {
    let hit = hit();
    loop {
        for request in [HEALTH, &hit] {
            let begun = Instant::now();
            let answer = exchange(address, MODEST, request.as_bytes()).await;
            let answer = answer.expect("the well-behaved client is answered");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer:.300}");
            took.lock().unwrap().push(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_cannot_stop_the_service() {
    let folder = tempfile::tempdir().unwrap();
    let store = store::start().await;
    let only = std::env::var("HELIOSTAT_ATTACK").unwrap_or_default();
    let mut failures = Vec::new();
    for (name, attack) in ATTACKS.iter().filter(|(name, _)| name.contains(&only)) {
        let target = Target::start(store, folder.path()).await;
        exchange(target.address, MODEST, hit().as_bytes())
            .await
            .unwrap();
        let before = target.ticks();
        let took = std::sync::Mutex::new(Vec::new());
        tokio::select! {
            () = attack(&target) => {}
            () = ask_politely(target.address, &took) => unreachable!("it asks until it is dropped"),
        }
        let mut took = took.into_inner().unwrap();
        took.sort_unstable();
        let most = took.get(took.len() * 9 / 10).copied().unwrap_or_default();
        let others = target.ticks().others_since(&before);
        let allowed = match others > BUSY {
            true => 10 * MOST,
            false => MOST,
        };
        let peak = target.peak();
        println!(
            "{name}: {} requests beside it, 9 in 10 within {most:?}, the slowest {:?}, others used {:.0} % of the \
             machine; peak {peak} MiB of {PEAK}",
            took.len(),
            took.last(),
            100.0 * others
        );
        if took.len() < 2 || most > allowed {
            failures.push(format!(
                "{name}: 9 in 10 requests within {most:?}, {allowed:?} are allowed"
            ));
        }
        if peak > PEAK {
            failures.push(format!("{name}: {peak} MiB, {PEAK} are allowed"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
