//! Faults that involve several connections or time: clients that leave, shared failures, partial
//! outages of upstreams, exhausted limits, slow clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::scripted::{Answer, Fault, Scripted, Seen};
use crate::support::{Reply, Server, TestClock};

/// A third into an hour.
const NOW: i64 = 1_200_000_000;
const MINUTE: i64 = 60_000;
/// Long settled.
const OLD: i64 = NOW - 600 * MINUTE;

fn query(start: i64, end: i64) -> Value {
    json!({
        "connectionDetails": {},
        "query": {
            "_type": "MetricsQuery", "startTime": start, "endTime": end,
            "conditions": [{
                "_type": "EqualityCondition", "key": "name",
                "value": { "_type": "StringValue", "value": "cpu" },
            }],
        },
    })
}

/// A valid answer to `seen`: a point at the start of each minute requested.
fn minutes(seen: &Seen) -> Answer {
    let asked = &seen.json()["query"];
    let time = |name: &str| asked[name].as_i64().unwrap();
    let first = (time("startTime") + MINUTE - 1) / MINUTE * MINUTE;
    let times = (first..time("endTime")).step_by(MINUTE as usize);
    let points: Vec<Value> = times.map(|t| json!([t / MINUTE, t])).collect();
    Answer::json(json!({
        "_type": "MetricsResponse",
        "telemetry": {
            "_type": "RawMetricTelemetry", "points": points,
            "dataFormat": ["value", "timestamp"], "isPartial": false,
        },
    }))
}

fn down() -> Answer {
    Answer {
        status: 500,
        ..Answer::json(json!({ "_type": "MetricStoreConnectionError", "details": "down" }))
    }
}

/// Returns the requested ranges, from the `n`-th request on, in order of time.
fn ranges(upstream: &Scripted, n: usize) -> Vec<(i64, i64)> {
    let mut ranges: Vec<_> = upstream.seen()[n..]
        .iter()
        .map(|s| {
            let query = &s.json()["query"];
            let time = |name: &str| query[name].as_i64().unwrap();
            (time("startTime"), time("endTime"))
        })
        .collect();
    ranges.sort_unstable();
    ranges
}

/// The configuration of a mirror `name` at `urls`, with `more` keys.
fn mirror(name: &str, urls: &[&str], more: &str) -> String {
    format!("[[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = {urls:?}\n{more}\n")
}

async fn heliostat(name: &str, upstream: &Scripted, more: &str, clock: &Arc<TestClock>) -> Server {
    Server::start_at(&mirror(name, &[&upstream.url], more), clock.clone()).await
}

async fn ask(server: &Server, start: i64, end: i64) -> Reply {
    server.post("/api/metric", &query(start, end)).await
}

/// Waits until `n` requests wait for the fetch of another.
async fn coalesced(server: &Server, name: &str, n: usize) {
    let series = format!("heliostat_coalesced_requests_total{{upstream=\"{name}\"}}");
    while server.metric(&series).await < n as f64 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Settings of an upstream whose answers may take long.
const PATIENT: &str = "retries = 2\ntimeout = \"1m\"";

/// Fails a test that waits for something that never comes.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(90);
    tokio::time::timeout(limit, what).await.expect("it is time")
}

