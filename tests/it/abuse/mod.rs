//! One client against the service, over real sockets: table D of the public reports that Heliostat is
//! tried on. Each attack has a Heliostat of its own, as a process of its own, so that its peak memory is
//! its own. Beside it a well-behaved client at another address asks for `/healthz` and for a hit; all of
//! its requests succeed, and take less than 100 ms each.
//!
//! The machine may be busy, not least with the attack itself, whose client and store run here, too. Two things
//! show that it is the machine, and not Heliostat, that keeps the well-behaved client waiting:
//!
//! - It has a thread of its own, and asks another Heliostat that nobody attacks the same at the same moment. A
//!   slow answer counts only if that one's was quick.
//! - The kernel tells how long a thread that could run has waited for a processor (`schedstat`). For so long
//!   nothing but the scheduler had the request: that time of the client's thread, of the server's first, which
//!   accepts connections, and the longest of a serving thread's, one after the other, is not counted. The threads
//!   for heavy work are not serving ones.
//!
//! Of all others none may be slow. Nor may any take twenty times as long, whatever the kernel says (a connection that
//! is not accepted at once is tried again after a second); and by the server's own clock, which sees none of this,
//! all answers of `/healthz` are prompt.
//!
//! Each line of the table has a row in [`ATTACKS`] or, where no traffic of a client shows it, tests of its own:
//!
//! | line | tests |
//! |---|---|
//! | D1 | row; `a_fine_step_is_not_laid_out_over_a_window_of_centuries`, `no_request_makes_the_service_allocate_without_a_bound` (extremes) |
//! | D2 | row; `no_length_and_no_nesting_is_too_much` (promql) |
//! | D3 | two rows; `benches/memory.rs` compares weight and memory of keys |
//! | D4 | three rows; `a_response_without_progress_ends_with_its_connection`, `few_answers_of_probes_and_refusals_wait_for_a_window` |
//! | D5 | two rows; `a_client_that_does_not_send_its_body_is_told_so` |
//! | D6 | row |
//! | D7 | row; `long_hosts_are_refused_and_matching_is_quick` |
//! | D8 | row; `reading_a_request_takes_at_most_four_times_its_bytes` (extremes) |
//! | D9 | row |
//! | D10 | row; `a_greedy_caller_delays_a_modest_one_by_one_call`, `the_newest_claim_of_the_largest_holder_gives_way` |
//! | D11 | row; `calls_are_as_far_apart_as_asked_but_not_for_ever` |
//! | D12 | the slow reader beside all rows |
//! | D13 | row; `only_valid_trace_headers_are_passed_on`, `a_long_state_is_left_out` |
//! | D14 | `paths_on_one_host_share_its_limits` |
//! | D15 | row; `a_client_that_sends_half_a_head_holds_no_place_and_is_given_up` |
//! | D16 | `connections_leave_descriptors_for_upstreams` |
//! | D17 | row; `what_is_built_is_charged_before`, `what_is_built_is_charged_until_it_is_stored`, `reading_stops_at_the_deadline`, `reading_of_any_kind_stops_when_it_is_to` |
//! | D18 | row |
//! | D19 | row |
//! | D20 | `what_a_file_says_of_the_future_is_not_believed` |
//! | D21 | `names_of_clients_do_not_hold_up_configured_upstreams` |
//! | D22 | row |
//! | D23 | `only_regular_files_of_some_size_are_read`, `a_link_beside_the_file_is_not_written_to` |
//! | D24 | `series_of_upstreams_that_are_gone_are_not_shown` |
//! | D25 | `parts_and_answers_of_another_type_are_refused` |
//!
//! To add an attack: write an `async fn(&Target)` in one of the files of this folder and a row in
//! [`ATTACKS`]. The upstream is `store.rs`: it answers what the attack's path or matchers ask for. An attack
//! may run for at most ten seconds; the whole table takes less than two minutes.
// Clients experience real time.
#![allow(clippy::disallowed_methods)]

