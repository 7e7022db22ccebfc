//! The pure parts of the Prometheus API against a real Prometheus: values that are fetched in
//! pieces and joined are byte for byte the answer to the whole query.

use std::fmt::Write as _;

use bytes::Bytes;
use heliostat::front::prometheus_status;
use heliostat::model::{RangeSet, Step, TimeRange};
use heliostat::promql::{Analysis, classify};
use heliostat::wire::encoding::Encoding;
use heliostat::wire::prometheus::{
    Extras, InstantQuery, Params, RangeQuery, Series, merge, read_matrix, thin, write_error,
    write_matrix,
};
use url::form_urlencoded;

use crate::prometheus::{Store, noise};
use crate::remote_write::{STALE, Sample, Written, fresh, write};

pub(crate) const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const INTERVAL: i64 = 15_000;
pub(crate) const START: i64 = 1_700_000_000_000;
pub(crate) const LENGTH: i64 = 3 * HOUR;

/// Queries whose answers may be cached; each is sent both in pieces and as a whole.
pub(crate) const KEPT: &[&str] = &[
    "g",
    "g{host=\"b\"}",
    "none",
    "{__name__=~\"g|st\"}",
    "g offset 10m",
    "g offset 7m + g",
    "-g",
    "g * 2 ^ 0.5",
    "g > 20",
    "g > bool 20",
    "st",
    "count(st)",
    "odd",
    "wild",
    "-wild / 0",
    "sum(wild)",
    "rate(c_total[5m])",
    "irate(c_total[2m])",
    "increase(c_total[1h])",
    "delta(g[10m])",
    "deriv(g[10m])",
    "resets(c_total[30m])",
    "changes(st[10m])",
    "sum by (host) (rate(c_total[5m]))",
    "sum without (host) (rate(c_total[5m] offset 3m))",
    "avg(g)",
    "stddev(g)",
    "quantile(0.9, g)",
    "count_values(\"v\", round(g, 20))",
    "topk(1, g)",
    "bottomk by (code) (1, rate(c_total[5m]))",
    "sort(g)",
    "sort_desc(sum by (host) (c_total))",
    "histogram_quantile(0.9, sum by (le) (rate(h_bucket[5m])))",
    "histogram_quantile(0.5, rate(h_bucket[5m]))",
    "sum(rate(h_bucket{le=\"1\"}[5m])) / sum(rate(h_bucket{le=\"+Inf\"}[5m]))",
    "nh",
    "rate(nh[5m])",
    "histogram_quantile(0.9, rate(nh[5m]))",
    "{__name__=~\"nh|g\"}",
    "absent(none{a=\"b\"})",
    "absent(st{host=\"a\"})",
    "absent_over_time(st[90s])",
    "max_over_time(g[20m])",
    "avg_over_time(g[7m])",
    "quantile_over_time(0.3, g[20m])",
    "last_over_time(st[20m])",
    "present_over_time(st[3m])",
    "max_over_time(rate(c_total[5m])[30m:1m])",
    "avg_over_time(g[30m:])",
    "sum_over_time((g > 10)[10m:37s] offset 11m)",
    "max_over_time(vector(time())[10m:1m])",
    "label_replace(g, \"to\", \"x-$1\", \"host\", \"(.*)\")",
    "label_join(c_total, \"both\", \"/\", \"host\", \"code\")",
    "c_total / on (host) group_left (version) build",
    "g and on (host) c_total",
    "g or st",
    "g unless st",
    "vector(time())",
    "time()",
    "1.5",
    "scalar(g{host=\"a\"})",
    "clamp(g, 0, scalar(g{host=\"b\"}))",
    "timestamp(g)",
    "time() - timestamp(st)",
    "minute()",
    "hour(g)",
    "predict_linear(g[10m], 600)",
    "old_name or new_name",
    "count by (__name__) ({__name__=~\".*_name\"})",
];

/// Queries whose answers may not be cached: joined from pieces, they differ.
pub(crate) const PASSED: &[&str] = &[
    "g @ end()",
    "g - g @ start()",
    "max_over_time(g[5m:1m] @ end())",
    "max_over_time({__name__=~\".*_name\"}[1m])",
    "-{__name__=~\".*_name\"}",
];