/// Advances the runtime's time, by which time-outs and breakers are measured.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_call_that_was_sent_is_stored_whoever_has_left() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| Answer {
        gate: true,
        ..minutes(seen)
    })
    .await;
    let server = Arc::new(heliostat("leaving", &upstream, PATIENT, &clock).await);
    let client = || {
        let server = server.clone();
        tokio::spawn(async move { ask(&server, OLD, OLD + MINUTE).await })
    };

    let first = client();
    soon(upstream.asked(1)).await;
    let second = client();
    soon(coalesced(&server, "leaving", 1)).await;
    first.abort();
    // The time in which a dropped call would be noticed, see below.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(upstream.left(), 0, "somebody waits still");
    upstream.open();
    let reply = soon(second).await.unwrap();
    assert_eq!(reply.points().len(), 1);
    assert_eq!(upstream.seen().len(), 1);

    let server_of_others = heliostat("leaving-all", &upstream, PATIENT, &clock).await;
    let others = Arc::new(server_of_others);
    let client = || {
        let server = others.clone();
        tokio::spawn(async move { ask(&server, OLD, OLD + MINUTE).await })
    };
    let (first, second) = (client(), client());
    soon(upstream.asked(2)).await;
    soon(coalesced(&others, "leaving-all", 1)).await;
    first.abort();
    second.abort();
    // The time in which a dropped call would be noticed.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(upstream.left(), 0, "the call goes on");
    upstream.open();
    let ended = "heliostat_upstream_requests_total{upstream=\"leaving-all\",outcome=\"ok\"}";
    soon(async {
        while others.metric(ended).await < 1.0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let reply = soon(ask(&others, OLD, OLD + MINUTE)).await;
    assert_eq!(reply.points().len(), 1);
    assert_eq!((upstream.seen().len(), upstream.left()), (2, 0));
}

#[tokio::test]
async fn a_failure_reaches_all_who_wait_for_it() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |n, seen| match n {
        0 => Answer {
            gate: true,
            fault: Fault::Reset,
            ..minutes(seen)
        },
        _ => minutes(seen),
    })
    .await;
    let server = heliostat("shared-failure", &upstream, "retries = 0", &clock).await;
    let clients = join_all((0..50).map(|_| ask(&server, OLD, OLD + MINUTE)));
    let open = async {
        coalesced(&server, "shared-failure", 49).await;
        upstream.open();
    };
    let (replies, ()) = soon(async { tokio::join!(clients, open) }).await;
    for reply in replies {
        assert_eq!(reply.status, 502);
        assert_eq!(reply.json()["_type"], "MetricStoreConnectionError");
    }
    assert_eq!(upstream.seen().len(), 1);
    assert_eq!(ask(&server, OLD, OLD + MINUTE).await.points().len(), 1);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn pieces_that_arrived_are_kept_when_another_fails() {
    let clock = TestClock::at(NOW);
    let broken = Arc::new(AtomicBool::new(false));
    let fails = broken.clone();
    // While it is broken, it has no answer about data from long ago.
    let upstream = Scripted::start(clock.clone(), move |_, seen| {
        let start = seen.json()["query"]["startTime"].as_i64().unwrap();
        if fails.load(Ordering::SeqCst) && start < OLD {
            return down();
        }
        minutes(seen)
    })
    .await;
    let server = heliostat("pieces", &upstream, "retries = 0", &clock).await;
    // The middle is cached, so two pieces are missing.
    ask(&server, OLD, OLD + 100 * MINUTE).await;
    broken.store(true, Ordering::SeqCst);
    let (start, end) = (OLD - 10 * MINUTE, OLD + 110 * MINUTE);
    let failed = ask(&server, start, end).await;
    assert_eq!((failed.status, failed.header("cache-status")), (502, ""));
    let (before, after) = ((start, OLD), (OLD + 100 * MINUTE, end));
    assert_eq!(ranges(&upstream, 1), [before, after]);

    let arrived = ask(&server, OLD + 50 * MINUTE, end).await;
    assert_eq!(arrived.points().len(), 60);
    assert_eq!(upstream.seen().len(), 3, "it is cached");
    broken.store(false, Ordering::SeqCst);
    assert_eq!(ask(&server, start, end).await.points().len(), 120);
    assert_eq!(
        ranges(&upstream, 3),
        [before],
        "and only the other is asked for"
    );
}

