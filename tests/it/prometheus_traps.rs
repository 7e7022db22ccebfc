//! Mistakes that caches of range queries make: one test for each, against a scripted Prometheus
//! that counts its calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use url::form_urlencoded;

use crate::scripted::{Answer, Scripted, Seen};
use crate::support::{Reply, Server, TestClock};

const NOW: i64 = 1_700_100_000_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// Long settled; the start of an hour.
const OLD: i64 = NOW - NOW % HOUR - 60 * HOUR;

/// Returns the parameters of a request, from the URL and the form.
fn params(seen: &Seen) -> BTreeMap<String, String> {
    let url = seen.path.split_once('?').map_or("", |p| p.1).as_bytes();
    let url = form_urlencoded::parse(url);
    let all = url.chain(form_urlencoded::parse(&seen.body));
    all.map(|(n, v)| (n.into_owned(), v.into_owned())).collect()
}

/// Returns a time or a step as milliseconds.
fn millis(text: &str) -> i64 {
    if let Some(millis) = text.strip_suffix("ms") {
        return millis.parse().unwrap();
    }
    (text.parse::<f64>().unwrap() * 1000.0).round() as i64
}

fn seconds(millis: i64) -> String {
    match millis % 1000 {
        0 => (millis / 1000).to_string(),
        rest => format!("{}.{rest:03}", millis / 1000),
    }
}

/// Returns Prometheus' answer for a series whose value is the evaluation time in milliseconds.
fn matrix(label: &str, start: i64, end: i64, step: i64) -> String {
    let times = (start..=end).step_by(step as usize);
    let values: Vec<_> = times.map(|t| format!("[{},\"{t}\"]", seconds(t))).collect();
    format!(
        r#"{{"status":"success","data":{{"resultType":"matrix","result":[{{"metric":{{"l":"{label}"}},"values":[{}]}}]}}}}"#,
        values.join(",")
    )
}

/// Returns the window of a request.
fn window(seen: &Seen) -> (i64, i64, i64) {
    let params = params(seen);
    let get = |name: &str| millis(&params[name]);
    (get("start"), get("end"), get("step"))
}

fn text(text: String) -> Answer {
    Answer {
        text: Some(text),
        ..Answer::default()
    }
}

/// A valid answer. Its label names the tenant.
fn good(seen: &Seen) -> Answer {
    let (start, end, step) = window(seen);
    let tenant = seen.headers.get("x-scope-orgid");
    text(matrix(tenant.map_or("", |t| t), start, end, step))
}

struct Rig {
    upstream: Scripted,
    server: Server,
    clock: Arc<TestClock>,
}

