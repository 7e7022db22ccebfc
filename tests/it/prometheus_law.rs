//! The law of the Prometheus API: whatever was requested, evicted or failed before, an answer is
//! byte for byte that of the Prometheus behind it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use heliostat::promql::{Analysis, classify};
use url::form_urlencoded;

use crate::prometheus::Store;
use crate::prometheus_api::{Dice, KEPT, LENGTH, MINUTE, PASSED, START, data, differ};
use crate::relay::{Accident, Relay};
use crate::remote_write::{Written, fresh, write};
use crate::scripted::Fault;
use crate::support::{Reply, Server, TestClock, metric};

const HOUR: i64 = 60 * MINUTE;

/// Steps in milliseconds: whole seconds and fractions, of the same phase and not.
const STEPS: [i64; 9] = [
    1_000, 1_500, 7_000, 15_000, 15_000, 30_000, 60_000, 61_500, 300_001,
];

/// Most steps of a window.
const MOST: i64 = 900;

/// Queries besides those that the pure parts are tested with.
const MORE: &[&str] = &[
    "sum(c_total)",
    "max without (code) (c_total)",
    "count by (le) (h_bucket)",
    "group(c_total)",
    "count({__name__=~\"g|c_total|h_bucket\"})",
    "sum by (host) (h_bucket)",
    "topk(2, c_total)",
    "sum_over_time(st[5m])",
    "count_over_time(wild[5m])",
    "g offset 1h",
    "c_total offset 90m",
    "max_over_time(g[1h:5m] offset 10m)",
    "timestamp(g offset 1m)",
    "histogram_count(nh)",
    "histogram_sum(rate(nh[2m]))",
    "sum(nh)",
    "nh + nh",
    "absent(g)",
    "g == 12.5",
    "g != bool 12.5",
    "{host=\"a\"}",
    "{__name__=~\".+\", code=\"500\"}",
    "  g  # a comment\n",
    // Queries that may not be cached.
    "g offset -5m",
    "g @ 1700003600",
    "rate(c_total[5m] @ end())",
    "topk(scalar(count(g)), c_total)",
    // Queries that fail, at some times only or always.
    "g * on (host) build",
    "build * on (host) g",
    "label_replace(g, \"host\", \"same\", \"\", \"\")",
    "label_replace(g, \"0\", \"same\", \"\", \"\")",
    "rate(g)",
    "sum(g",
    "g[5m]",
    "\"text\"",
    "no_such_function(g)",
    "",
];

/// A range query's window.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: i64,
    end: i64,
    step: i64,
}

impl Window {
    /// A window of at most `len`, within the data or nearly so.
    fn any(dice: &mut Dice) -> Self {
        let step = STEPS[pick(dice, STEPS.len())];
        let start = START - 20 * MINUTE + dice.roll(LENGTH);
        let end = start + (1 + dice.roll(300)) * step;
        Self { start, end, step }.bounded(START + LENGTH + 20 * MINUTE)
    }

    /// The next window of somebody who looks at a dashboard.
    fn moved(mut self, dice: &mut Dice, latest: i64) -> Self {
        let length = self.end - self.start;
        let mut by = 0;
        match dice.roll(12) {
            0 => {}
            1 | 2 => by = (1 + dice.roll(40)) * self.step,
            3 => by = -(1 + dice.roll(40)) * self.step,
            4 => by = length,
            5 => by = -length / 2,
            // Of another phase.
            6 => by = 1 + dice.roll(self.step),
            // Zooms in.
            7 => {
                self.start += length / 4 / self.step * self.step;
                self.end -= length / 4;
            }
            // Zooms out.
            8 => {
                self.start -= (length / self.step).max(10) * self.step;
                self.end += length;
            }
            9 => self.step = STEPS[pick(dice, STEPS.len())],
            // Coarser, of the same phase.
            10 => {
                self.step *= 2 + dice.roll(4);
                self.end += length;
            }
            // An end that is not on a step.
            _ => self.end += dice.roll(self.step),
        }
        self.start += by;
        self.end += by;
        if self.step > 1_200_000 {
            self.step = 15_000;
        }
        self.bounded(latest)
    }