#[tokio::test]
async fn a_failed_tail_is_marked_and_what_arrived_beside_it_is_kept() {
    let clock = TestClock::at(NOW);
    let broken = Arc::new(AtomicBool::new(false));
    let fails = broken.clone();
    let upstream = Scripted::start(clock.clone(), move |_, seen| {
        let end = seen.json()["query"]["endTime"].as_i64().unwrap();
        if fails.load(Ordering::SeqCst) && end > NOW - 10 * MINUTE {
            return down();
        }
        minutes(seen)
    })
    .await;
    let server = heliostat("tail", &upstream, "retries = 0", &clock).await;
    ask(&server, NOW - 60 * MINUTE, NOW).await;
    broken.store(true, Ordering::SeqCst);
    clock.pass(20_000);
    let marked = ask(&server, NOW - 90 * MINUTE, NOW).await;
    assert_eq!(marked.points().len(), 90);
    let status = marked.header("cache-status");
    assert!(
        status.starts_with("heliostat; hit; ttl=-10; detail=\"down"),
        "{status}"
    );
    assert_eq!(upstream.seen().len(), 3);
    ask(&server, NOW - 90 * MINUTE, NOW - 30 * MINUTE)
        .await
        .points();
    assert_eq!(upstream.seen().len(), 3, "the earlier piece is cached");
}