impl Rig {
    async fn new(
        name: &str,
        script: impl Fn(usize, &Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let clock = TestClock::at(NOW);
        let upstream = Scripted::start(clock.clone(), script).await;
        let config = format!(
            "[[upstream]]\nname = {name:?}\nkind = \"prometheus\"\nurls = [{:?}]\n\
             default = true\nretries = 0\n",
            upstream.url
        );
        let server = Server::start_at(&config, clock.clone()).await;
        Self {
            upstream,
            server,
            clock,
        }
    }

    async fn ask(&self, query: &str, start: i64, end: i64, step: i64) -> Reply {
        self.ask_as(None, query, start, end, step).await
    }

    async fn ask_as(
        &self,
        tenant: Option<&str>,
        query: &str,
        start: i64,
        end: i64,
        step: i64,
    ) -> Reply {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("query", query);
        form.append_pair("start", &seconds(start));
        form.append_pair("end", &seconds(end));
        form.append_pair("step", &format!("{step}ms"));
        let url = format!("{}/api/v1/query_range?{}", self.server.url, form.finish());
        let mut request = self.server.client().get(url);
        if let Some(tenant) = tenant {
            request = request.header("x-scope-orgid", tenant);
        }
        self.server.reply(request).await
    }

    async fn post(&self, form: &str) -> Reply {
        let url = format!("{}/api/v1/query_range", self.server.url);
        let request = self.server.client().post(url).body(form.to_owned());
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        self.server.reply(request).await
    }

    /// Returns the number of calls to the upstream so far.
    fn calls(&self) -> usize {
        self.upstream.seen().len()
    }
}

fn is_hit(reply: &Reply) -> bool {
    reply.header("cache-status").starts_with("heliostat; hit")
}

#[tokio::test]
async fn no_time_comes_twice_where_pieces_meet() {
    let rig = Rig::new("trap-seams", |_, seen| good(seen)).await;
    let step = 15_000;
    // Each window shares an end with another, overlaps it, or leaves a gap.
    let windows = [
        (3, 5),
        (5, 7),
        (7, 7),
        (0, 2),
        (1, 4),
        (10, 19),
        (19, 28),
        (0, 40),
    ];
    for (from, to) in windows {
        let (start, end) = (OLD + from * HOUR, OLD + to * HOUR);
        let reply = rig.ask("s", start, end, step).await;
        assert_eq!(reply.text, matrix("", start, end, step), "{from} to {to}");
    }
    let calls = rig.calls();
    for (from, to) in windows {
        let (start, end) = (OLD + from * HOUR + step, OLD + to * HOUR + 7 * step);
        let reply = rig.ask("s", start, end - 8 * step, step).await;
        if from < to {
            assert!(is_hit(&reply), "{}", reply.header("cache-status"));
            assert_eq!(reply.text, matrix("", start, end - 8 * step, step));
        }
    }
    assert_eq!(rig.calls(), calls);
}

#[tokio::test]
async fn coarse_steps_come_from_fine_ones_of_the_same_phase_only() {
    let rig = Rig::new("trap-coarse", |_, seen| good(seen)).await;
    let fine = 15_000;
    rig.ask("s", OLD, OLD + 4 * HOUR, fine).await;
    let calls = rig.calls();
    for (start, step) in [
        (OLD, 60_000),
        (OLD + fine, 60_000),
        (OLD + 3 * fine, 4 * fine),
        (OLD + 7 * fine, 45_000),
        (OLD + MINUTE, 10 * MINUTE),
    ] {
        let end = OLD + 3 * HOUR + 7_000;
        let reply = rig.ask("s", start, end, step).await;
        assert_eq!(reply.text, matrix("", start, end, step), "{start} {step}");
        assert!(is_hit(&reply), "{step}: {}", reply.header("cache-status"));
        assert_eq!(rig.calls(), calls, "{step} is whole fine steps");
    }
    for (start, step) in [
        (OLD + 7_000, 60_000),
        (OLD + 1, fine),
        (OLD + 7_500, fine),
        (OLD, 61_000),
        (OLD + fine, 20_000),
        (OLD, 5_000),
    ] {
        let (calls, end) = (rig.calls(), OLD + 3 * HOUR);
        let reply = rig.ask("s", start, end, step).await;
        assert_eq!(reply.text, matrix("", start, end, step), "{start} {step}");
        assert!(rig.calls() > calls, "{start} {step} meets other times");
    }
}

#[tokio::test]
async fn steps_and_times_are_exact_to_the_millisecond() {
    let rig = Rig::new("trap-millis", |_, seen| good(seen)).await;
    for step in [1_500, 1_001, 333, 61_500] {
        for start in [OLD, OLD + 1, OLD + 999, OLD + 1_250] {
            let end = start + 100 * step + 17;
            let reply = rig.ask("s", start, end, step).await;
            assert_eq!(reply.text, matrix("", start, end, step), "{start} {step}");
            for seen in rig.upstream.seen().iter().rev().take(1) {
                let asked = window(seen);
                assert_eq!(asked.2, step, "the upstream's step");
                assert_eq!((asked.0 - start) % step, 0, "the upstream's phase");
            }
            let later = rig.ask("s", start + 7 * step, end - step, step).await;
            assert!(is_hit(&later), "{}", later.header("cache-status"));
            assert_eq!(later.text, matrix("", start + 7 * step, end - step, step));
        }
    }
}

#[tokio::test]
async fn what_reads_past_its_time_is_asked_each_time() {
    let rig = Rig::new("trap-bypass", |_, seen| good(seen)).await;
    for (query, reason) in [
        ("s @ 1700000000", "at-modifier"),
        ("s @ end()", "depends-on-window"),
        ("sum_over_time(s[5m:1m] @ start())", "depends-on-window"),
        ("s offset -5m", "negative-offset"),
        ("no_such_function(s)", "unknown-function"),
        ("s  limit 5", "not-understood"),
    ] {
        for round in 0..3 {
            let calls = rig.calls();
            let reply = rig.ask(query, OLD, OLD + HOUR, MINUTE).await;
            assert_eq!(reply.text, matrix("", OLD, OLD + HOUR, MINUTE), "{query}");
            let due = format!("heliostat; fwd=bypass; detail=\"{reason}\"");
            assert_eq!(reply.header("cache-status"), due, "{query}");
            assert_eq!(rig.calls(), calls + 1, "{query}, {round}");
            let asked = params(rig.upstream.seen().last().unwrap());
            assert_eq!(asked["query"], query);
        }
    }
}

#[tokio::test]
async fn tenants_do_not_see_each_others_data() {
    let rig = Rig::new("trap-tenants", |_, seen| good(seen)).await;
    let tenants = [None, Some("a"), Some("b"), Some("a|b"), Some("A")];
    for (n, tenant) in (1..).zip(tenants) {
        for again in [false, true] {
            let reply = rig.ask_as(tenant, "s", OLD, OLD + HOUR, MINUTE).await;
            let due = matrix(tenant.unwrap_or(""), OLD, OLD + HOUR, MINUTE);
            assert_eq!(reply.text, due, "{tenant:?}");
            assert_eq!(is_hit(&reply), again, "{tenant:?}");
            assert_eq!(rig.calls(), n, "{tenant:?}");
        }
        let seen = rig.upstream.seen();
        let sent = seen.last().unwrap().headers.get("x-scope-orgid");
        assert_eq!(sent.map(String::as_str), tenant);
    }
}

#[tokio::test]
async fn parameters_that_change_an_answer_tell_lanes_apart() {
    let rig = Rig::new("trap-identity", |_, seen| good(seen)).await;
    let (start, end) = (seconds(OLD), seconds(OLD + HOUR));
    let base = format!("query=s&start={start}&end={end}&step=60");
    let all = [
        "",
        "&dedup=true",
        "&dedup=false",
        "&partial_response=true",
        "&max_source_resolution=5m",
        "&replicaLabels[]=a",
        "&lookback_delta=1m",
        "&lookback_delta=2m",
        "&limit=5",
        "&limit=6",
    ];
    for more in all {
        let calls = rig.calls();
        rig.post(&format!("{base}{more}")).await;
        assert_eq!(rig.calls(), calls + 1, "{more} is another question");
        let asked = params(rig.upstream.seen().last().unwrap());
        for (name, value) in form_urlencoded::parse(more.as_bytes()) {
            assert_eq!(asked.get(&*name).map(String::as_str), Some(&*value));
        }
    }
}

#[tokio::test]
async fn the_same_question_in_other_words_is_the_same() {
    let rig = Rig::new("trap-words", |_, seen| good(seen)).await;
    let (start, end) = (seconds(OLD), seconds(OLD + HOUR));
    let due = matrix("", OLD, OLD + HOUR, MINUTE);
    assert_eq!(rig.ask("s", OLD, OLD + HOUR, MINUTE).await.text, due);
    let rfc = |t: i64| {
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(t as u64);
        humantime::format_rfc3339_seconds(at).to_string()
    };
    for form in [
        format!("query=s&start={start}&end={end}&step=60"),
        format!("step=60&end={end}&start={start}&query=s"),
        format!("start={start}.000&query=%73&step=1m&end={end}.0"),
        format!(
            "query=+s%0A&end={}&start={}&step=60000ms",
            rfc(OLD + HOUR),
            rfc(OLD)
        ),
    ] {
        let reply = rig.post(&form).await;
        assert!(is_hit(&reply), "{form}: {}", reply.header("cache-status"));
        assert_eq!(reply.text, due, "{form}");
    }
    assert_eq!(rig.calls(), 1);
}

#[tokio::test]
async fn a_warning_is_passed_on_and_what_it_warns_of_is_not_kept() {
    let rig = Rig::new("trap-warnings", |n, seen| {
        let plain = good(seen).text.unwrap();
        match n {
            0 | 1 => text(plain.replace("]}}", "]},\"warnings\":[\"a store is down\"]}")),
            _ => text(plain),
        }
    })
    .await;
    let due = matrix("", OLD, OLD + HOUR, MINUTE);
    for _ in 0..2 {
        let reply = rig.ask("s", OLD, OLD + HOUR, MINUTE).await;
        assert_eq!(reply.json()["warnings"][0], "a store is down");
        assert!(!is_hit(&reply), "{}", reply.header("cache-status"));
    }
    let calls = rig.calls();
    assert_eq!(calls, 2);
    let reply = rig.ask("s", OLD, OLD + HOUR, MINUTE).await;
    assert_eq!((reply.text, rig.calls()), (due.clone(), 3));
    let reply = rig.ask("s", OLD, OLD + HOUR, MINUTE).await;
    assert!(is_hit(&reply));
    assert_eq!((reply.text, rig.calls()), (due, 3));
}

#[tokio::test]
async fn errors_are_passed_on_word_for_word_and_remembered_for_a_refresh() {
    const WORDS: &str =
        r#"{"status":"error","errorType":"execution","error":"found <duplicate> series"}"#;
    let rig = Rig::new("trap-errors", |n, seen| match n {
        0 | 1 => Answer {
            status: 422,
            ..text(WORDS.to_owned())
        },
        _ => good(seen),
    })
    .await;
    for calls in [1, 1, 2] {
        let reply = rig.ask("s", OLD, OLD + HOUR, MINUTE).await;
        assert_eq!((reply.status, reply.text.as_str()), (422, WORDS));
        assert_eq!(rig.calls(), calls);
        rig.clock.pass(6000);
    }
    rig.clock.pass(10_000);
    let reply = rig.ask("s", OLD, OLD + HOUR, MINUTE).await;
    assert_eq!(reply.text, matrix("", OLD, OLD + HOUR, MINUTE));
}

#[tokio::test]
async fn a_failed_piece_fails_the_request_and_the_good_ones_stay() {
    let failing = OLD + 30 * HOUR;
    let rig = Rig::new("trap-piece", move |n, seen| {
        let (_, end, _) = window(seen);
        match n {
            1..=4 if end > failing => Answer {
                status: 500,
                ..text("down".to_owned())
            },
            _ => good(seen),
        }
    })
    .await;
    // In the middle, so that something is missing on both sides.
    rig.ask("s", OLD + 10 * HOUR, OLD + 30 * HOUR, MINUTE).await;
    assert_eq!(rig.calls(), 1);
    let reply = rig.ask("s", OLD, OLD + 40 * HOUR, MINUTE).await;
    assert!(reply.status >= 500, "{}", reply.text);
    let told = reply.json();
    assert_eq!(
        (&told["status"], &told["errorType"]),
        (&"error".into(), &"unavailable".into())
    );
    // The valid piece is cached.
    let calls = rig.calls();
    let reply = rig.ask("s", OLD, OLD + 30 * HOUR, MINUTE).await;
    assert_eq!(reply.text, matrix("", OLD, OLD + 30 * HOUR, MINUTE));
    assert!(is_hit(&reply), "{}", reply.header("cache-status"));
    assert_eq!(rig.calls(), calls);
    // Only the other one is fetched again, until it succeeds.
    for _ in 0..8 {
        let calls = rig.calls();
        let reply = rig.ask("s", OLD, OLD + 40 * HOUR, MINUTE).await;
        for seen in &rig.upstream.seen()[calls..] {
            let (start, end, _) = window(seen);
            assert!(
                start >= OLD + 30 * HOUR && end <= OLD + 40 * HOUR,
                "{start} {end}"
            );
        }
        assert!(rig.calls() > calls);
        if reply.status == 200 {
            assert_eq!(reply.text, matrix("", OLD, OLD + 40 * HOUR, MINUTE));
            return;
        }
    }
    panic!("it never came");
}

#[tokio::test]
async fn a_full_hit_refreshes_the_tail_and_only_it() {
    let rig = Rig::new("trap-tail", |_, seen| good(seen)).await;
    let step = 15_000;
    let end = NOW - NOW % step;
    let start = end - 6 * HOUR;
    let ask = async || {
        let reply = rig.ask("s", start, end, step).await;
        assert_eq!(reply.text, matrix("", start, end, step));
        reply
    };
    ask().await;
    assert!(is_hit(&ask().await));
    let calls = rig.calls();
    rig.clock.pass(11_000);
    let reply = ask().await;
    assert!(!is_hit(&reply), "{}", reply.header("cache-status"));
    let seen = rig.upstream.seen();
    assert_eq!(seen.len(), calls + 1);
    let (from, _, _) = window(&seen[calls]);
    let settled = NOW - 2 * MINUTE;
    assert!(
        from > settled - 2 * step,
        "{} s of settled data",
        (settled - from) / 1000
    );
}
