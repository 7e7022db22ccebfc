//! Upstreams with several URLs, and lost connections: what clients see when some fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::scripted::{Answer, Fault, Scripted, Seen};
use crate::support::{Server, TestClock};
use heliostat::clock::Clock;

const NOW: i64 = 1_200_000_000;
const MINUTE: i64 = 60_000;
/// Long settled.
const OLD: i64 = NOW - 6_000 * MINUTE;

/// Returns a query about `name` that is different from all others.
fn question(name: &str, number: usize) -> Value {
    let start = OLD + number as i64 * 2 * MINUTE;
    json!({
        "connectionDetails": {},
        "query": {
            "_type": "MetricsQuery", "startTime": start, "endTime": start + MINUTE,
            "conditions": [{
                "_type": "EqualityCondition", "key": "name",
                "value": { "_type": "StringValue", "value": name },
            }],
        },
    })
}

/// A valid answer to `seen`: a point at the start of its range.
fn point(seen: &Seen) -> Answer {
    if seen.path == "/api/connection" {
        return Answer::json(json!({ "status": "OK", "_type": "TestConnectionResponse" }));
    }
    let start = seen.json()["query"]["startTime"].clone();
    Answer::json(json!({
        "_type": "MetricsResponse",
        "telemetry": {
            "_type": "RawMetricTelemetry", "points": [[1, start]],
            "dataFormat": ["value", "timestamp"], "isPartial": false,
        },
    }))
}

fn mirror(name: &str, urls: &[&str], more: &str) -> String {
    format!("[[upstream]]\nname = {name:?}\nkind = \"mirror\"\nurls = {urls:?}\n{more}\n")
}

fn page(status: u16) -> Answer {
    Answer {
        status,
        text: Some("<html><h1>Bad Gateway</h1></html>".into()),
        headers: [("content-type".to_owned(), "text/html".to_owned())].into(),
        ..Answer::default()
    }
}