    fn bounded(mut self, latest: i64) -> Self {
        self.end = self.end.min(latest);
        self.start = self.start.max(START - HOUR).min(self.end);
        self.end = self.end.min(self.start + MOST * self.step);
        self
    }
}

/// A request.
#[derive(Clone, Debug)]
struct Ask {
    /// Under `api/v1`.
    path: String,
    params: Vec<(&'static str, String)>,
    post: bool,
}

impl Ask {
    fn range(text: &str, window: Window, dice: &mut Dice) -> Self {
        let mut params = vec![
            ("query", text.to_owned()),
            ("start", time(window.start, dice)),
            ("end", time(window.end, dice)),
            ("step", step(window.step, dice)),
        ];
        if dice.roll(8) == 0 {
            params.push(("timeout", "30s".to_owned()));
        }
        let by = dice.roll(params.len() as i64) as usize;
        params.rotate_left(by);
        Self {
            path: "query_range".to_owned(),
            params,
            post: dice.roll(2) == 0,
        }
    }

    fn get(path: &str, params: &[(&'static str, &str)]) -> Self {
        Self {
            path: path.to_owned(),
            params: params.iter().map(|(n, v)| (*n, (*v).to_owned())).collect(),
            post: false,
        }
    }

    /// Returns the query for which an answer is promised: names, values and series are looked up in
    /// whole minutes (`metadata_ttl`).
    fn widened(&self) -> Self {
        let mut asked = self.clone();
        if !["labels", "series"].contains(&self.path.as_str()) && !self.path.ends_with("/values") {
            return asked;
        }
        for (name, up) in [("start", 0), ("end", MINUTE - 1)] {
            let first = asked.params.iter_mut().find(|(n, _)| *n == name);
            if let Some((_, value)) = first
                && let Ok(seconds) = value.parse::<f64>()
            {
                let millis = ((seconds * 1000.0) as i64 + up) / MINUTE * MINUTE;
                *value = (millis / 1000).to_string();
            }
        }
        asked
    }

    fn request(&self, client: &reqwest::Client, base: &str) -> reqwest::RequestBuilder {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(&self.params);
        let (url, form) = (format!("{base}/api/v1/{}", self.path), form.finish());
        if self.post {
            let request = client.post(url).body(form);
            return request.header("content-type", "application/x-www-form-urlencoded");
        }
        // Otherwise the client requests compression and undoes it.
        let plain = ("accept-encoding", "identity");
        client.get(format!("{url}?{form}")).header(plain.0, plain.1)
    }
}

/// `millis` as seconds or as RFC 3339.
fn time(millis: i64, dice: &mut Dice) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(millis as u64);
    match dice.roll(4) {
        0 => humantime::format_rfc3339_millis(at).to_string(),
        1 => {
            let at = at + Duration::from_secs(7200);
            let text = humantime::format_rfc3339_millis(at).to_string();
            text.replace('Z', "+02:00")
        }
        2 if millis % 1000 == 0 => (millis / 1000).to_string(),
        _ => format!("{}.{:03}", millis / 1000, millis % 1000),
    }
}

fn step(millis: i64, dice: &mut Dice) -> String {
    match dice.roll(3) {
        0 => format!("{millis}ms"),
        1 if millis % MINUTE == 0 => format!("{}m", millis / MINUTE),
        1 if millis % 1000 == 0 => format!("{}s", millis / 1000),
        _ => format!("{}.{:03}", millis / 1000, millis % 1000),
    }
}

/// A Heliostat in front of a Prometheus, and the Prometheus itself.
struct Rig {
    store: Store,
    relay: Relay,
    server: Server,
    clock: Arc<TestClock>,
    name: &'static str,
    /// The number of answers by their `Cache-Status`.
    kinds: BTreeMap<String, usize>,
    wrong: String,
}

impl Rig {
    async fn new(name: &'static str, now: i64, memory: &str, more: &str) -> Option<Self> {
        let store = fresh().await?;
        let clock = TestClock::at(now);
        let relay = Relay::to(&store.url, clock.clone()).await;
        let config = format!(
            "[cache]\nmemory = \"{memory}\"\n[[upstream]]\nname = \"{name}\"\n\
             kind = \"prometheus\"\nurls = [\"{}\"]\ndefault = true\n\
             rate_limit = {{ per_second = 1000000, burst = 1000000 }}\n\
             breaker = {{ failures = 1000000 }}\n{more}\n",
            relay.upstream.url
        );
        let server = Server::start_at(&config, clock.clone()).await;
        Some(Self {
            store,
            relay,
            server,
            clock,
            name,
            kinds: BTreeMap::new(),
            wrong: String::new(),
        })
    }

