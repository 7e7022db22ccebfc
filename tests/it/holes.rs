//! `replicas = "fill"`: two stores with the same targets, each with its own gaps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::prometheus::Store;
use crate::prometheus_api::{Dice, MINUTE, START};
use crate::remote_write::{Sample, Written, fresh, write};
use crate::scripted::{Answer, Fault, Scripted, Seen};
use crate::shared::param;
use crate::support::{Reply, Server, TestClock};

const INTERVAL: i64 = 15_000;
const HOUR: i64 = 60 * MINUTE;

/// Times without samples, half-open.
type Holes = Arc<Vec<(i64, i64)>>;

fn within(holes: &[(i64, i64)], t: i64) -> bool {
    holes.iter().any(|(from, to)| (*from..*to).contains(&t))
}

/// A store with the series `up`, whose value is `t` at every time outside its gaps, and samples
/// that come `shift` after each multiple of the interval.
struct Replica {
    scripted: Scripted,
    away: Arc<AtomicBool>,
}

impl Replica {
    async fn start(clock: Arc<TestClock>, name: &'static str, holes: &Holes, shift: i64) -> Self {
        let (holes, away) = (holes.clone(), Arc::new(AtomicBool::new(false)));
        let is_away = away.clone();
        let scripted =
            Scripted::start(clock, move |_, seen| match is_away.load(Ordering::SeqCst) {
                true => Answer {
                    fault: Fault::Close,
                    ..Answer::default()
                },
                false => answer(seen, name, &holes, shift),
            })
            .await;
        Self { scripted, away }
    }

    /// Calls so far but for those that ask only whether it is well.
    fn calls(&self) -> usize {
        let seen = self.scripted.seen();
        let asked = seen
            .iter()
            .filter(|seen| param(seen, "query").as_deref() != Some(HEALTH));
        asked.count()
    }