mod attacks;
mod large;
mod places;
mod questions;
mod raw;
mod slow;
mod store;

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
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
    ("D1: all of time in fine and coarse steps", MEMORY, |t| {
        Box::pin(questions::fine_and_coarse_steps(t))
    }),
    ("D2: matchers that are costly to compile", MEMORY, |t| {
        Box::pin(questions::costly_matchers(t))
    }),
    ("D7: hosts of any length", MEMORY, |t| {
        Box::pin(questions::long_hosts(t))
    }),
    ("D8: forms that unfold", MEMORY, |t| {
        Box::pin(questions::forms(t))
    }),
    ("D11: a limit that is nearly used up", MEMORY, |t| {
        Box::pin(questions::limit_nearly_used_up(t))
    }),
    ("D13: trace headers that no store takes", MEMORY, |t| {
        Box::pin(questions::trace_headers(t))
    }),
    ("D19: long errors and errors of several lines", 256, |t| {
        Box::pin(questions::errors(t))
    }),
    ("D22: a tenant that changes in its file", MEMORY, |t| {
        Box::pin(questions::changing_tenant(t))
    }),
    (
        "D3: large connectionDetails, values and tenants",
        MEMORY,
        |t| Box::pin(attacks::large_fields(t)),
    ),
    ("D3: as many large keys as fit", MEMORY, |t| {
        Box::pin(large::keys(t))
    }),
    ("D4: HTTP/2 streams without a window", MEMORY, |t| {
        Box::pin(attacks::closed_windows(t, "/openapi.json"))
    }),
    ("D4: scrapes without a window", MEMORY, |t| {
        Box::pin(attacks::closed_windows(t, "/metrics"))
    }),
    ("D4: large answers that nobody reads", MEMORY, |t| {
        Box::pin(attacks::unread_answers(t))
    }),
    ("D5: heads of requests without their bodies", MEMORY, |t| {
        Box::pin(attacks::missing_bodies(t))
    }),
    ("D5: bodies without their ends", MEMORY, |t| {
        Box::pin(attacks::unfinished_bodies(t))
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
    ("D17: answers of tiny strings", MEMORY, |t| {
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
    /// The file with the tenant of the upstream `tenants`.
    tenant: PathBuf,
    /// Its log.
    log: PathBuf,
}

impl Drop for Target {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
        }
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
        let (tenant, log) = (
            config.with_extension("tenant"),
            config.with_extension("log"),
        );
        std::fs::write(&tenant, "first").unwrap();
        // A debug build reads some ten megabytes a second of the store's answers, on a processor of its own.
        let upstream = |name: &str, kind: &str, more: &str| {
            format!(
                "[[upstream]]\nname = {name:?}\nkind = {kind:?}\nurls = [\"http://{}\"]\ntimeout = \"30s\"\n\
                 rate_limit = {{ per_second = 10000 }}\n{more}\n",
                store.address
            )
        };
        let text = [
            format!(
                "[server]\nlisten = \"127.0.0.1:{port}\"\ncompression = \"always\"\nrequest_timeout = \"40s\"\n\
                 [cache]\nmemory = \"{memory}MiB\"\n"
            ),
            upstream("mirror", "mirror", "default = true"),
            upstream("local", "mirror", "aggregate = \"local\""),
            upstream("prom", "prometheus", ""),
            upstream("rated", "prometheus", "retries = 0"),
            upstream(
                "tenants",
                "prometheus",
                &format!("headers = {{ X-Scope-OrgID = {{ file = {tenant:?} }} }}"),
            ),
            "[targets]\nallow = [\"*.*.svc:9090\"]\n".to_owned(),
        ];
        std::fs::write(&config, text.concat()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let target = Self {
            address,
            store: store.clone(),
            memory,
            process,
            tenant,
            log,
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

    /// Prints whether the process has ended, and what it logged last.
    fn print_log(&mut self) {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        let ended = self.process.try_wait();
        println!(
            "the last lines of the log of {}, {ended:?}: {lines:#?}",
            self.address
        );
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

    /// The answers of `/healthz` that took more than 100 ms from the head of the request to the head of the
    /// answer, by the server's own clock.
    async fn slow_health(&self) -> usize {
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let text = exchange(self.address, MODEST, request.as_bytes())
            .await
            .unwrap();
        let counted = |end: &str| {
            let line = text.lines().find(|line| {
                line.starts_with("heliostat_request_duration_seconds_")
                    && line.contains("method=\"healthz\"")
                    && line.contains(end)
            });
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
            value.unwrap_or_else(|| panic!("{end} in {text}"))
        };
        counted("le=\"+Inf\"") - counted("le=\"0.1\"")
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

/// The time of a request to the server under attack, how much of that its threads and the client's waited for a
/// processor, and the time of the same request to the server that is not attacked.
#[derive(Clone, Copy, Default)]
struct Timed {
    ours: Duration,
    waited: Duration,
    other: Duration,
}

impl Timed {
    /// Returns whether the server under attack kept the client waiting.
    fn is_late(&self) -> bool {
        self.ours.saturating_sub(self.waited) > PROMPT && self.other < PROMPT / 2
    }

    /// Returns whether the server did not answer for seconds.
    fn is_stopped(&self) -> bool {
        self.ours > 20 * PROMPT && self.other < 5 * PROMPT
    }
}

/// The times of one round.
type Round = [Timed; 2];

/// Returns how long each serving thread of the process `id` has waited for a processor so far.
fn waits(id: u32) -> Vec<(PathBuf, Duration)> {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).expect("the process lives");
    let threads = threads.filter_map(|thread| Some(thread.ok()?.path()));
    let wait = |thread: PathBuf| {
        // Threads end at any time.
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let wait = thread_wait(&thread.join("schedstat"))?;
        (!name.starts_with("work-")).then_some((thread, wait))
    };
    threads.filter_map(wait).collect()
}

/// Returns how long a thread has waited for a processor so far.
fn thread_wait(schedstat: &std::path::Path) -> Option<Duration> {
    let text = std::fs::read_to_string(schedstat).ok()?;
    // The time on a processor, the time of waiting for one, and the number of turns.
    let nanos = text.split(' ').nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// The well-behaved client, on a thread of its own.
struct Modest {
    stop: Arc<AtomicBool>,
    /// The number of its rounds so far.
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Round>>,
}

impl Modest {
    fn start(attacked: &Target, spared: SocketAddr) -> Self {
        let (process, attacked) = (attacked.process.id(), attacked.address);
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
                        let mine = std::path::Path::new("/proc/thread-self/schedstat");
                        let (before, began) = (waits(process), thread_wait(mine));
                        let (ours, other) =
                            tokio::join!(time(attacked, &request), time(spared, &request));
                        let (after, ended) = (waits(process), thread_wait(mine));
                        let grown = |accepts: bool| {
                            let of = after.iter().filter(|(thread, _)| {
                                thread.ends_with(process.to_string()) == accepts
                            });
                            let grown = of.map(|(thread, wait)| {
                                let known = before.iter().find(|(before, _)| before == thread);
                                wait.saturating_sub(known.map_or(Duration::ZERO, |(_, wait)| *wait))
                            });
                            grown.max().unwrap_or_default()
                        };
                        let client = ended
                            .unwrap_or_default()
                            .saturating_sub(began.unwrap_or_default());
                        let waited = grown(true) + grown(false) + client;
                        *place = Timed {
                            ours,
                            waited,
                            other,
                        };
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

    /// Returns its rounds; an error if one of its requests failed.
    fn stop(self) -> std::thread::Result<Vec<Round>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join()
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

/// The names in the table above are those of tests.
#[test]
fn each_line_of_the_table_has_its_tests() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let table = include_str!("mod.rs");
    for line in 1..=25 {
        let head = format!("//! | D{line} | ");
        let row = table.lines().find_map(|l| l.strip_prefix(&head));
        let row = row.unwrap_or_else(|| panic!("{head}"));
        let attack = format!("D{line}: ");
        let is_row = ["row", "two rows", "three rows"]
            .iter()
            .any(|r| row.starts_with(r));
        let attacks = ATTACKS
            .iter()
            .filter(|(name, ..)| name.starts_with(&attack));
        assert_eq!(is_row, attacks.count() > 0, "{head}{row}");
        for name in row
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|n| !n.contains('/'))
        {
            assert!(text.contains(&format!("fn {name}(")), "{head}{name}");
        }
    }
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
        let mut target = Target::start(&store, *memory, folder.path()).await;
        for address in [target.address, spared.address] {
            exchange(address, MODEST, hit().as_bytes()).await.unwrap();
        }
        let modest = Modest::start(&target, spared.address);
        let begun = Instant::now();
        // Several short rounds rather than one long one.
        while begun.elapsed() < Duration::from_secs(1)
            || modest.rounds.load(Ordering::Relaxed) < 30
                && begun.elapsed() < Duration::from_secs(20)
        {
            // Its server has to live as long as the well-behaved client asks it.
            let attacked = AssertUnwindSafe(attack(&target)).catch_unwind().await;
            if attacked.is_err() {
                failures.push(format!("{name}: fails itself, see above"));
                break;
            }
        }
        let attacked_for = begun.elapsed();
        let rounds = match modest.stop() {
            Ok(rounds) => rounds,
            Err(_) => {
                failures.push(format!("{name}: a request beside it fails, see above"));
                target.print_log();
                continue;
            }
        };
        let all: Vec<_> = rounds.iter().flatten().collect();
        let late = all.iter().filter(|timed| timed.is_late()).count();
        let stopped = all.iter().filter(|timed| timed.is_stopped()).count();
        let slow = target.slow_health().await;
        if stopped > 0 || slow > 0 {
            failures.push(format!(
                "{name}: {stopped} requests beside it took more than two seconds, {slow} answers of /healthz \
                 took more than 100 ms of the server's own time"
            ));
        }
        let (peak, bound) = (target.peak(), target.bound());
        println!(
            "{name}: {attacked_for:.1?}; {} requests beside it, {late} late, the slowest {:.1?}, {:.1?} without what \
             threads waited for processors; peak {peak} MiB of {bound}",
            all.len(),
            all.iter().map(|timed| timed.ours).max().unwrap(),
            all.iter()
                .map(|timed| timed.ours.saturating_sub(timed.waited))
                .max()
                .unwrap(),
        );
        let judged = all.iter().filter(|timed| timed.other < PROMPT / 2).count();
        if all.len() < 4 || judged == 0 || late > 0 {
            failures.push(format!(
                "{name}: {late} of {} requests beside it were late, {judged} could be judged",
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