pub(crate) fn data() -> Vec<Written> {
    let mut all = Vec::new();
    let mut add = |labels: &[(&'static str, &str)], samples: Vec<(i64, Sample)>| {
        let mut labels: Vec<_> = labels.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        labels.sort();
        all.push(Written { labels, samples });
    };
    let times = |offset: i64| (0..LENGTH / INTERVAL).map(move |n| START + n * INTERVAL + offset);
    let floats = |offset: i64, value: &dyn Fn(i64) -> Option<f64>| -> Vec<(i64, Sample)> {
        let each = times(offset).filter_map(|t| Some((t, Sample::Float(value(t)?))));
        each.collect()
    };
    let since = |t: i64| t - START;
    let gone = |t: i64, from: i64, len: i64| (from..from + len).contains(&(since(t) / MINUTE));
    for (host, offset, from, to) in [("a", 0, 0, 180), ("b", 7_123, 60, 180), ("c", -1, 0, 100)] {
        let value = |t: i64| {
            let held = !gone(t, 40, 4) && !gone(t, 70, 9) && gone(t, from, to - from);
            held.then(|| (noise(t) % 9_000 - 2_000) as f64 / 100.0)
        };
        add(&[("__name__", "g"), ("host", host)], floats(offset, &value));
    }
    for (host, code, offset) in [("a", "200", 0), ("a", "500", 0), ("b", "200", 4_567)] {
        let sum = std::cell::Cell::new(0);
        let value = |t: i64| {
            let n = t / INTERVAL;
            let add = noise(n + offset) % 90;
            sum.set(if n % 173 == 3 { add } else { sum.get() + add });
            (!gone(t, 50, 7)).then(|| f64::from(sum.get() as i32))
        };
        let labels = [("__name__", "c_total"), ("host", host), ("code", code)];
        add(&labels, floats(offset, &value));
    }
    for host in ["a", "b"] {
        for (le, part) in [("0.1", 2), ("1", 5), ("10", 9), ("+Inf", 10)] {
            let sum = std::cell::Cell::new(0);
            let value = |t: i64| {
                sum.set(sum.get() + noise(t / INTERVAL) % 10 * part);
                Some(f64::from(sum.get() as i32))
            };
            let labels = [("__name__", "h_bucket"), ("host", host), ("le", le)];
            add(&labels, floats(0, &value));
        }
    }
    // It ends and comes back, with stale markers.
    for (host, offset) in [("a", 0), ("b", 2_500)] {
        let value = |t: i64| match since(t) / INTERVAL % 23 {
            0..14 => Some((noise(t) % 100) as f64),
            14 => Some(f64::from_bits(STALE)),
            _ => None,
        };
        add(
            &[("__name__", "st"), ("host", host)],
            floats(offset, &value),
        );
    }
    let value = |t: i64| match noise(t) % 6 {
        0 => Some(f64::NAN),
        1 => Some(f64::INFINITY),
        2 => Some(f64::NEG_INFINITY),
        3 => None,
        n => Some(n as f64 * 1e-300),
    };
    add(&[("__name__", "wild")], floats(0, &value));
    let odd = [("__name__", "odd"), ("odd", "\"<é☀\\\n&>\u{2028}")];
    add(&odd, floats(0, &|t| Some(since(t) as f64)));
    add(
        &[("__name__", "odd"), ("Upper", "1")],
        floats(0, &|_| Some(1e21)),
    );
    for (version, from, to) in [("1", 0, 90), ("2", 90, 180)] {
        for host in ["a", "b"] {
            let labels = [("__name__", "build"), ("host", host), ("version", version)];
            add(
                &labels,
                floats(0, &|t| {
                    // A stale marker ends it at once.
                    let stale = (t - START) / INTERVAL == to * MINUTE / INTERVAL;
                    let value = if stale { f64::from_bits(STALE) } else { 1.0 };
                    (stale || gone(t, from, to - from)).then_some(value)
                }),
            );
        }
    }
    for (name, from, to) in [("old_name", 0, 80), ("new_name", 90, 180)] {
        let labels = [("__name__", name), ("host", "a")];
        add(
            &labels,
            floats(0, &|t| gone(t, from, to - from).then_some(3.0)),
        );
    }
    for (host, from) in [("a", 0), ("b", 45)] {
        let each = times(0).filter(|t| since(*t) >= from * MINUTE);
        let samples = each.map(|t| (t, Sample::Histogram((since(t) / 1000) as u64)));
        add(&[("__name__", "nh"), ("host", host)], samples.collect());
    }
    all
}

pub(crate) struct Rig {
    pub(crate) store: Store,
    client: reqwest::Client,
}

impl Rig {
    pub(crate) async fn new() -> Option<Self> {
        let store = fresh().await?;
        let client = heliostat::upstream::Http::builder().build().unwrap();
        let all = data();
        let mut from = START - MINUTE;
        while from < START + LENGTH {
            write(&store, &all, from, from + 10 * MINUTE).await;
            from += 10 * MINUTE;
        }
        Some(Self { store, client })
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("{}/api/v1/{path}", self.store.url);
        let reply = self.client.get(url).send().await.unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    /// Posts a form and returns the answer.
    pub(crate) async fn post(&self, path: &str, pairs: &[(&str, &str)]) -> (u16, String) {
        let mut form = form_urlencoded::Serializer::new(String::new());
        let reply = self
            .client
            .post(format!("{}/api/v1/{path}", self.store.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.extend_pairs(pairs).finish())
            .send()
            .await
            .unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    /// Returns the answer at the times from `start` to before `end`, in the form of a fetch.
    async fn ask(&self, query: &RangeQuery, range: TimeRange) -> (u16, Bytes) {
        let reply = self
            .client
            .post(format!("{}/api/v1/query_range", self.store.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(query.form(range.start(), range.end() - 1))
            .send()
            .await
            .unwrap();
        (reply.status().as_u16(), reply.bytes().await.unwrap())
    }

    async fn fetch(&self, query: &RangeQuery, range: TimeRange) -> Vec<Series> {
        let (status, body) = self.ask(query, range).await;
        assert_eq!(status, 200, "{}: {body:?}", query.query);
        read_matrix(&body, 1000).unwrap().series
    }

    /// Returns the values at the times of `query`, in chunks each of which was fetched in several
    /// pieces, some of them twice.
    async fn chunks(&self, query: &RangeQuery, dice: &mut Dice) -> Vec<Vec<Series>> {
        let step = query.step.millis();
        let n = (query.end - query.start) / step + 1;
        let time = |i: i64| query.start + i * step;
        let mut edges = vec![0, n];
        edges.extend((0..dice.roll(4)).map(|_| dice.roll(n)));
        edges.sort_unstable();
        edges.dedup();
        let mut chunks = Vec::new();
        for edge in edges.windows(2) {
            let span = TimeRange::clamped(time(edge[0]), time(edge[1]));
            let middle = edge[0] + dice.roll(edge[1] - edge[0]);
            let late = TimeRange::clamped(time(middle), time(edge[1]));
            let early = TimeRange::clamped(time(edge[0]), time((middle + 2).min(edge[1])));
            let mut chunk = Vec::new();
            // The later part first, then the earlier one, which overlaps it.
            for piece in [late, early] {
                let new = self.fetch(query, piece).await;
                let later = RangeSet::from(late);
                let news = match piece == late || dice.roll(2) == 0 {
                    true => RangeSet::from(piece),
                    false => later.missing_from(piece),
                };
                chunk = merge(&chunk, &new, &news, &span);
            }
            chunks.push(chunk);
        }
        chunks
    }
}

/// Pseudo-random numbers, the same each time.
pub(crate) struct Dice(pub(crate) i64);

impl Dice {
    /// One of `0..n`.
    pub(crate) fn roll(&mut self, n: i64) -> i64 {
        self.0 += 1;
        noise(self.0) % n.max(1)
    }
}

fn written(chunks: &[Vec<Series>], range: TimeRange) -> String {
    let chunks: Vec<&[Series]> = chunks.iter().map(|c| &c[..]).collect();
    let plain = Encoding::Identity;
    let parts = plain.join(write_matrix(&chunks, &range, &Extras::default(), plain));
    String::from_utf8(parts.concat()).unwrap()
}

fn window(text: &str, dice: &mut Dice) -> RangeQuery {
    let step = [5_000, 15_000, 37_000, 60_000, 61_500, 300_001][dice.roll(6) as usize];
    let start = START - 20 * MINUTE + dice.roll(LENGTH * 3 / 4);
    let steps = (20 + dice.roll(350)).min((START + LENGTH + 20 * MINUTE - start) / step);
    let mut url = form_urlencoded::Serializer::new(String::new());
    url.append_pair("query", text);
    let url = format!(
        "{}&start={}.{:03}&end={}.{:03}&step={step}ms",
        url.finish(),
        start / 1000,
        start % 1000,
        (start + steps * step) / 1000,
        (start + steps * step) % 1000,
    );
    RangeQuery::read(&mut params(&url)).unwrap()
}

/// The parameters of `url`, whatever their names.
fn params(url: &str) -> Params {
    Params::read(Some(url), None, |_| true).unwrap()
}

/// Returns where two texts differ, for a message.
pub(crate) fn differ(a: &str, b: &str) -> Option<String> {
    if a == b {
        return None;
    }
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let near = |s: &str| {
        let bytes = &s.as_bytes()[same.saturating_sub(80)..s.len().min(same + 80)];
        String::from_utf8_lossy(bytes).into_owned()
    };
    Some(format!("\n  pieces {}\n  direct {}", near(a), near(b)))
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_make_the_answer() {
    let Some(rig) = Rig::new().await else { return };
    let (mut dice, mut wrong) = (Dice(7), String::new());
    for text in KEPT {
        assert!(
            matches!(classify(text), Analysis::PerInstant { .. }),
            "{text} passes through"
        );
        let mut points = 0;
        for round in 0..4 {
            let query = window(text, &mut dice);
            let chunks = rig.chunks(&query, &mut dice).await;
            let whole = TimeRange::clamped(query.start, query.end + 1);
            let direct = rig.ask(&query, whole).await.1;
            points += direct.iter().filter(|b| **b == b'[').count();
            let mut check = |what: &str, got: &str, direct: &[u8]| {
                if let Some(parted) = differ(got, &String::from_utf8_lossy(direct)) {
                    writeln!(wrong, "{text}, {round}, {what}: {parted}").unwrap();
                }
            };
            check("whole", &written(&chunks, whole), &direct);
            // Another window of the same phase, within the cached data.
            let step = query.step.millis();
            let n = (query.end - query.start) / step;
            let from = dice.roll(n / 2);
            let part = TimeRange::clamped(
                query.start + from * step,
                query.start + (from + dice.roll(n / 2)) * step + 1,
            );
            let direct = rig.ask(&query, part).await.1;
            check("part", &written(&chunks, part), &direct);
            // A coarser step.
            let mut coarse = query.clone();
            coarse.step = Step::new(step * (2 + dice.roll(5))).unwrap();
            let thinned: Vec<_> = chunks
                .iter()
                .map(|c| thin(c, coarse.step, part.start()))
                .collect();
            let direct = rig.ask(&coarse, part).await.1;
            check("coarse", &written(&thinned, part), &direct);
        }
        // Too few samples would prove nothing.
        assert!(points > 40 || *text == "none", "{text}: {points} samples");
    }
    assert!(wrong.is_empty(), "{wrong}");
    for text in PASSED {
        assert!(matches!(classify(text), Analysis::PassThrough(_)), "{text}");
        let mut query = window(text, &mut dice);
        query.step = Step::new(MINUTE).unwrap();
        (query.start, query.end) = (START + 5 * MINUTE, START + LENGTH - 5 * MINUTE);
        let whole = TimeRange::clamped(query.start, query.end + 1);
        let (status, direct) = rig.ask(&query, whole).await;
        // Neither half has both names.
        let mut halves = Vec::new();
        for half in [
            TimeRange::clamped(query.start, START + 87 * MINUTE),
            TimeRange::clamped(START + 87 * MINUTE, query.end + 1),
        ] {
            halves.push(rig.fetch(&query, half).await);
        }
        let same = status == 200 && written(&halves, whole) == String::from_utf8_lossy(&direct);
        assert!(!same, "{text} could have been kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_in_the_same_words() {
    let Some(rig) = Rig::new().await else { return };
    let ranges = [
        "",
        "query=1",
        "query=1&start=x&end=2&step=1",
        "query=1&start=1&step=1",
        "query=1&start=1&end=%22%0A%01%C3%A9&step=1",
        "query=1&start=5&end=2&step=x",
        "query=1&start=1.001&end=1&step=1",
        "query=1&start=1&end=2",
        "query=1&start=1&end=2&step=0",
        "query=1&start=1&end=2&step=-1",
        "query=1&start=1&end=2&step=abc",
        "query=1&start=1&end=2&step=1s1h",
        "query=1&start=1&end=2&step=1h%3C%26",
        "query=1&start=1&end=2&step=300y",
        "query=1&start=1&end=2&step=1e300",
        "query=1&start=1&end=2&step=9223372037",
        "query=1&start=0&end=11001&step=1",
        "query=1&start=0&end=11001&step=1&timeout=x",
        "query=1&start=1&end=2&step=1&timeout=x",
        "query=1;start=1&end=2&step=1",
        "query=1&start=%zz&end=2&step=1",
        "query=1&start=2023-11-14&end=2&step=1",
        "query=1&start=2023-11-14T22:13:20&end=2&step=1",
        "query=1&start=x&start=1&end=2&step=1",
    ];
    for url in ranges {
        let error = RangeQuery::read(&mut params(url)).unwrap_err();
        let ours = String::from_utf8(write_error(&error).to_vec()).unwrap();
        let reply = rig.get(&format!("query_range?{url}")).await;
        assert_eq!(
            (prometheus_status(error.kind).as_u16(), ours),
            reply,
            "{url}"
        );
    }
    for url in ["query=1&time=x", "query=1&time=1&timeout=1q"] {
        let error = InstantQuery::read(&mut params(url)).unwrap_err();
        let ours = String::from_utf8(write_error(&error).to_vec()).unwrap();
        let reply = rig.get(&format!("query?{url}")).await;
        assert_eq!(
            (prometheus_status(error.kind).as_u16(), ours),
            reply,
            "{url}"
        );
    }
    // The times that are accepted are the same, too.
    for (start, end, step) in [
        ("1700000000.001", "1700000001", "0.1"),
        ("1.7e9", "1700000001.9996", "1s"),
        (
            "2023-11-14T22:13:20.0019Z",
            "2023-11-15T00:13:20%2B01:00",
            "1h1s",
        ),
        ("1.0625", "2", "0.3335"),
        ("-1.5", "1", "1"),
        ("0", "11000.9", "1"),
        ("1", "100", "1.001"),
        ("1", "100", "1.0625"),
        ("1", "10", "1001ms"),
        ("1&start=2", "10&end=3", "1&step=2"),
        ("%31", "+2", "1"),
        ("1", "2&x=%zz", "1"),
    ] {
        let url = format!("query=time()&start={start}&end={end}&step={step}");
        let query = RangeQuery::read(&mut params(&url));
        let (status, body) = rig.get(&format!("query_range?{url}")).await;
        let Ok(query) = query else {
            assert_eq!(status, 400, "{url}");
            continue;
        };
        let matrix = read_matrix(&Bytes::from(body), 10).unwrap();
        let times = matrix.series[0].values.times();
        let step = query.step.millis();
        let expected: Vec<_> = (0..)
            .map(|i| query.start + i * step)
            .take_while(|t| *t <= query.end)
            .collect();
        assert_eq!(times, expected, "{url}");
        let whole = TimeRange::clamped(query.start, query.end + 1);
        let again = rig.fetch(&query, whole).await;
        assert_eq!(
            again[0].values.times(),
            expected,
            "{url} as it is passed on"
        );
    }
}