    async fn write(&self, all: &[Written], from: i64, to: i64) {
        let mut at = from;
        while at < to {
            let next = (at + 10 * MINUTE).min(to);
            write(&self.store, all, at, next).await;
            at = next;
        }
    }

    async fn direct(&self, ask: &Ask) -> Reply {
        let request = ask.widened().request(self.server.client(), &self.store.url);
        self.server.reply(request).await
    }

    /// Returns Heliostat's answer, by the path of the default upstream or by name.
    async fn face(&self, ask: &Ask) -> Reply {
        let base = if ask.params.len().is_multiple_of(2) {
            self.server.url.clone()
        } else {
            format!("{}/prometheus/{}", self.server.url, self.name)
        };
        let request = ask.request(self.server.client(), &base);
        self.server.reply(request).await
    }

    /// Queries both, and notes differences. If `excused`, Heliostat may fail instead.
    async fn compare(&mut self, ask: &Ask, excused: bool) {
        let reply = self.face(ask).await;
        if excused && reply.status >= 500 {
            let told = reply.json();
            assert_eq!(told["status"], "error", "{ask:?}: {}", reply.text);
            assert!(told["errorType"].is_string(), "{ask:?}: {}", reply.text);
            *self.kinds.entry("failed".to_owned()).or_default() += 1;
            return;
        }
        let direct = self.direct(ask).await;
        let status = reply.header("cache-status");
        if ask.path == "query_range" && reply.status == 200 {
            let kind = status.split(';').nth(1).unwrap_or("none").trim();
            *self.kinds.entry(kind.to_owned()).or_default() += 1;
            let query = &ask.params.iter().find(|p| p.0 == "query").unwrap().1;
            let reason = match classify(query) {
                _ if ask.params.iter().any(|p| p.0 == "limit") => Some("limit"),
                Analysis::PassThrough(reason) => Some(reason.as_str()),
                Analysis::PerInstant { .. } => None,
            };
            if let Some(reason) = reason {
                let due = format!("heliostat; fwd=bypass; detail=\"{reason}\"");
                assert_eq!(status, due, "{ask:?}");
            } else {
                assert!(!kind.contains("bypass"), "{ask:?}: {status}");
            }
        }
        let said = |reply: &Reply| match ask.path.as_str() {
            "query" => unordered(&reply.text),
            _ => reply.text.clone(),
        };
        if reply.status == direct.status && said(&reply) == said(&direct) {
            return;
        }
        let again = self.direct(ask).await;
        let fickle = if said(&again) == said(&direct) {
            ""
        } else {
            " (it differs from itself)"
        };
        let parted = differ(&said(&reply), &said(&direct)).unwrap_or_default();
        let parted = parted.replace("pieces", "face  ");
        writeln!(
            self.wrong,
            "{} where the origin says {}{fickle}; {status}; {ask:?}{parted}",
            reply.status, direct.status
        )
        .unwrap();
    }

