//! More load than the limits allow: what clients get is what the limits allow.

use std::net::IpAddr;

use super::*;

/// Longest that a client waits, as `server.request_timeout`.
const PATIENCE: Duration = Duration::from_secs(14);
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS: u32 = 3;

/// The outcomes of the polls of one run.
#[derive(Default)]
struct Polls {
    /// When each fresh answer came.
    fresh: Vec<Duration>,
    /// The time that each refusal took.
    refused: Vec<Duration>,
    /// Polls whose client gave up.
    gave_up: usize,
}

/// Load on an upstream that may have 50 calls a second.
#[derive(Clone, Copy)]
struct Load {
    limits: Limits,
    /// The time that a call takes.
    takes: Duration,
    /// Polls a second, over 50.
    ratio: f64,
    /// Number of client addresses that poll, in even shares or in shares of 1, 2, 3 …
    callers: u8,
    even: bool,
    /// The time after which a client gives up.
    patience: Duration,
}

const ALLOWED: f64 = 50.0;

/// 50 calls a second, by the rate.
fn by_rate() -> Load {
    let limits = Limits {
        per_second: ALLOWED,
        burst: 50,
        max_concurrency: 16,
        queue: 1024,
        ..Limits::for_tests()
    };
    Load {
        limits,
        takes: Duration::from_millis(50),
        ratio: 1.0,
        callers: 1,
        even: false,
        patience: PATIENCE,
    }
}

/// 50 calls a second, as at most 5 that take 100 ms run at once.
fn by_concurrency() -> Load {
    let limits = Limits {
        max_concurrency: 5,
        queue: 1024,
        ..Limits::for_tests()
    };
    Load {
        limits,
        takes: Duration::from_millis(100),
        ..by_rate()
    }
}