    fn leave(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

/// The query of a trial.
const HEALTH: &str = "vector(1)";

fn answer(seen: &Seen, name: &str, holes: &[(i64, i64)], shift: i64) -> Answer {
    let millis = |name: &str| {
        let text = param(seen, name)?;
        Some((text.parse::<f64>().unwrap() * 1000.0).round() as i64)
    };
    let metric = json!({ "__name__": "up", "replica": name });
    let sample = |t: i64| json!([t as f64 / 1000.0, format!("{}", t / 1000)]);
    if seen.path.starts_with("/api/v1/query_range") {
        let (start, end) = (millis("start").unwrap(), millis("end").unwrap());
        let times = (start..=end).step_by(millis("step").unwrap() as usize);
        let values: Vec<_> = times.filter(|t| !within(holes, *t)).map(sample).collect();
        let result = match values.is_empty() {
            true => json!([]),
            false => json!([{ "metric": metric, "values": values }]),
        };
        return success(&json!({ "resultType": "matrix", "result": result }));
    }
    let query = param(seen, "query").unwrap();
    if query == HEALTH {
        return success(&json!({ "resultType": "vector", "result": [] }));
    }
    let time = millis("time").unwrap();
    if let Some((_, range)) = query.split_once('[') {
        let range = humantime::parse_duration(range.trim_end_matches(']')).unwrap();
        let start = time - range.as_millis() as i64;
        let first = (start - shift).div_euclid(INTERVAL) * INTERVAL + shift;
        let times = (first..=time).step_by(INTERVAL as usize);
        let times = times.filter(|t| *t >= start && !within(holes, *t));
        let values: Vec<_> = times.map(sample).collect();
        let result = match values.is_empty() {
            true => json!([]),
            false => json!([{ "metric": metric, "values": values }]),
        };
        return success(&json!({ "resultType": "matrix", "result": result }));
    }
    let result = match within(holes, time) {
        true => json!([]),
        false => json!([{ "metric": metric, "value": sample(time) }]),
    };
    success(&json!({ "resultType": "vector", "result": result }))
}

fn success(data: &Value) -> Answer {
    Answer::json(json!({ "status": "success", "data": data }))
}

struct Pair {
    replicas: [Replica; 2],
    server: Server,
    clock: Arc<TestClock>,
    name: &'static str,
}

/// The half-hour holes of two replicas.
fn half_hours() -> [Holes; 2] {
    let hole = |from: i64| Arc::new(vec![(START + from * MINUTE, START + (from + 30) * MINUTE)]);
    [hole(31), hole(91)]
}

impl Pair {
    async fn start(name: &'static str, holes: [Holes; 2], more: &str) -> Self {
        let clock = TestClock::at(START + 4 * HOUR);
        let [a, b] = holes;
        let replicas = [
            Replica::start(clock.clone(), "a", &a, 0).await,
            Replica::start(clock.clone(), "b", &b, 7_000).await,
        ];
        let urls = [&replicas[0].scripted.url, &replicas[1].scripted.url];
        let server = Server::start_at(&config(name, urls, more), clock.clone()).await;
        Self {
            replicas,
            server,
            clock,
            name,
        }
    }

    /// Returns the times, in milliseconds, of the one series in the answer to a range query.
    async fn range(&self, start: i64, end: i64, step: i64) -> (Reply, Vec<i64>) {
        let (start, end) = (start as f64 / 1000.0, end as f64 / 1000.0);
        let step = step as f64 / 1000.0;
        let path = format!("/api/v1/query_range?query=up&start={start}&end={end}&step={step}");
        let reply = self.server.get(&path).await;
        let times = times(&reply);
        (reply, times)
    }

    async fn instant(&self, query: &str, time: i64) -> Reply {
        let time = time as f64 / 1000.0;
        let path = format!("/api/v1/query?query={query}&time={time}");
        self.server.get(&path).await
    }

    /// Returns the points of a query of the mirror API.
    async fn points(&self, field: &str, from: i64, to: i64) -> Vec<Vec<f64>> {
        mirror(&self.server, self.name, field, (from, to), None).await
    }

    fn calls(&self) -> (usize, usize) {
        (self.replicas[0].calls(), self.replicas[1].calls())
    }

    async fn fills(&self, outcome: &str) -> f64 {
        let labels = format!("upstream=\"{}\",outcome=\"{outcome}\"", self.name);
        let series = format!("heliostat_replica_fills_total{{{labels}}}");
        self.server.metric(&series).await
    }
}

fn config(name: &str, urls: [&String; 2], more: &str) -> String {
    format!(
        "[[upstream]]\nname = {name:?}\nkind = \"prometheus\"\ndefault = true\nurls = {urls:?}\n\
         replicas = \"fill\"\nreplica_labels = [\"replica\"]\nretries = 0\nrefresh_ahead = false\n\
         recheck = \"0s\"\nbreaker = {{ failures = 100000, open = \"1ms\" }}\n{more}"
    )
}

/// Returns the times of the one series of an answer, which has no label of a replica.
fn times(reply: &Reply) -> Vec<i64> {
    assert_eq!(reply.status, 200, "{}", reply.text);
    let answer = reply.json();
    let result = answer["data"]["result"].as_array().unwrap();
    assert!(result.len() <= 1, "{}", reply.text);
    let Some(series) = result.first() else {
        return Vec::new();
    };
    assert_eq!(series["metric"], json!({ "__name__": "up" }));
    let single = [series["value"].clone()];
    let samples = series["values"].as_array().map_or(&single[..], |v| v);
    let time = |sample: &Value| {
        let seconds = sample[0].as_f64().unwrap();
        let value: f64 = sample[1].as_str().unwrap().parse().unwrap();
        assert!((value - seconds).abs() < 1.0, "{sample}");
        (seconds * 1000.0).round() as i64
    };
    samples.iter().map(time).collect()
}

async fn mirror(
    server: &Server,
    upstream: &str,
    field: &str,
    (from, to): (i64, i64),
    aggregation: Option<(&str, i64)>,
) -> Vec<Vec<f64>> {
    let condition = |key: &str, value: &str| {
        json!({
            "_type": "EqualityCondition", "key": key,
            "value": { "_type": "StringValue", "value": value },
        })
    };
    let (name, host) = match field.split_once(' ') {
        Some((name, host)) => (name, vec![condition("host", host)]),
        None => (field, Vec::new()),
    };
    let (key, name) = name.split_once(':').unwrap();
    let conditions = [vec![condition(key, name)], host].concat();
    let mut query = json!({
        "_type": "MetricsQuery", "startTime": from, "endTime": to,
        "conditions": conditions,
    });
    if let Some((method, size)) = aggregation {
        query["aggregation"] =
            json!({ "method": method, "bucketSizeMillis": size, "_type": "Aggregation" });
    }
    let body = json!({ "connectionDetails": { "upstream": upstream }, "query": query });
    server.post("/api/metric", &body).await.points()
}

/// Asserts that `times` are those of one server's samples in `from..to`: none missing, none twice.
fn scraped(times: &[i64], from: i64, to: i64, jitter: i64) {
    let edges = [from - INTERVAL / 2, to + INTERVAL / 2];
    let all: Vec<i64> = [edges[0]]
        .into_iter()
        .chain(times.iter().copied())
        .chain([edges[1]])
        .collect();
    for (at, pair) in all.windows(2).enumerate() {
        let apart = pair[1] - pair[0];
        let least = if at == 0 || at + 2 == all.len() {
            0
        } else {
            INTERVAL / 2 - jitter
        };
        assert!(
            (least..=2 * INTERVAL).contains(&apart),
            "{apart} at {}",
            pair[0]
        );
    }
    let due = (to - from) / INTERVAL;
    assert!(
        (times.len() as i64).abs_diff(due) <= 2,
        "{} of {due}",
        times.len()
    );
}

/// Asserts that an answer says whether another replica filled a gap in it just now.
fn says_filled(reply: &Reply, filled: bool) {
    for header in ["cache-status", "server-timing"] {
        let said = reply.header(header);
        assert_eq!(
            said.contains("another replica filled a gap"),
            filled,
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_gap_costs_a_call_and_nothing_else_does() {
    let pair = Pair::start("holes-calls", half_hours(), "").await;
    let minutes = |from: i64, to: i64| (START + from * MINUTE, START + to * MINUTE);
    let every = |(start, end): (i64, i64)| -> Vec<i64> { (start..=end).step_by(30_000).collect() };
    // Neither has a gap, the first has one, the second has one.
    for (window, calls) in [
        (minutes(0, 29), (1, 0)),
        (minutes(30, 75), (1, 1)),
        (minutes(80, 130), (1, 0)),
    ] {
        for (what, calls) in [("fwd=miss; stored", calls), ("hit", (0, 0))] {
            let before = pair.calls();
            let (reply, times) = pair.range(window.0, window.1, 30_000).await;
            assert_eq!(times, every(window));
            let status = reply.header("cache-status");
            assert!(status.contains(what), "{status}");
            says_filled(&reply, calls.1 == 1);
            let after = pair.calls();
            assert_eq!(
                (after.0 - before.0, after.1 - before.1),
                calls,
                "{window:?}"
            );
        }
        pair.clock.pass(60_000);
    }
    assert_eq!(pair.fills("answered").await, 1.0);
    let filled = "heliostat_filled_points_total{upstream=\"holes-calls\"}";
    assert_eq!(pair.server.metric(filled).await, 60.0);
}

#[tokio::test]
async fn a_gap_of_all_is_asked_of_each_once() {
    let hole = Arc::new(vec![(START + 10 * MINUTE, START + 20 * MINUTE)]);
    let pair = Pair::start("holes-both", [hole.clone(), hole], "").await;
    for _ in 0..3 {
        let (_, times) = pair.range(START, START + 30 * MINUTE, 60_000).await;
        assert_eq!(times.len(), 21);
        pair.clock.pass(3_600_000);
    }
    assert_eq!(pair.calls(), (1, 1));
    // The future is no gap.
    let now = START + 7 * HOUR;
    let (_, times) = pair.range(now - 10 * MINUTE, now, 60_000).await;
    assert_eq!((times.len(), pair.calls()), (11, (2, 1)));
    let (_, times) = pair.range(now - 10 * MINUTE, now + MINUTE, 90_000).await;
    assert!(times.len() >= 6);
    assert_eq!(pair.calls(), (3, 1));
}

#[tokio::test]
async fn what_could_not_be_compared_does_not_settle() {
    let pair = Pair::start("holes-away", half_hours(), "").await;
    let (start, end) = (START + 30 * MINUTE, START + 75 * MINUTE);
    pair.replicas[1].leave(true);
    let lacking = pair.range(start, end, 60_000).await.1;
    assert_eq!(lacking.len(), 16);
    assert_eq!(pair.range(start, end, 60_000).await.1, lacking);
    assert_eq!(pair.calls(), (1, 1), "it is kept for a refresh");
    assert_eq!(pair.fills("unavailable").await, 1.0);
    pair.replicas[1].leave(false);
    pair.clock.pass(10_001);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(pair.range(start, end, 60_000).await.1.len(), 46);
    pair.clock.pass(10_001);
    let calls = pair.calls();
    assert_eq!(pair.range(start, end, 60_000).await.1.len(), 46);
    assert_eq!(pair.calls(), calls, "now it is settled");
    // The same of an instant query and of the mirror API.
    pair.replicas[1].leave(true);
    let at = START + 40 * MINUTE + 7_000;
    assert!(times(&pair.instant("up", at).await).is_empty());
    assert_eq!(pair.points("__gauge__:up", start, end).await.len(), 60);
    pair.replicas[1].leave(false);
    pair.clock.pass(10_001);
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..2 {
        assert_eq!(times(&pair.instant("up", at).await), [at]);
        let points = pair.points("__gauge__:up", start, end).await;
        let times: Vec<i64> = points.iter().map(|p| p[1] as i64).collect();
        scraped(&times, start, end, 0);
        pair.clock.pass(10_001);
    }
}

#[tokio::test]
async fn instants_and_ranges_of_samples_are_filled() {
    let pair = Pair::start("holes-instant", half_hours(), "").await;
    let at = START + 45 * MINUTE;
    for filled in [true, false] {
        let reply = pair.instant("up", at).await;
        assert_eq!(times(&reply), [at]);
        says_filled(&reply, filled);
    }
    assert_eq!(pair.calls(), (1, 1));
    let reply = pair.instant("up[50m]", START + 75 * MINUTE).await;
    says_filled(&reply, true);
    let samples = times(&reply);
    scraped(&samples, START + 25 * MINUTE, START + 75 * MINUTE, 0);
    assert_eq!(pair.calls(), (2, 2));
    // Complete answers cost one call.
    assert_eq!(
        times(&pair.instant("up", START + 5 * MINUTE).await).len(),
        1
    );
    assert_eq!(
        times(&pair.instant("up[5m]", START + 9 * MINUTE).await).len(),
        20
    );
    assert_eq!(pair.calls(), (4, 2));
    let counter = pair
        .points("__counter__:up", START + 20 * MINUTE, START + 130 * MINUTE)
        .await;
    let times: Vec<i64> = counter.iter().map(|p| p[1] as i64).collect();
    scraped(&times, START + 20 * MINUTE, START + 130 * MINUTE, 0);
    // Values are whole seconds, so the rate shows samples that lie between seconds.
    assert!(
        counter.iter().all(|p| (p[0] - 1.0).abs() < 0.1),
        "{counter:?}"
    );
}

/// The law, with replicas that have gaps: once both can be reached, each answer is their union.
#[tokio::test]
async fn whatever_was_asked_and_whoever_was_away_the_answer_is_the_union() {
    let mut dice = Dice(77);
    for round in 0..12 {
        let mut holes = || -> Holes {
            let hole = |dice: &mut Dice| {
                let from = START + dice.roll(3 * HOUR);
                (from, from + dice.roll(HOUR))
            };
            let many = dice.roll(4);
            Arc::new((0..many).map(|_| hole(&mut dice)).collect())
        };
        let both = [holes(), holes()];
        let name: &'static str = Box::leak(format!("holes-law-{round}").into_boxed_str());
        let pair = Pair::start(name, both.clone(), "").await;
        let mut away = None;
        for _ in 0..40 {
            if dice.roll(4) == 0 {
                away = [None, None, Some(0), Some(1)][dice.roll(4) as usize];
                for (at, replica) in pair.replicas.iter().enumerate() {
                    replica.leave(away == Some(at));
                }
                pair.clock.pass(dice.roll(20_000) as u64);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            let step = [10_000, 15_000, 60_000][dice.roll(3) as usize];
            let start = (START + dice.roll(3 * HOUR)) / step * step;
            let end = start + step * (1 + dice.roll(120));
            let times: BTreeSet<i64> = match dice.roll(3) {
                0 => times(&pair.instant("up", start).await)
                    .into_iter()
                    .collect(),
                _ => pair.range(start, end, step).await.1.into_iter().collect(),
            };
            let all = (start..=end).step_by(step as usize);
            for t in all.filter(|t| *t == start || times.len() > 1) {
                let had = [0, 1].map(|at| !within(&both[at], t));
                let least = match away {
                    Some(at) => had[1 - at] && !had[at],
                    None => false,
                };
                assert!(!times.contains(&t) || had[0] || had[1], "invented {t}");
                assert!(times.contains(&t) || !least, "lost {t}");
            }
            pair.clock.pass(dice.roll(3_000) as u64);
        }
        pair.replicas.iter().for_each(|r| r.leave(false));
        pair.clock.pass(10_001);
        tokio::time::sleep(Duration::from_millis(20)).await;
        for again in [false, true] {
            let calls = pair.calls();
            for step in [10_000, 15_000, 60_000] {
                let (start, end) = (START / step * step, START + 5 * HOUR / 2);
                let times = pair.range(start, end, step).await.1;
                let due: Vec<i64> = (start..=end)
                    .step_by(step as usize)
                    .filter(|t| !within(&both[0], *t) || !within(&both[1], *t))
                    .collect();
                assert_eq!(times, due, "{both:?}");
            }
            let (from, to) = (START, START + 5 * HOUR / 2);
            let points = pair.points("__gauge__:up", from, to).await;
            let times: Vec<i64> = points.iter().map(|p| p[1] as i64).collect();
            for pair in times.windows(2) {
                assert!(
                    pair[1] - pair[0] >= INTERVAL / 2,
                    "side by side at {pair:?}"
                );
            }
            let lacking = |t: &i64| {
                let near = times
                    .iter()
                    .any(|have| have.abs_diff(*t) <= 2 * INTERVAL as u64);
                let (a, b) = (within(&both[0], *t), within(&both[1], *t));
                !near && (!a || !b)
            };
            let lost = (from..to).step_by(1_000).find(lacking);
            assert_eq!(lost, None, "{both:?}");
            assert!(!again || pair.calls() == calls, "all of it had settled");
        }
    }
}

/// The series of both stores, `shift` after each multiple of the interval, without those in `hole`.
fn fleet(shift: i64, hole: (i64, i64)) -> Vec<Written> {
    let times = || {
        let all = (START - 10 * MINUTE..START + 3 * HOUR).step_by(INTERVAL as usize);
        all.map(move |t| t + shift)
            .filter(move |t| !within(&[hole], *t))
    };
    let mut all = Vec::new();
    for (at, host) in ["a", "b", "c"].into_iter().enumerate() {
        let labels = |name: &str| {
            vec![
                ("__name__", name.to_owned()),
                ("host", host.to_owned()),
                ("replica", shift.to_string()),
            ]
        };
        all.push(Written {
            labels: labels("g"),
            samples: times().map(|t| (t, Sample::Float(at as f64))).collect(),
        });
        let counted = |t: i64| Sample::Float((t - START + HOUR) as f64 / 1000.0);
        all.push(Written {
            labels: labels("c_total"),
            samples: times().map(|t| (t, counted(t))).collect(),
        });
    }
    all
}

/// Two real stores, and Heliostat in front of them.
struct Real {
    server: Server,
    clock: Arc<TestClock>,
    name: String,
}

impl Real {
    async fn calls(&self) -> f64 {
        let mut all = 0.0;
        for name in [self.name.clone(), format!("{}-there", self.name)] {
            let series = |outcome| {
                format!(
                    "heliostat_upstream_requests_total{{upstream=\"{name}\",outcome=\"{outcome}\"}}"
                )
            };
            for outcome in ["ok", "unreachable"] {
                all += self.server.metric(&series(outcome)).await;
            }
        }
        all
    }

    /// Returns the values of each host at each time.
    async fn range(&self, query: &str, from: i64, to: i64) -> BTreeMap<String, Vec<(i64, String)>> {
        let query: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let (from, to) = (from / 1000, to / 1000);
        let path = format!("/api/v1/query_range?query={query}&start={from}&end={to}&step=30");
        let reply = self.server.get(&path).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let answer = reply.json();
        let mut all = BTreeMap::new();
        for series in answer["data"]["result"].as_array().unwrap() {
            assert!(series["metric"].get("replica").is_none(), "{series}");
            let host = series["metric"]["host"].as_str().unwrap_or("").to_owned();
            let values = series["values"].as_array().unwrap().iter();
            let value = |v: &Value| (v[0].as_i64().unwrap(), v[1].as_str().unwrap().to_owned());
            let before = all.insert(host, values.map(value).collect());
            assert!(before.is_none(), "two series of one host");
        }
        all
    }

    /// Checks both APIs over all three hours.
    async fn is_union(&self) {
        let (from, to) = (START, START + 3 * HOUR - MINUTE);
        let due: Vec<i64> = (from / 1000..=to / 1000).step_by(30).collect();
        for (query, hosts) in [("g", 3), ("sum(g)", 1), ("count by (host) (g)", 3)] {
            let all = self.range(query, from, to).await;
            assert_eq!(all.len(), hosts, "{query}");
            for (host, values) in &all {
                let times: Vec<i64> = values.iter().map(|v| v.0).collect();
                assert_eq!(times, due, "{query} of {host}");
                assert!(
                    values.iter().all(|v| v.1 == values[0].1),
                    "{query} of {host}"
                );
            }
        }
        for t in (from..to).step_by(20 * MINUTE as usize) {
            let reply = self
                .server
                .get(&format!("/api/v1/query?query=g&time={}", t / 1000))
                .await;
            assert_eq!(
                reply.json()["data"]["result"].as_array().unwrap().len(),
                3,
                "{}",
                reply.text
            );
        }
        for field in ["__gauge__:g b", "__counter__:c_total a"] {
            let points = mirror(&self.server, &self.name, field, (from, to), None).await;
            let times: Vec<i64> = points.iter().map(|p| p[1] as i64).collect();
            scraped(&times, from, to, 0);
            assert!(points.iter().all(|p| (p[0] - 1.0).abs() < 1e-9), "{field}");
        }
        // Aggregated by Heliostat, and by the store.
        for upstream in [self.name.clone(), format!("{}-there", self.name)] {
            let size = 5 * MINUTE;
            let (from, to) = (from / size * size + size, to / size * size);
            let count = Some(("EVENT_COUNT", size));
            let counts = mirror(&self.server, &upstream, "__gauge__:g b", (from, to), count).await;
            assert_eq!(counts.len() as i64, (to - from) / size, "{upstream}");
            for bucket in &counts {
                assert!((bucket[0] - 20.0).abs() <= 1.0, "{upstream}: {bucket:?}");
            }
            let most = mirror(
                &self.server,
                &upstream,
                "__gauge__:g b",
                (from, to),
                Some(("MAX", size)),
            )
            .await;
            assert_eq!(most.len(), counts.len());
            assert!(most.iter().all(|bucket| bucket[0] == 1.0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_real_stores_are_filled_from_each_other_in_whatever_order_they_were_killed() {
    let (Some(a), Some(b)) = (fresh().await, fresh().await) else {
        return;
    };
    let mut stores: [Store; 2] = [a, b];
    let holes = half_hours().map(|holes| holes[0]);
    for (store, (shift, hole)) in stores.iter().zip([0, 7_000].into_iter().zip(holes)) {
        let all = fleet(shift, hole);
        for from in (START - 10 * MINUTE..START + 3 * HOUR).step_by(10 * MINUTE as usize) {
            write(store, &all, from, from + 10 * MINUTE).await;
        }
    }
    for order in [[0, 1], [1, 0]] {
        let name = format!("holes-real-{}", order[0]);
        let urls = [&stores[0].url, &stores[1].url];
        let there = format!("{name}-there");
        let both = config(&name, urls, "interval = \"15s\"\n")
            + &config(&there, urls, "aggregate = \"upstream\"\n").replace("default = true\n", "");
        let clock = TestClock::at(START + 4 * HOUR);
        let real = Real {
            server: Server::start_at(&both, clock.clone()).await,
            clock,
            name,
        };
        for killed in order {
            stores[killed].kill();
            // Some of it is requested while one is down: times of both gaps, and others.
            for from in [20, 80, 130] {
                let (from, to) = (START + from * MINUTE, START + (from + 45) * MINUTE);
                real.range("g", from, to).await;
                mirror(&real.server, &real.name, "__gauge__:g b", (from, to), None).await;
                let count = Some(("EVENT_COUNT", 5 * MINUTE));
                mirror(&real.server, &there, "__gauge__:g b", (from, to), count).await;
            }
            stores[killed].start_again().await;
            real.clock.pass(10_001);
        }
        real.is_union().await;
        real.clock.pass(3_600_000);
        let calls = real.calls().await;
        real.is_union().await;
        assert_eq!(real.calls().await, calls, "all of it had settled");
    }
}