    /// Returns the number of answers of this kind.
    fn kind(&self, kind: &str) -> usize {
        self.kinds.get(kind).copied().unwrap_or(0)
    }
}

/// Returns the answer to an instant query with its elements sorted, which Prometheus gives in no
/// particular order.
pub(crate) fn unordered(text: &str) -> String {
    let (Some(start), true) = (text.find("\"result\":[{"), text.ends_with("}]}}")) else {
        return text.to_owned();
    };
    let start = start + "\"result\":[{".len();
    let mut elements: Vec<&str> = text[start..text.len() - 4].split("},{\"metric").collect();
    elements[0] = elements[0].trim_start_matches("\"metric");
    elements.sort_unstable();
    format!("{}{}", &text[..start], elements.join("\n"))
}

/// Picks one of `length` positions.
fn pick(dice: &mut Dice, length: usize) -> usize {
    dice.roll(length as i64) as usize
}

/// Returns accidents for the upstream's next answers.
fn accidents(dice: &mut Dice) -> Vec<Option<Accident>> {
    let one = |dice: &mut Dice| match dice.roll(9) {
        0 => Some(Accident::Fault(Fault::Close)),
        1 => Some(Accident::Fault(Fault::Cut)),
        2 => Some(Accident::Fault(Fault::Reset)),
        3 => Some(Accident::Fault(Fault::Noise)),
        4 => Some(Accident::Status(503)),
        5 => Some(Accident::Status(500)),
        6 => Some(Accident::Late(20)),
        _ => None,
    };
    let many = 1 + dice.roll(4);
    (0..many).map(|_| one(dice)).collect()
}

/// Requests other than range queries.
fn others() -> Vec<Ask> {
    let mut all = Vec::new();
    for text in [
        "g",
        "c_total",
        "sum(c_total)",
        "nh",
        "time()",
        "\"text\"",
        "g[2m]",
        "none",
        "g @ end()",
        "rate(g)",
    ] {
        for at in ["1700003600", "1700003600.5", "2023-11-14T23:13:20Z"] {
            all.push(Ask::get("query", &[("query", text), ("time", at)]));
        }
    }
    let (start, end) = ("1700000000", "1700010800");
    for (path, params) in [
        ("labels", vec![]),
        ("labels", vec![("start", start), ("end", end)]),
        ("labels", vec![("match[]", "g"), ("match[]", "nh")]),
        ("label/host/values", vec![]),
        ("label/__name__/values", vec![("match[]", "{host=\"a\"}")]),
        ("label/0/values", vec![]),
        ("series", vec![]),
        (
            "series",
            vec![("match[]", "g"), ("start", start), ("end", end)],
        ),
        (
            "series",
            vec![("match[]", "g"), ("match[]", "c_total{code=\"500\"}")],
        ),
        ("series", vec![("match[]", "{")]),
        ("metadata", vec![]),
        ("metadata", vec![("limit", "x")]),
        ("format_query", vec![("query", "sum(g)by(host)")]),
        ("format_query", vec![("query", "sum(")]),
        ("parse_query", vec![("query", "sum(g)")]),
        (
            "query_exemplars",
            vec![("query", "g"), ("start", start), ("end", end)],
        ),
        ("status/buildinfo", vec![]),
        ("rules", vec![]),
        ("alerts", vec![]),
        ("no_such_thing", vec![]),
        (
            "query_range",
            vec![
                ("query", "g"),
                ("start", end),
                ("end", start),
                ("step", "15"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "g"),
                ("start", start),
                ("end", end),
                ("step", "0"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "g"),
                ("start", start),
                ("end", end),
                ("step", "0.5"),
            ],
        ),
        (
            "query_range",
            vec![("query", "g"), ("start", "x"), ("end", end), ("step", "15")],
        ),
        (
            "query_range",
            vec![
                ("query", "rate(g)"),
                ("start", start),
                ("end", end),
                ("step", "15"),
                ("timeout", "x"),
            ],
        ),
        ("query_range", vec![]),
        ("query", vec![]),
        // Around 1970.
        (
            "query_range",
            vec![
                ("query", "time()"),
                ("start", "-100"),
                ("end", "100"),
                ("step", "7"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "time()"),
                ("start", "-1.5"),
                ("end", "1"),
                ("step", "1"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "vector(1)"),
                ("start", "1000"),
                ("end", "1000000000"),
                ("step", "365d"),
            ],
        ),
        // The first of several values counts.
        (
            "query_range",
            vec![
                ("query", "g"),
                ("query", "nh"),
                ("start", "1700003600"),
                ("start", "1700000000"),
                ("end", end),
                ("step", "60"),
                ("step", "15"),
            ],
        ),
        (
            "query",
            vec![
                ("query", "nh"),
                ("query", "g"),
                ("time", "1700003600"),
                ("time", "1700000300"),
            ],
        ),
        (
            "query",
            vec![
                ("query", "g"),
                ("time", "1700000300"),
                ("time", "1700003600"),
            ],
        ),
        (
            "labels",
            vec![
                ("match[]", "nh"),
                ("match[]", "g"),
                ("start", end),
                ("start", start),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "g"),
                ("start", start),
                ("end", end),
                ("step", "60"),
                ("unknown", "1"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "g"),
                ("start", start),
                ("end", end),
                ("step", "60"),
                ("lookback_delta", "1m"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "g"),
                ("start", start),
                ("end", end),
                ("step", "60"),
                ("limit", "1"),
            ],
        ),
        // The most steps allowed.
        (
            "query_range",
            vec![
                ("query", "c_total"),
                ("start", start),
                ("end", end),
                ("step", "1"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "c_total"),
                ("start", "1700000000"),
                ("end", "1700011000"),
                ("step", "1"),
            ],
        ),
        (
            "query_range",
            vec![
                ("query", "c_total"),
                ("start", "1700000000"),
                ("end", "1700011001"),
                ("step", "1"),
            ],
        ),
    ] {
        all.push(Ask::get(path, &params));
    }
    // Parameters in the URL of a GET are not read for these.
    let posts: Vec<Ask> = all
        .iter()
        .filter(|a| {
            [
                "query",
                "labels",
                "series",
                "format_query",
                "query_exemplars",
            ]
            .contains(&a.path.as_str())
        })
        .map(|a| Ask {
            post: true,
            ..a.clone()
        })
        .collect();
    all.extend(posts);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_settled_is_answered_as_the_origin_does() {
    const ROUNDS: i64 = 900;
    let now = START + LENGTH + HOUR;
    let Some(mut rig) = Rig::new("law-settled", now, "1MiB", "retries = 1").await else {
        return;
    };
    rig.write(&data(), START - MINUTE, START + LENGTH).await;
    let texts = [KEPT, PASSED, MORE].concat();
    let others = others();
    let (mut dice, mut asked) = (Dice(11), std::collections::BTreeSet::new());
    let mut windows: Vec<_> = texts.iter().map(|_| Window::any(&mut dice)).collect();
    let latest = START + LENGTH + 20 * MINUTE;
    // Each expression at least once, then at random; recent ones more often.
    let mut recent = 0;
    for round in 0..ROUNDS {
        let at = match dice.roll(3) {
            _ if (round as usize) < texts.len() => round as usize,
            0 => recent,
            _ => pick(&mut dice, texts.len()),
        };
        recent = at;
        windows[at] = windows[at].moved(&mut dice, latest);
        asked.insert(format!("{at} {:?}", windows[at]));
        let ask = Ask::range(texts[at], windows[at], &mut dice);
        if dice.roll(6) == 0 {
            rig.relay.plan(accidents(&mut dice));
            rig.compare(&ask, true).await;
            rig.relay.plan([]);
        }
        rig.compare(&ask, false).await;
        if dice.roll(3) == 0 {
            let other = &others[pick(&mut dice, others.len())];
            rig.compare(other, false).await;
        }
        rig.clock.pass(dice.roll(3_000) as u64);
    }
    for other in &others {
        rig.compare(other, false).await;
    }
    println!(
        "{} expressions in windows, answers: {:?}",
        asked.len(),
        rig.kinds
    );
    assert!(rig.wrong.is_empty(), "{}", rig.wrong);
    assert!(asked.len() >= 600, "{}", asked.len());
    // Something that never happened would prove nothing.
    let evictions = metric(
        &rig.server.get("/metrics").await.text,
        "heliostat_cache_evictions_total",
    );
    assert!(evictions > 20.0, "{evictions} evictions");
    for (kind, least) in [
        ("hit", 60),
        ("fwd=miss", 100),
        ("fwd=partial", 60),
        ("fwd=bypass", 20),
        ("failed", 10),
    ] {
        assert!(rig.kind(kind) >= least, "{kind}: {:?}", rig.kinds);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_being_written_is_answered_as_the_origin_does() {
    const TICKS: i64 = 120;
    let now = START + HOUR;
    let Some(mut rig) = Rig::new("law-live", now, "64MiB", "refresh = \"0s\"").await else {
        return;
    };
    let all = data();
    let (mut now, mut written) = (now, now - 30_000);
    rig.write(&all, START - MINUTE, written).await;
    // Negative offsets and the like read data that does not exist yet.
    let more: Vec<&str> = MORE.iter().copied().filter(|t| !t.is_empty()).collect();
    let texts = [KEPT, PASSED, &more].concat();
    let mut dice = Dice(23);
    let window = |dice: &mut Dice| {
        let step = [15_000, 15_000, 60_000, 7_000, 1_500][dice.roll(5) as usize];
        let length = (20 + dice.roll(200)) * step;
        // Some viewers look at the same windows.
        let start = (START + HOUR - length) / step * step + dice.roll(3) * 500;
        (start, length, step)
    };
    let windows: Vec<_> = texts.iter().map(|_| window(&mut dice)).collect();
    for tick in 0..TICKS {
        // Samples come up to a minute late.
        let passed = 1_000 * (1 + dice.roll(30));
        now += passed;
        rig.clock.pass(passed as u64);
        let to = (now - dice.roll(60_000)).max(written);
        rig.write(&all, written, to).await;
        written = to;
        for n in 0..6 {
            let at = ((tick * 3 + n) % texts.len() as i64) as usize;
            let (start, length, step) = windows[at];
            // As Grafana does it: both ends on the grid; and beyond, into the future.
            let slid = (now - start - length) / step * step;
            let ahead = [0, 0, 0, step, 6 * MINUTE][dice.roll(5) as usize];
            let window = Window {
                start: start + slid,
                end: start + slid + length + ahead,
                step,
            };
            let ask = Ask::range(texts[at], window, &mut dice);
            rig.compare(&ask, false).await;
            let at = [window.start, now, window.end, now - 2 * MINUTE][dice.roll(4) as usize];
            let (text, at) = (texts[pick(&mut dice, texts.len())], time(at, &mut dice));
            let instant = Ask::get("query", &[("query", text), ("time", &at)]);
            rig.compare(&instant, false).await;
        }
    }
    println!("answers: {:?}", rig.kinds);
    assert!(rig.wrong.is_empty(), "{}", rig.wrong);
    for (kind, least) in [("fwd=partial", 200), ("fwd=miss", 60), ("fwd=bypass", 20)] {
        assert!(
            rig.kind(kind) >= least || rig.kind("fwd=stale") >= least,
            "{kind}: {:?}",
            rig.kinds
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instant_queries_are_answered_as_the_origin_does_for_the_time_that_they_state() {
    instants_lists_and_errors("law-instant", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_instant_queries_are_answered_as_the_origin_does_for_the_time_asked_for() {
    instants_lists_and_errors("law-exact", true).await;
}

/// Sends instant queries of all kinds, lists and invalid queries while data comes in.
async fn instants_lists_and_errors(name: &'static str, exact: bool) {
    const TICKS: i64 = 60;
    let alignment = if exact { "exact" } else { "refresh" };
    let more = format!("instant_alignment = \"{alignment}\"");
    // After the start of a host whose samples lists would not contain yet.
    let mut now = START + HOUR + 3 * MINUTE;
    let Some(mut rig) = Rig::new(name, now, "64MiB", &more).await else {
        return;
    };
    let all = data();
    rig.write(&all, START - MINUTE, now + 1).await;
    let mut written = now + 1;
    let mistakes = [
        "sum(g",
        "rate(g)",
        "no_such_function(g)",
        "g * on (host) build",
        "",
    ];
    let others = [
        "g offset 1m",
        "g offset 90m",
        "g @ 1700003000",
        "g @ end()",
        "max_over_time(g[10m:1m] offset 1m)",
        "nh",
        "g[2m]",
        "\"text\"",
        "time()",
        "timestamp(g)",
        "none",
        "  sum  by (host)(g)  # a comment",
    ];
    let texts = [KEPT, &mistakes, &others].concat();
    let (mut dice, mut hits, mut errors, mut wrong) = (Dice(31), 0, 0, String::new());
    for _ in 0..TICKS {
        let passed = 500 * (1 + dice.roll(12));
        now += passed;
        rig.clock.pass(passed as u64);
        // Nothing comes late, so that values do not change.
        rig.write(&all, written, now + 1).await;
        written = now + 1;
        for _ in 0..12 {
            let text = texts[pick(&mut dice, texts.len())];
            if dice.roll(4) == 0 {
                let end = now / 10_000 * 10_000;
                let window = Window {
                    start: end - 10 * MINUTE,
                    end,
                    step: 10_000,
                };
                rig.face(&Ask::range(text, window, &mut dice)).await;
            }
            let back = [0, dice.roll(3_000), dice.roll(100_000), dice.roll(HOUR)];
            let at = now - back[dice.roll(4) as usize];
            let mut ask = Ask::get("query", &[("query", text), ("time", &time(at, &mut dice))]);
            ask.post = dice.roll(2) == 0;
            let mut reply = rig.face(&ask).await;
            if dice.roll(3) == 0 {
                // Repeating the request compares what is cached, errors included.
                reply = rig.face(&ask).await;
            }
            let said = reply.header("cache-status").to_owned();
            hits += usize::from(said.contains("; hit"));
            errors += usize::from(reply.status != 200 && said.contains("; hit"));
            let settled = at <= now - 2 * MINUTE;
            let due = if settled || exact {
                at
            } else {
                at / 10_000 * 10_000
            };
            let first = &reply.json()["data"]["result"][0];
            let stated = match (&first["value"], &first["histogram"]) {
                (value, _) if !value.is_null() => value[0].as_f64(),
                (_, histogram) => histogram[0].as_f64(),
            };
            if let Some(stated) = stated {
                assert_eq!(
                    (stated * 1000.0).round() as i64,
                    due,
                    "{text} at {at}, now {now}"
                );
            }
            // Positions in an error refer to the text that was sent on.
            let sent = heliostat::promql::canonical(text);
            let due = format!("{}.{:03}", due / 1000, due % 1000);
            let direct = rig
                .direct(&Ask::get("query", &[("query", &sent), ("time", &due)]))
                .await;
            let same = unordered(&reply.text) == unordered(&direct.text);
            if reply.status != direct.status || !same {
                writeln!(
                    wrong,
                    "{text} at {due}: {said}\n  {}\n  {}",
                    reply.text, direct.text
                )
                .unwrap();
            }
        }
        // Names, values and series of a sliding window.
        let (start, end) = ((now - 30 * MINUTE) / 1000, now / 1000);
        let (start, end) = (start.to_string(), end.to_string());
        let window = [("start", &start[..]), ("end", &end[..])];
        let selector = [("match[]", "g"), ("match[]", "{__name__=\"nh\"}")];
        for (path, params) in [
            ("labels", window.to_vec()),
            ("label/host/values", window.to_vec()),
            ("series", [&window[..], &selector].concat()),
            ("series", [&window[..], &[("match[]", "{")]].concat()),
        ] {
            let mut list = Ask::get(path, &params);
            list.post = path != "label/host/values" && dice.roll(2) == 0;
            rig.compare(&list, false).await;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(rig.wrong.is_empty(), "{}", rig.wrong);
    assert!(hits >= 100, "{hits} hits");
    assert!(errors >= 5, "{errors} errors were remembered");
}