/// Polls streams, each of which is asked for once, for some windows.
async fn polls(load: Load) -> Polls {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Answer(load.takes));
    let upstream = upstream(&hosts, &["a"], load.limits);
    let flights: Arc<Flights<u64, ()>> = Arc::default();
    let polls: Arc<Mutex<Polls>> = Arc::default();
    let begun = Instant::now();
    let count = (WINDOW.as_secs_f64() * f64::from(WINDOWS) * ALLOWED * load.ratio) as u64;
    let callers = u64::from(load.callers);
    let upto = |n: u64| if load.even { n } else { n * (n + 1) / 2 };
    let mut tasks = Vec::new();
    for stream in 0..count {
        let at = Duration::from_secs_f64(stream as f64 / (ALLOWED * load.ratio));
        tokio::time::sleep_until(begun + at).await;
        // A fixed scatter, so that callers do not come in turn.
        let mut share = stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        share %= upto(callers);
        let caller = (1..=callers).find(|n| upto(*n) > share).unwrap();
        let (upstream, flights, polls) = (upstream.clone(), flights.clone(), polls.clone());
        tasks.push(tokio::spawn(async move {
            let asked = Instant::now();
            let whole = [crate::model::TimeRange::ALL];
            let joined = flights.join_or_start(
                &stream,
                &whole,
                &whole[0],
                &crate::telemetry::trace::Trace::default(),
                |_, waiters| {
                    let upstream = upstream.clone();
                    let call = CallContext {
                        caller: Some(IpAddr::from([10, 0, 0, caller as u8])),
                        lane: stream,
                        deadline: asked + load.patience,
                        waiters,
                        ..call_context()
                    };
                    async move {
                        let answered = upstream.client.run(exchange(), &call).await;
                        answered.map(|_| ())
                    }
                },
            );
            let outcome = tokio::time::timeout(load.patience, joined.flights[0].outcome()).await;
            let mut polls = polls.lock().unwrap();
            match outcome {
                Ok(Ok(())) => polls.fresh.push(begun.elapsed()),
                Ok(Err(error)) => {
                    assert_eq!(error.kind, Kind::UpstreamBudget);
                    assert!(error.retry_after.is_some());
                    polls.refused.push(asked.elapsed());
                }
                Err(_) => polls.gave_up += 1,
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let ended = hosts.ended.load(Ordering::SeqCst);
    let calls = hosts.calls.lock().unwrap().len();
    assert_eq!(ended, calls, "no call is dropped after it was sent");
    assert_eq!(
        polls.lock().unwrap().fresh.len(),
        calls,
        "no answer comes too late"
    );
    Arc::into_inner(polls).unwrap().into_inner().unwrap()
}

#[tokio::test(start_paused = true)]
async fn under_any_load_there_are_as_many_fresh_answers_as_the_limits_allow() {
    for (name, load) in [("rate", by_rate()), ("concurrency", by_concurrency())] {
        for ratio in [0.9, 1.1, 1.7, 10.0] {
            for (callers, even, patience) in [
                (1, true, PATIENCE),
                (8, false, PATIENCE),
                (16, true, PATIENCE),
                (16, true, PATIENCE / 5),
            ] {
                let about =
                    format!("{name}, {ratio} times the load, {callers} callers of {patience:?}");
                let polls = polls(Load {
                    ratio,
                    callers,
                    even,
                    patience,
                    ..load
                })
                .await;
                for window in 0..WINDOWS {
                    let from = WINDOW * window;
                    let within = |at: &&Duration| (from..from + WINDOW).contains(*at);
                    let fresh = polls.fresh.iter().filter(within).count();
                    let expected = 500.0 * ratio.min(1.0) * 0.95;
                    assert!(
                        fresh as f64 >= expected,
                        "{about}: {fresh} fresh answers from {from:?} on"
                    );
                }
                assert_eq!(polls.gave_up, 0, "{about}");
                let mut refused = polls.refused;
                refused.sort();
                // Until each caller has a line, the first ones get longer ones than they can keep.
                let at_once = refused.partition_point(|t| *t <= Duration::from_millis(5));
                assert!(
                    at_once as f64 >= refused.len() as f64 * 0.99,
                    "{about}: {at_once} of {} refused at once, the slowest after {:?}",
                    refused.len(),
                    refused.last()
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_becomes_slow_is_asked_what_it_can_answer_in_time() {
    let load = by_concurrency();
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Answer(Duration::from_secs(6)));
    let limits = Limits {
        timeout: Duration::from_secs(10),
        ..load.limits
    };
    let upstream = upstream(&hosts, &["a"], limits);
    let mut tasks = Vec::new();
    for lane in 0..3_000 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let upstream = upstream.clone();
        tasks.push(tokio::spawn(async move {
            let call = CallContext {
                lane,
                deadline: Instant::now() + PATIENCE,
                ..call_context()
            };
            let asked = Instant::now();
            let answered = upstream.client.run(exchange(), &call).await;
            (answered.is_ok(), asked.elapsed())
        }));
    }
    let (mut fresh, mut late) = (0, 0);
    for task in tasks {
        let (ok, took) = task.await.unwrap();
        fresh += usize::from(ok && took <= PATIENCE);
        late += usize::from(ok && took > PATIENCE);
    }
    // Five at once for a minute and the patience of the last.
    assert!(fresh >= 45, "{fresh} in time, {late} late");
    assert!(late <= 5, "{fresh} in time, {late} late");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_gives_way_to_a_caller_with_fewer_calls() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    let limits = Limits {
        per_second: 1.0,
        burst: 1,
        queue: 10,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a"], limits);
    let call = |host: u8, lane| {
        let upstream = upstream.clone();
        tokio::spawn(async move {
            let call = CallContext {
                caller: Some(IpAddr::from([10, 0, 0, host])),
                lane,
                ..call_context()
            };
            upstream.client.run(exchange(), &call).await.map(|_| ())
        })
    };
    let greedy: Vec<_> = (0..20).map(|lane| call(1, lane)).collect();
    tokio::task::yield_now().await;
    let modest = call(2, 0);
    modest.await.unwrap().unwrap();
    let mut refused = 0;
    for task in greedy {
        refused += usize::from(task.await.unwrap().is_err());
    }
    // One was made at once, ten waited, and the last of these gave way.
    assert_eq!(refused, 10);
}