/// Forwards connections to `target`. Those made before it was told to forget are reset as soon as
/// something is sent over them.
async fn forgetful(target: String, era: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (born, era) = (era.load(Ordering::SeqCst), era.clone());
            let target = target.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let (mut asked, mut answered) = ([0; 4096], [0; 4096]);
                loop {
                    tokio::select! {
                        ready = client.peek(&mut asked) => {
                            // A connection that is dropped with unread bytes is reset.
                            if !ready.is_ok_and(|n| n > 0) || era.load(Ordering::SeqCst) != born {
                                return;
                            }
                            let n = client.read(&mut asked).await.unwrap();
                            server.write_all(&asked[..n]).await.unwrap();
                        }
                        read = server.read(&mut answered) => {
                            let Ok(n @ 1..) = read else { return };
                            if client.write_all(&answered[..n]).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn no_client_notices_that_idle_connections_are_gone() {
    let clock = TestClock::at(NOW);
    for n in [16, 64, 256] {
        let upstream = Scripted::start(clock.clone(), |_, seen| Answer {
            gate: true,
            ..point(seen)
        })
        .await;
        let era = Arc::new(AtomicUsize::new(0));
        let target = upstream.url.trim_start_matches("http://").to_owned();
        let url = forgetful(target, era.clone()).await;
        let name = format!("forgetful-{n}");
        let keys = "retries = 0\nmax_concurrency = 300\ntimeout = \"1m\"\n\
                    rate_limit = { per_second = 10000, burst = 10000 }";
        let toml = format!(
            "[server]\nrequest_timeout = \"1m\"\n{}",
            mirror(&name, &[&url], keys)
        );
        let server = Server::start_at(&toml, clock.clone()).await;
        for round in 0..2 {
            let asked = (0..n).map(|i| {
                let body = question("cpu", round * n + i);
                let server = &server;
                async move { server.post("/api/metric", &body).await }
            });
            let asking = join_all(asked);
            // All are in flight at once, each over its own connection.
            let opened = async {
                upstream.asked(n * (round + 1)).await;
                (0..n).for_each(|_| upstream.open());
            };
            let (replies, ()) = tokio::join!(asking, opened);
            for reply in replies {
                assert_eq!(reply.status, 200, "{n}, round {round}: {}", reply.text);
            }
            era.fetch_add(1, Ordering::SeqCst);
        }
        let failed = ["unreachable", "error", "busy", "timeout"];
        for outcome in failed {
            let series = format!(
                "heliostat_upstream_requests_total{{upstream={name:?},outcome={outcome:?}}}"
            );
            assert_eq!(server.metric(&series).await, 0.0, "{series}");
        }
    }
}

#[tokio::test]
async fn slow_questions_do_not_stop_the_others() {
    let clock = TestClock::at(NOW);
    let upstream = Scripted::start(clock.clone(), |_, seen| {
        let heavy = String::from_utf8_lossy(&seen.body).contains("heavy");
        Answer {
            gate: heavy,
            ..point(seen)
        }
    })
    .await;
    let keys = "timeout = \"1m\"\nbreaker = { failures = 2, open = \"1d\" }";
    let toml = mirror("heavy", &[&upstream.url], keys);
    let toml = format!("[server]\nrequest_timeout = \"5m\"\n{toml}");
    let server = Server::start_at(&toml, clock).await;
    let done = AtomicBool::new(false);
    let heavy = async {
        let asked = (0..5).map(|n| {
            let body = question("heavy", n);
            let server = &server;
            async move { server.post("/api/metric", &body).await.status }
        });
        let statuses = join_all(asked).await;
        done.store(true, Ordering::SeqCst);
        assert_eq!(statuses, [504; 5]);
    };
    let cheap = async {
        let mut n = 0;
        while !done.load(Ordering::SeqCst) {
            n += 1;
            let reply = server.post("/api/metric", &question("cheap", n)).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
            // While no cheap request is in flight, the time-out of the others shortens.
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(2)).await;
            tokio::time::resume();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::join!(heavy, cheap);
    let open = "heliostat_breaker_open{upstream=\"heavy\"}";
    assert_eq!(server.metric(open).await, 0.0);
    let reply = server.post("/api/metric", &question("cheap", 9_999)).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_failing_url_goes_unnoticed_while_another_works() {
    let clock = TestClock::at(NOW);
    let key = [("x-mirror-api-key".to_owned(), "k".to_owned())];
    let busy = |status: u16, after: Option<&str>| Answer {
        status,
        headers: after
            .map(|after| ("retry-after".to_owned(), after.to_owned()))
            .into_iter()
            .collect(),
        ..page(status)
    };
    let redirect = |to: &str| Answer {
        headers: [("location".to_owned(), to.to_owned())].into(),
        ..page(302)
    };
    let said = |status: u16, text: &str| Answer {
        text: Some(text.to_owned()),
        ..page(status)
    };
    let sick: [(&str, Answer, usize); 19] = [
        ("bad-gateway", page(502), 1),
        ("gateway-timeout", page(504), 1),
        ("login-page", page(200), 1),
        // A redirect on the same host is followed a few times.
        ("login-loop", redirect("/login"), 8),
        ("login-elsewhere", redirect("http://login.example/"), 1),
        ("not-found", page(404), 1),
        ("unauthorized", page(401), 1),
        ("payment-required", page(402), 1),
        ("no-origin", page(530), 1),
        ("nothing", said(200, ""), 1),
        ("no-content", said(204, ""), 1),
        // A gateway may speak JSON: its error is none of a mirror, and has no key.
        (
            "no-upstream",
            said(502, r#"{"message":"no healthy upstream"}"#),
            1,
        ),
        (
            "no-route",
            said(404, r#"{"message":"no Route matched"}"#),
            1,
        ),
        ("overloaded", said(503, r#"{"message":"slow down"}"#), 1),
        // No clock can add this up.
        ("never", busy(503, Some("18446744073709551615")), 1),
        ("starting", busy(503, None), 1),
        ("long-rest", busy(503, Some("60")), 1),
        ("throttled", busy(429, Some("60")), 1),
        (
            "reset",
            Answer {
                fault: Fault::Reset,
                ..Answer::default()
            },
            1,
        ),
    ];
    for (name, answer, most) in sick {
        let first = Scripted::start(clock.clone(), move |_, _| answer.clone()).await;
        let keyed = key.clone();
        let second = Scripted::start(clock.clone(), move |_, seen| Answer {
            headers: keyed.clone().into(),
            ..point(seen)
        })
        .await;
        let keys = "api_key = \"k\"\nretries = 0\nbreaker = { failures = 5, open = \"1h\" }";
        let toml = mirror(name, &[&first.url, &second.url], keys);
        let server = Server::start_at(&toml, clock.clone()).await;
        for n in 0..20 {
            let reply = server.post("/api/metric", &question("cpu", n)).await;
            assert_eq!(reply.status, 200, "{name}: {}", reply.text);
        }
        let asked = first.seen().len();
        assert!(
            (1..=most).contains(&asked),
            "{name}: it was asked {asked} times"
        );
    }
}

#[tokio::test]
async fn while_the_breaker_is_open_the_answer_says_why_and_test_connection_asks() {
    let clock = TestClock::at(NOW);
    let well = Arc::new(AtomicBool::new(false));
    let is_well = well.clone();
    let upstream = Scripted::start(clock.clone(), move |_, seen| {
        match is_well.load(Ordering::SeqCst) {
            true => point(seen),
            false => page(502),
        }
    })
    .await;
    let keys = "retries = 0\nbreaker = { failures = 2, open = \"1h\" }";
    let toml = mirror("shut", &[&upstream.url], keys);
    let server = Server::start_at(&toml, clock).await;
    for n in 0..2 {
        server.post("/api/metric", &question("cpu", n)).await;
    }
    let shut = server.post("/api/metric", &question("cpu", 3)).await;
    assert_eq!(shut.status, 502);
    for said in ["circuit breaker is open", "HTTP 502", "next trial in 3"] {
        assert!(shut.text.contains(said), "{said}: {}", shut.text);
    }
    let test = json!({ "connectionDetails": {} });
    let reply = server.post("/api/connection", &test).await;
    assert!(reply.text.contains("HTTP 502"), "{}", reply.text);
    assert_eq!(upstream.seen().len(), 3, "it asked");
    well.store(true, Ordering::SeqCst);
    let reply = server.post("/api/connection", &test).await;
    assert_eq!(reply.json()["status"], "OK", "{}", reply.text);
    let reply = server.post("/api/metric", &question("cpu", 3)).await;
    assert_eq!(reply.status, 200, "it was the trial: {}", reply.text);
}

#[tokio::test]
async fn a_gateway_that_lets_only_get_pass_is_asked_by_get() {
    let clock = TestClock::at(NOW);
    let answer = |seen: &Seen| match seen.method.as_str() {
        "GET" => Answer::json(json!({
            "status": "success",
            "data": { "resultType": "matrix", "result": null },
        })),
        _ => page(405),
    };
    let upstream = Scripted::start(clock.clone(), move |_, seen| answer(seen)).await;
    let toml = format!(
        "[[upstream]]\nname = \"only-get\"\nkind = \"prometheus\"\nurls = [{:?}]\nretries = 0\n",
        upstream.url
    );
    let server = Server::start_at(&toml, clock).await;
    for n in 0..3 {
        let path = format!(
            "/api/v1/query_range?query=up&start={}&end={}&step=15",
            OLD / 1000 + n * 100,
            OLD / 1000 + n * 100 + 60
        );
        let reply = server.get(&path).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.json()["data"]["result"], json!([]));
    }
    let methods: Vec<_> = upstream.seen().iter().map(|s| s.method.clone()).collect();
    assert_eq!(methods, ["POST", "GET", "GET", "GET"], "it is remembered");
}

/// Points every ten seconds up to `now`, `shift` later than whole ones, without those in `hole`.
fn scraped(seen: &Seen, now: i64, shift: i64, hole: std::ops::Range<i64>) -> Answer {
    if seen.path == "/api/connection" {
        return point(seen);
    }
    let query = &seen.json()["query"];
    let bound = |name: &str| query[name].as_i64().unwrap();
    let times = (bound("startTime") / EVERY - 1..)
        .map(|n| n * EVERY + shift)
        .take_while(|t| *t < bound("endTime").min(now + 1));
    let times = times.filter(|t| *t >= bound("startTime") && !hole.contains(t));
    Answer::json(json!({
        "_type": "MetricsResponse",
        "telemetry": {
            "_type": "RawMetricTelemetry", "points": times.map(|t| json!([shift, t])).collect::<Vec<_>>(),
            "dataFormat": ["value", "timestamp"], "isPartial": false,
        },
    }))
}

const EVERY: i64 = 10_000;

/// Asks for the last ten minutes `times` times, every ten seconds, and has `check` look at the points' times.
async fn sliding(server: &Server, clock: &TestClock, times: usize, check: impl Fn(i64, &[i64])) {
    for _ in 0..times {
        clock.pass(10_000);
        let now = clock.now();
        let mut asked = question("cpu", 0);
        asked["query"]["startTime"] = json!(now - 10 * MINUTE);
        asked["query"]["endTime"] = json!(now);
        let reply = server.post("/api/metric", &asked).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let times: Vec<i64> = reply.points().iter().map(|p| p[1] as i64).collect();
        check(now, &times);
    }
}

const SLIDING: &str = "refresh = \"10s\"\nsettle = \"30s\"\nrefresh_ahead = false\nrecheck = \"0s\"\n\
     breaker = { failures = 5, open = \"1s\" }";

#[tokio::test]
async fn a_lane_keeps_to_one_url_of_a_pair_that_is_well() {
    let clock = TestClock::at(NOW);
    let of_first = clock.clone();
    let first = Scripted::start(clock.clone(), move |_, seen| {
        scraped(seen, of_first.now(), 0, 0..0)
    })
    .await;
    let of_second = clock.clone();
    let second = Scripted::start(clock.clone(), move |_, seen| {
        scraped(seen, of_second.now(), 2_000, 0..0)
    })
    .await;
    let toml = mirror("pair", &[&first.url, &second.url], SLIDING);
    let server = Server::start_at(&toml, clock.clone()).await;
    sliding(&server, &clock, 120, |now, times| {
        let whole = |t: &i64| t % EVERY == 0;
        assert!(times.iter().all(whole), "{times:?}");
        let apart = |pair: &[i64]| pair[1] - pair[0] == EVERY;
        assert!(times.windows(2).all(apart), "{times:?}");
        assert!(times.last().is_some_and(|t| now - t <= 2 * EVERY));
    })
    .await;
    assert!(second.seen().is_empty(), "the second was asked");
}

#[tokio::test]
async fn what_a_url_missed_leaves_no_hole_when_it_is_back() {
    const DOWN: std::ops::Range<i64> = NOW + 4 * MINUTE..NOW + 4 * MINUTE + 202_000;
    let clock = TestClock::at(NOW);
    let found = Arc::new(AtomicBool::new(false));
    let (of_first, has_found) = (clock.clone(), found.clone());
    let first = Scripted::start(clock.clone(), move |_, seen| {
        let now = of_first.now();
        if seen.path == "/api/connection" && !DOWN.contains(&now) {
            has_found.store(true, Ordering::SeqCst);
        }
        match DOWN.contains(&now) {
            true => Answer {
                fault: Fault::Close,
                ..Answer::default()
            },
            false => scraped(seen, now, 0, DOWN),
        }
    })
    .await;
    let of_second = clock.clone();
    let second = Scripted::start(clock.clone(), move |_, seen| {
        scraped(seen, of_second.now(), 2_000, 0..0)
    })
    .await;
    let toml = mirror("missed", &[&first.url, &second.url], SLIDING);
    let server = Server::start_at(&toml, clock.clone()).await;
    let check = |now: i64, times: &[i64]| {
        let bounds = [&[now - 10 * MINUTE], times].concat();
        let apart = |pair: &[i64]| (0..=EVERY + 2_000).contains(&(pair[1] - pair[0]));
        assert!(bounds.windows(2).all(apart), "{} {times:?}", now - NOW);
        assert!(times.last().is_some_and(|t| now - t <= 2 * EVERY + 2_000));
    };
    let queries = || {
        let seen = first.seen();
        seen.iter().filter(|s| s.path == "/api/metric").count()
    };
    sliding(&server, &clock, 46, check).await;
    assert!(clock.now() > DOWN.end);
    // Heliostat finds by itself that it is back.
    while !found.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = queries();
    sliding(&server, &clock, 74, check).await;
    assert!(queries() > before + 10, "it is not asked again");
}