#[tokio::test]
async fn a_dead_address_is_asked_last_and_then_only_by_trials() {
    let clock = TestClock::at(NOW);
    let dead = Arc::new(AtomicBool::new(true));
    let is_dead = dead.clone();
    let first = Scripted::start(clock.clone(), move |_, seen| {
        if is_dead.load(Ordering::SeqCst) {
            return Answer {
                fault: Fault::Close,
                ..Answer::default()
            };
        }
        if seen.path == "/api/connection" {
            return Answer::json(json!({ "status": "OK", "_type": "TestConnectionResponse" }));
        }
        minutes(seen)
    })
    .await;
    let second = Scripted::start(clock.clone(), |_, seen| minutes(seen)).await;
    let keys = "retries = 0\ntimeout = \"1m\"\nbreaker = { failures = 2, open = \"1h\" }";
    let hour = Duration::from_secs(3601);
    let toml = mirror("two", &[&first.url, &second.url], keys);
    let server = Server::start_at(&toml, clock).await;
    let mut at = OLD;
    let mut next = async || {
        at += MINUTE;
        assert_eq!(ask(&server, at, at + MINUTE).await.points().len(), 1);
    };
    let asked = |n: usize| {
        let first = &first;
        async move {
            while first.seen().len() < n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            first.seen()[n - 1].path.clone()
        }
    };
    // Clients see no failure: after one failed call the other URL is used.
    next().await;
    next().await;
    next().await;
    assert_eq!((first.seen().len(), second.seen().len()), (1, 3));
    // After a while Heliostat finds that it is still dead, and its breaker opens.
    pass(hour).await;
    soon(asked(2)).await;
    next().await;
    assert_eq!((first.seen().len(), second.seen().len()), (2, 4));
    let open = "heliostat_breaker_open{upstream=\"two\"}";
    assert_eq!(server.metric(open).await, 1.0);
    // From now on Heliostat probes it; no request has to.
    next().await;
    pass(hour).await;
    assert_eq!(soon(asked(3)).await, "/api/connection");
    next().await;
    assert_eq!(second.seen().len(), 6);
    dead.store(false, Ordering::SeqCst);
    let mut turns = 0;
    while server.metric(open).await > 0.0 {
        turns += 1;
        assert!(turns < 1000, "the breaker stays open");
        // The hour is soon over, and there is time for a trial call.
        pass(Duration::from_secs(600)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let trials = first.seen().len();
    next().await;
    assert_eq!((first.seen().len(), second.seen().len()), (trials + 1, 6));
}

#[tokio::test]
async fn a_spent_budget_is_spent_until_the_next_hour_and_across_a_restart() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| minutes(seen)).await;
    let folder = tempfile::tempdir().unwrap();
    let keys = "retries = 2\nrate_limit = { per_hour = 2 }\nmax_stale = \"30m\"";
    let toml = format!(
        "[state]\ndir = {:?}\n{}",
        folder.path(),
        mirror("budget", &[&upstream.url], keys)
    );
    let server = Server::start_at(&toml, clock.clone()).await;
    let hour = 3_600_000;
    let left = || ((hour - heliostat::clock::Clock::now(clock.as_ref()) % hour) / 1000).to_string();
    let spent = |reply: &Reply| {
        assert_eq!(reply.status, 429, "{}", reply.text);
        assert_eq!(reply.header("retry-after"), left());
        assert_eq!(reply.json()["_type"], "RemoteMirrorError");
    };
    ask(&server, NOW - 10 * MINUTE, NOW).await.points();
    ask(&server, OLD, OLD + MINUTE).await.points();
    spent(&ask(&server, OLD - MINUTE, OLD).await);
    // Cached data is served: settled data as it is, the tail marked, for as long as allowed.
    assert!(
        ask(&server, OLD, OLD + MINUTE)
            .await
            .header("cache-status")
            .contains("hit")
    );
    clock.pass(29 * MINUTE as u64);
    let stale = ask(&server, NOW - 10 * MINUTE, NOW).await;
    assert_eq!(stale.points().len(), 10);
    let status = stale.header("cache-status");
    assert!(
        status.starts_with("heliostat; hit; ttl=-1730; detail=\"the upstream's budget"),
        "{status}"
    );
    clock.pass(2 * MINUTE as u64);
    spent(&ask(&server, NOW - 10 * MINUTE, NOW).await);
    assert_eq!(upstream.seen().len(), 2);

    drop(server);
    let server = Server::start_at(&toml, clock.clone()).await;
    spent(&ask(&server, OLD, OLD + MINUTE).await);
    clock.step(-hour);
    assert_eq!(
        ask(&server, OLD, OLD + MINUTE).await.status,
        429,
        "a clock set back renews nothing"
    );
    clock.step(hour);
    assert_eq!(upstream.seen().len(), 2);
    let next = hour - heliostat::clock::Clock::now(clock.as_ref()) % hour;
    clock.pass(next as u64);
    ask(&server, OLD, OLD + MINUTE).await.points();
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_what_is_cached_is_served() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |n, seen| Answer {
        gate: n > 0,
        ..minutes(seen)
    })
    .await;
    let keys = "retries = 2\nmax_concurrency = 1\nqueue = 1";
    let server = Arc::new(heliostat("queue", &upstream, keys, &clock).await);
    ask(&server, NOW - 10 * MINUTE, NOW).await.points();
    let client = |minute: i64| {
        let (server, start) = (server.clone(), OLD + minute * MINUTE);
        tokio::spawn(async move { ask(&server, start, start + MINUTE).await })
    };
    let running = client(0);
    soon(upstream.asked(2)).await;
    let waiting = [client(1), client(1)];
    soon(coalesced(&server, "queue", 1)).await;
    let begun = tokio::time::Instant::now();
    let refused = ask(&server, OLD + 2 * MINUTE, OLD + 3 * MINUTE).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "at once");
    assert_eq!(refused.status, 429, "{}", refused.text);
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.json()["_type"], "RemoteMirrorError");
    assert_eq!(
        ask(&server, NOW - 10 * MINUTE, NOW).await.points().len(),
        10
    );
    clock.pass(20_000);
    let stale = ask(&server, NOW - 10 * MINUTE, NOW).await;
    assert_eq!(stale.points().len(), 10);
    assert!(
        stale
            .header("cache-status")
            .starts_with("heliostat; hit; ttl=-10; detail=")
    );
    assert_eq!(upstream.seen().len(), 2);
    upstream.open();
    upstream.open();
    for reply in waiting.into_iter().chain([running]) {
        assert_eq!(soon(reply).await.unwrap().points().len(), 1);
    }
    upstream.open();
    let after = ask(&server, OLD + 5 * MINUTE, OLD + 6 * MINUTE).await;
    assert_eq!(after.points().len(), 1, "there is room again");
}

/// Advances the runtime's time by a second now and then.
async fn pass_bit_by_bit() {
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        pass(Duration::from_secs(1)).await;
    }
}

/// Sends the head of a request whose body has two bytes, then `sent`, and returns the reply.
async fn answer_to(server: &Server, sent: &str) -> String {
    let mut stream = connect(server).await;
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // It may be a reset, since not everything was read.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

async fn connect(server: &Server) -> TcpStream {
    let address = server.url.strip_prefix("http://").unwrap();
    TcpStream::connect(address).await.unwrap()
}

const HEAD: &str = "POST /api/metric HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 20\r\n\r\n";

#[tokio::test]
async fn a_client_that_does_not_send_its_body_is_told_so() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| minutes(seen)).await;
    let toml = "[server]\nrequest_timeout = \"4s\"\nmax_in_flight = 1\n";
    let toml = format!("{toml}{}", mirror("bodiless", &[&upstream.url], ""));
    let server = Server::start_at(&toml, clock).await;
    for part in ["", "{\"connectionD"] {
        let begun = tokio::time::Instant::now();
        let request = format!("{HEAD}{part}");
        let answer = tokio::select! {
            answer = answer_to(&server, &request) => answer,
            () = pass_bit_by_bit() => unreachable!(),
        };
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("x-mirror-api-key: "), "{answer}");
        assert!(
            answer.contains("\"_type\":\"RemoteMirrorError\""),
            "{answer}"
        );
        assert!(begun.elapsed() >= Duration::from_secs(4));
    }
    assert!(upstream.seen().is_empty());
    ask(&server, OLD, OLD + MINUTE).await.points();
}

#[tokio::test]
async fn a_client_that_sends_half_a_head_holds_no_place_and_is_given_up() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| minutes(seen)).await;
    let toml = format!(
        "[server]\nmax_in_flight = 1\n{}",
        mirror("half", &[&upstream.url], "")
    );
    let server = Server::start_at(&toml, clock).await;
    let mut streams = Vec::new();
    for length in [30, HEAD.len() - 1] {
        let mut stream = connect(&server).await;
        stream.write_all(&HEAD.as_bytes()[..length]).await.unwrap();
        streams.push(stream);
    }
    ask(&server, OLD, OLD + MINUTE).await.points();
    // The runtime's time, which the server uses, passes the limit for a head.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(74)).await;
    for stream in &streams {
        let error = stream.try_read(&mut [0]).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::WouldBlock,
            "it has time still"
        );
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    tokio::time::resume();
    for mut stream in streams {
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    assert_eq!(upstream.seen().len(), 1);
}

/// A proxy to `server` that counts connections.
async fn counted(server: &Server) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let (made, to) = (count.clone(), server.url.replace("http://", ""));
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            made.fetch_add(1, Ordering::SeqCst);
            let mut far = TcpStream::connect(&to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    (url, count)
}

#[tokio::test]
async fn http2_carries_many_requests_at_once_on_one_connection() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |n, seen| Answer {
        gate: n == 0,
        ..minutes(seen)
    })
    .await;
    let server = heliostat("streams", &upstream, "", &clock).await;
    let (url, connections) = counted(&server).await;
    let client = heliostat::upstream::Http::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let request = |start: i64, end: i64| {
        let request = client.post(format!("{url}/api/metric"));
        let request = request.header("content-type", "application/json");
        request.body(query(start, end).to_string()).send()
    };
    // All wait for one fetch, so they are in flight together.
    let clients = join_all((0..200).map(|_| request(OLD, OLD + MINUTE)));
    let open = async {
        coalesced(&server, "streams", 199).await;
        upstream.open();
    };
    let (responses, ()) = soon(async { tokio::join!(clients, open) }).await;
    for response in responses {
        let response = response.unwrap();
        assert_eq!(response.version(), reqwest::Version::HTTP_2);
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key("x-mirror-api-key"));
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(
            body["telemetry"]["points"],
            json!([[(OLD / MINUTE) as f64, OLD]])
        );
    }
    assert_eq!(upstream.seen().len(), 1);
    // More than one connection carries at once: the rest wait, and a failure concerns one stream
    // only.
    let (good, bad) = (request(OLD, OLD + MINUTE), request(OLD, OLD - MINUTE));
    let (good, bad) = tokio::join!(good, bad);
    assert_eq!(
        (good.unwrap().status(), bad.unwrap().status()),
        (reqwest::StatusCode::OK, reqwest::StatusCode::BAD_REQUEST)
    );
    let many = soon(join_all((0..400).map(|_| request(OLD, OLD + MINUTE)))).await;
    assert!(many.into_iter().all(|r| r.unwrap().status() == 200));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}
