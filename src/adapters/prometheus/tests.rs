//! A server is played by a small evaluator of the queries that are built here, with either
//! convention for a range's left edge.

use std::collections::BTreeMap;

use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::*;
use crate::model::{Condition, Evidence, Scalar, Statistic, Test};

const START: Millis = 1_700_000_040_000;
const MINUTE: Millis = 60_000;

fn answer(status: u16, body: &str) -> Response {
    Response {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn matrix(result: &serde_json::Value) -> Response {
    let body = json!({ "status": "success", "data": { "resultType": "matrix", "result": result } });
    answer(200, &body.to_string())
}

fn adapter() -> Prometheus {
    Prometheus::new(Step::new(15_000).unwrap(), false, 20_000)
}

fn fetch(key: &str, value: &str, layout: Layout, start: Millis, end: Millis) -> Fetch {
    Fetch {
        selector: Selector::new(vec![Condition {
            key: key.into(),
            test: Test::Is(Scalar::String(value.into())),
        }]),
        metric_field: None,
        layout,
        range: TimeRange::new(start, end).unwrap(),
        nan: NanInterpretation::Omit,
        details: Forwarded::default(),
    }
}

fn buckets(statistic: Statistic, size: Millis) -> Layout {
    Layout::Buckets {
        statistic,
        size: Step::new(size).unwrap(),
    }
}

fn sent(request: &Request) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(&request.body)
        .into_owned()
        .collect()
}

fn all(series: &FetchResult) -> Vec<(Millis, f64)> {
    match &series.data {
        Data::Points(points) => points.iter().collect(),
        Data::Matrix(_) => panic!("points are expected"),
    }
}

fn done<T>(exchange: &Exchange<T>, response: &Response) -> T {
    match (exchange.read)(response) {
        Ok(Next::Done(value)) => value,
        Ok(Next::More(_) | Next::Compare(_)) => panic!("another exchange"),
        Err(error) => panic!("{error}"),
    }
}

fn refused<T>(exchange: &Exchange<T>, response: &Response) -> Error {
    match (exchange.read)(response) {
        Err(error) => error,
        Ok(_) => panic!("an answer: {} {:?}", response.status, response.body),
    }
}

/// A server that holds the samples of one series.
struct Fake {
    samples: Vec<(Millis, f64)>,
    left_open: bool,
}

/// The milliseconds of a duration such as `4s7ms`.
fn read_duration(text: &str) -> Millis {
    let (seconds, millis) = match text.split_once('s') {
        Some((seconds, rest)) if !seconds.ends_with('m') => (seconds, rest),
        _ => ("0", text),
    };
    let millis = millis.strip_suffix("ms").unwrap_or("0");
    seconds.parse::<Millis>().unwrap() * 1000 + millis.parse::<Millis>().unwrap()
}

impl Fake {
    fn in_range(&self, t: Millis, at: Millis, range: Millis) -> bool {
        let left = at - range;
        t <= at && (t > left || (t == left && !self.left_open))
    }

    fn samples_in(&self, at: Millis, range: Millis) -> Vec<f64> {
        let held = self.samples.iter();
        let held = held.filter(|(t, _)| self.in_range(*t, at, range));
        held.map(|(_, v)| *v).collect()
    }

    /// `irate(…[lookback] offset 1ms) and count_over_time(…[new] offset 1ms)`
    fn rate(&self, at: Millis, lookback: Millis, new: Millis) -> Option<f64> {
        let at = at - 1;
        if self.samples_in(at, new).is_empty() {
            return None;
        }
        let seen = self.samples.iter();
        let seen: Vec<_> = seen
            .filter(|(t, _)| self.in_range(*t, at, lookback))
            .collect();
        let [.., before, last] = seen[..] else {
            return None;
        };
        let increase = if last.1 < before.1 {
            last.1
        } else {
            last.1 - before.1
        };
        Some(increase * 1000.0 / (last.0 - before.0) as f64)
    }

    fn grid(&self, at: Millis, range: Millis, step: Millis) -> Vec<Millis> {
        let first = (at - range).div_euclid(step) * step;
        let points = (0..).map(|n| first + n * step);
        let points = points.take_while(|t| *t <= at);
        points.filter(|t| self.in_range(*t, at, range)).collect()
    }

    /// The sum over each bucket, and the probe.
    fn answer(&self, request: &Request) -> Response {
        let sent = sent(request);
        let time = |key: &str| (sent[key].parse::<f64>().unwrap() * 1000.0) as Millis;
        let (start, end, step) = (time("start"), time("end"), time("step"));
        let ranges: Vec<&str> = sent["query"]
            .split('[')
            .skip(1)
            .map(|rest| rest.split(']').next().unwrap())
            .collect();
        let pair = |text: &str| {
            let (range, step) = text.split_once(':').unwrap();
            (read_duration(range), read_duration(step))
        };
        let (mut sums, mut probe) = (Vec::new(), Vec::new());
        for at in (0..).map(|n| start + n * step).take_while(|t| *t <= end) {
            let values = match ranges[..] {
                [range, _] => self.samples_in(at - 1, read_duration(range)),
                [lookback, new, outer, _] => {
                    let (range, step) = pair(outer);
                    let (lookback, new) = (read_duration(lookback), read_duration(new));
                    let points = self.grid(at, range, step).into_iter();
                    points.filter_map(|g| self.rate(g, lookback, new)).collect()
                }
                _ => panic!("{}", sent["query"]),
            };
            if !values.is_empty() {
                let sum: f64 = values.iter().sum();
                sums.push(json!([at as f64 / 1000.0, sum.to_string()]));
            }
            let (range, step) = pair(ranges.last().unwrap());
            let seen = self.grid(at, range, step).len();
            probe.push(json!([at as f64 / 1000.0, seen.to_string()]));
        }
        matrix(&json!([
            { "metric": {}, "values": sums },
            { "metric": { "heliostat_probe": "1" }, "values": probe },
        ]))
    }

    /// Answers until there is nothing more to ask; how often that was, and the points.
    fn run(&self, mut exchange: Exchange<FetchResult>) -> (usize, Vec<(Millis, f64)>) {
        for calls in 1..9 {
            match (exchange.read)(&self.answer(&exchange.request)).unwrap() {
                Next::Done(series) => return (calls, all(&series)),
                Next::More(next) => exchange = next,
                Next::Compare(_) => panic!("a comparison"),
            }
        }
        panic!("it asks for ever");
    }
}

/// Samples on the edges of buckets and beside them.
fn on_the_edges(size: Millis) -> Vec<(Millis, f64)> {
    let first = START.div_euclid(size) * size;
    let times = (-2..12).flat_map(|k| [0, 1, size / 2, size - 1].map(|by| first + k * size + by));
    times.zip((0..).map(|n| f64::from(n * n))).collect()
}

fn sums(samples: &[(Millis, f64)], size: Millis, range: &TimeRange) -> Vec<(Millis, f64)> {
    let mut sums = BTreeMap::new();
    for (t, v) in samples.iter().filter(|(t, _)| range.holds(*t)) {
        *sums.entry(t.div_euclid(size) * size).or_insert(0.0) += v;
    }
    sums.into_iter().collect()
}

#[test]
fn a_bucket_holds_its_first_instant_and_not_its_last_by_either_convention() {
    for size in [2, 16, 7_001, MINUTE] {
        let samples = on_the_edges(size);
        let first = START.div_euclid(size) * size;
        let range = TimeRange::new(first, first + 5 * size).unwrap();
        let expected = sums(&samples, size, &range);
        for left_open in [false, true] {
            let fake = Fake {
                samples: samples.clone(),
                left_open,
            };
            let adapter = adapter();
            let layout = buckets(Statistic::Sum, size);
            let fetch = fetch("__gauge__", "g", layout, range.start(), range.end());
            // It is taken for Prometheus 2 at first, and for what it is from then on.
            for calls in [1 + usize::from(left_open), 1] {
                let exchange = adapter.series(&fetch).unwrap().remove(0).call.alone();
                assert_eq!(fake.run(exchange), (calls, expected.clone()), "{size}");
            }
        }
    }
}

#[test]
fn a_rate_counts_to_the_bucket_of_its_sample_by_either_convention() {
    for (size, offset) in [
        (MINUTE, 0),
        (MINUTE, 1),
        (MINUTE, -1),
        (61_000, 7),
        (7_000, 0),
    ] {
        let first = START.div_euclid(size) * size;
        // One sample an interval, from which some are missing, and a reset.
        let samples = (-10..60).filter(|k| k % 11 != 3).map(|k| {
            let t = START.div_euclid(15_000) * 15_000 + k * 15_000 + offset;
            (t, ((k + 10) * (k + 10) % 700) as f64)
        });
        let samples: Vec<_> = samples.collect();
        let range = TimeRange::new(first, first + 10 * size).unwrap();
        let rates = rates(&samples.iter().copied().collect(), 3_600_000);
        let expected = sums(&rates.iter().collect::<Vec<_>>(), size, &range);
        for left_open in [false, true] {
            let fake = Fake {
                samples: samples.clone(),
                left_open,
            };
            let layout = buckets(Statistic::Sum, size);
            let fetch = fetch("__counter__", "c", layout, range.start(), range.end());
            let exchange = adapter().series(&fetch).unwrap().remove(0).call.alone();
            let (_, got) = fake.run(exchange);
            assert_eq!(got.len(), expected.len(), "{size} {offset} {left_open}");
            for (got, expected) in got.iter().zip(&expected) {
                assert_eq!(got.0, expected.0);
                assert!((got.1 - expected.1).abs() < 1e-9, "{got:?} {expected:?}");
            }
        }
    }
}

#[test]
fn a_server_that_changes_its_mind_is_not_asked_for_ever() {
    let layout = buckets(Statistic::Sum, MINUTE);
    let fetch = fetch("__gauge__", "g", layout, START, START + 5 * MINUTE);
    let exchange = adapter().series(&fetch).unwrap().remove(0).call.alone();
    let fake = |left_open| Fake {
        samples: on_the_edges(MINUTE),
        left_open,
    };
    let Ok(Next::More(second)) = (exchange.read)(&fake(true).answer(&exchange.request)) else {
        panic!("a second exchange");
    };
    let error = refused(&second, &fake(false).answer(&second.request));
    assert_eq!(error.kind, Kind::UpstreamFailed);
}

#[test]
fn a_scalar_expression_becomes_a_vector_when_the_server_says_so() {
    let layout = buckets(Statistic::Max, MINUTE);
    let fetch = fetch("~", "1 + 1", layout, START, START + 5 * MINUTE);
    let exchange = adapter().series(&fetch).unwrap().remove(0).call.alone();
    let said = r#"{"status":"error","errorType":"bad_data","error":"1:15: parse error: subquery is only allowed on instant vector, got scalar instead"}"#;
    let Ok(Next::More(second)) = (exchange.read)(&answer(400, said)) else {
        panic!("a second exchange");
    };
    let query = &sent(&second.request)["query"];
    assert!(query.contains("vector(1 + 1\n)"), "{query}");
    assert_eq!(
        refused(&second, &answer(400, said)).kind,
        Kind::MetricNotFound
    );
}

#[test]
fn buckets_of_one_millisecond_are_refused() {
    let fetch = fetch(
        "__gauge__",
        "g",
        buckets(Statistic::Max, 1),
        START,
        START + 9,
    );
    let error = adapter().series(&fetch).map(|_| ()).unwrap_err();
    assert_eq!(error.kind, Kind::TooManyPoints);
}

/// The steps of each call, as servers read them: the first, the last,
/// the length of one.
fn calls(fetch: &Fetch) -> Vec<(Millis, Millis, Millis)> {
    let parts = adapter().series(fetch).unwrap();
    let millis = |text: &String| text.parse::<f64>().unwrap() * 1000.0;
    // Times are rounded by Prometheus and VictoriaMetrics; a length is cut.
    let time = |text: &String| millis(text).round() as Millis;
    parts
        .into_iter()
        .map(|p| sent(&p.call.alone().request))
        .map(|s| {
            (
                time(&s["start"]),
                time(&s["end"]),
                millis(&s["step"]) as Millis,
            )
        })
        .collect()
}

#[test]
fn calls_stay_within_the_limits_of_steps_and_leave_none_out() {
    let hour = 3_600_000;
    let cell = 15_000;
    let raw = fetch("~", "up", Layout::Raw, cell + 1, 24_001 * cell + 1);
    let gauge = buckets(Statistic::Max, 1_003);
    let gauge = fetch("__gauge__", "g", gauge, 1_003, 25_001 * 1_003);
    let counter = buckets(Statistic::Max, hour);
    let counter = fetch("__counter__", "c", counter, hour, 721 * hour);
    for (fetch, first, step, most, steps) in [
        (raw, 2 * cell, cell, 11_000, 24_000),
        (gauge, 1_003 + 1_003, 1_003, 11_000, 25_000),
        // Rates have a grid of two points an interval, of which a call has 25,000 at most.
        (counter, hour + hour, hour, 25_000 / 480, 720),
    ] {
        let mut next = first;
        for (start, end, length) in calls(&fetch) {
            assert_eq!((start, length), (next, step));
            assert!((end - start) / step < most);
            next = end + step;
        }
        assert_eq!(next, first + steps * step);
    }
    let text = |fetch: &Fetch| {
        sent(
            &adapter()
                .series(fetch)
                .unwrap()
                .remove(0)
                .call
                .alone()
                .request,
        )["step"]
            .clone()
    };
    let odd = buckets(Statistic::Max, 1_003);
    let odd = fetch("__gauge__", "g", odd, 0, 1_003);
    // Cut to whole milliseconds, or nanoseconds, it must not fall short.
    assert_eq!(text(&odd), "1.0030001");
}

#[test]
fn durations_have_no_part_that_a_double_of_seconds_cannot_hold() {
    for (millis, text) in [
        (1, "1ms"),
        (999, "999ms"),
        (4_007, "4s7ms"),
        (60_000, "60s"),
    ] {
        assert_eq!(duration(millis), text);
        assert_eq!(read_duration(text), millis);
    }
}

#[test]
fn a_counter_that_begins_in_the_range_is_looked_for_further_back_once() {
    let fetch = fetch("__counter__", "c", Layout::Raw, START, START + MINUTE);
    let exchange = adapter().series(&fetch).unwrap().remove(0).call.alone();
    let seconds = |t: Millis| t as f64 / 1000.0;
    let sample = |t: Millis, v: &str| json!([seconds(t), v]);
    // NaN is no sample to take a rate from.
    let first = matrix(&json!([{ "metric": {}, "values": [
        sample(START - 20_000, "NaN"), sample(START + 10_000, "70"), sample(START + 20_000, "90")
    ] }]));
    let Ok(Next::More(second)) = (exchange.read)(&first) else {
        panic!("a second exchange");
    };
    let asked = sent(&second.request);
    assert_eq!(asked["query"], "{__name__=\"c\"}[3301s]");
    let earlier = json!([{ "metric": {}, "values": [sample(START - 490_000, "20")] }]);
    let found = done(&second, &matrix(&earlier));
    assert_eq!(all(&found), [(START + 10_000, 0.1), (START + 20_000, 2.0)]);
    // More than an hour apart there is no rate.
    let earlier = json!([{ "metric": {}, "values": [sample(START - 3_600_000, "20")] }]);
    let found = done(&second, &matrix(&earlier));
    assert_eq!(all(&found), [(START + 20_000, 2.0)]);
    // A sample shortly before the range is enough.
    let known =
        json!([{ "metric": {}, "values": [sample(START - 10_000, "90"), sample(START, "10")] }]);
    assert_eq!(all(&done(&exchange, &matrix(&known))), [(START, 1.0)]);
}

#[test]
fn samples_are_asked_for_by_whole_seconds_and_those_of_the_range_are_kept() {
    for (start, end, time, width) in [
        (START, START + 60_000, START + 60_000, "61s"),
        (START + 1, START + 60_000, START + 60_000, "60s"),
        (START, START + 60_001, START + 60_000, "61s"),
        (START, START + 60_002, START + 61_000, "62s"),
        (START + 999, START + 1_000, START + 1_000, "1s"),
    ] {
        let fetch = fetch("__gauge__", "g", Layout::Raw, start, end);
        let exchange = adapter().series(&fetch).unwrap().remove(0).call.alone();
        let asked = sent(&exchange.request);
        assert_eq!(asked["time"], (time / 1000).to_string(), "{start} {end}");
        assert_eq!(asked["query"], format!("{{__name__=\"g\"}}[{width}]"));
        // What a server has that takes in both edges, or more.
        let from = time - read_duration(width);
        assert!(from < start && end <= time + 1);
        let held = [from, start - 1, start, end - 1, end, time];
        let held = held.map(|t| json!([t as f64 / 1000.0, "1"]));
        let found = done(
            &exchange,
            &matrix(&json!([{ "metric": {}, "values": held }])),
        );
        let mut kept = vec![(start, 1.0), (end - 1, 1.0)];
        kept.extend((time == end - 1).then_some((time, 1.0)));
        assert_eq!(all(&found), kept);
    }
}

#[test]
fn members_that_are_null_and_values_that_are_numbers_are_read() {
    let t = START as f64 / 1000.0;
    let body = json!({
        "status": "success", "warnings": null, "isPartial": null, "errorType": null, "error": null,
        "data": { "resultType": "matrix", "result": [
            { "metric": {}, "values": [[t, 1.5], [t + 1.0, 2], [t + 2.0, -3]] },
        ] },
    });
    let found = done(&raw(), &answer(200, &body.to_string()));
    assert!(found.complete);
    let expected = [(START, 1.5), (START + 1_000, 2.0), (START + 2_000, -3.0)];
    assert_eq!(all(&found), expected);
    // Milliseconds where seconds belong are no empty answer.
    let values = json!([{ "metric": {}, "values": [[START, "1"]] }]);
    assert!((raw().read)(&matrix(&values)).is_err());
}

fn raw() -> Exchange<FetchResult> {
    let fetch = fetch("__gauge__", "g", Layout::Raw, START, START + MINUTE);
    adapter().series(&fetch).unwrap().remove(0).call.alone()
}

#[test]
fn values_that_are_no_numbers_are_left_out_and_counted() {
    let t = START as f64 / 1000.0;
    let found = done(
        &raw(),
        &matrix(&json!([
            { "metric": { "h": "b" }, "values": [[t + 5.0, "5"], [t, "1"], [t + 1.0, "NaN"]] },
            { "metric": { "h": "a" }, "values": [[t, "+Inf"], [t + 1.5, "-Inf"], [t + 5.0, "4e-3"]] },
            { "metric": { "h": "c" }, "histograms": [[t, { "count": "1", "sum": "2" }]] },
        ])),
    );
    assert_eq!(
        all(&found),
        [(START, 1.0), (START + 5_000, 4e-3), (START + 5_000, 5.0)]
    );
    let dropped = found.dropped;
    assert_eq!((dropped.nan, dropped.inf, dropped.histogram), (1, 2, 1));
    assert!(found.complete && found.received == 6);
}

#[test]
fn warnings_make_an_answer_incomplete_and_remarks_do_not() {
    for (more, complete) in [
        ("", true),
        (r#","warnings":[]"#, true),
        (
            r#","infos":["PromQL info: metric might not be a counter"]"#,
            true,
        ),
        (
            r#","warnings":["PromQL info: metric might not be a counter"]"#,
            true,
        ),
        (r#","warnings":["a store did not answer"]"#, false),
        (r#","isPartial":true"#, false),
        (r#","isPartial":false"#, true),
    ] {
        let body =
            format!(r#"{{"status":"success","data":{{"resultType":"matrix","result":[]}}{more}}}"#);
        assert_eq!(
            done(&raw(), &answer(200, &body)).complete,
            complete,
            "{more}"
        );
    }
}

#[test]
fn errors_of_the_store_get_the_kind_that_they_describe() {
    let said = |status, kind: &str, error: &str| {
        let body = json!({ "status": "error", "errorType": kind, "error": error });
        let error = refused(&raw(), &answer(status, &body.to_string()));
        (error.kind, error.evidence)
    };
    let at = "error when executing query=\"x\" on the time range (start=1, end=2, step=3)";
    for (status, kind, error, expected) in [
        (
            400,
            "bad_data",
            "1:3: parse error",
            (Kind::MetricNotFound, Evidence::Question),
        ),
        (
            422,
            "422",
            "cannot execute query: labelFilterExpr: unexpected token \"\"",
            (Kind::MetricNotFound, Evidence::Question),
        ),
        (
            422,
            "422",
            "unknown func \"foo\"",
            (Kind::MetricNotFound, Evidence::Question),
        ),
        (
            422,
            "422",
            "too many points for the given step=1; cannot exceed -search.maxPointsPerTimeseries=30000",
            (Kind::TooManyPoints, Evidence::Question),
        ),
        (422, "422", at, (Kind::UpstreamFailed, Evidence::Question)),
        (
            422,
            "execution",
            "query processing would load too many samples into memory",
            (Kind::TooManyPoints, Evidence::Question),
        ),
        (
            422,
            "execution",
            "found duplicate series",
            (Kind::UpstreamFailed, Evidence::Question),
        ),
        (
            503,
            "timeout",
            "query timed out",
            (Kind::UpstreamFailed, Evidence::Question),
        ),
        (
            503,
            "unavailable",
            "starting up",
            (Kind::UpstreamBusy, Evidence::Load),
        ),
        (
            500,
            "internal",
            "storage",
            (Kind::UpstreamFailed, Evidence::Question),
        ),
        (
            200,
            "bad_data",
            "odd",
            (Kind::MetricNotFound, Evidence::Question),
        ),
    ] {
        assert_eq!(said(status, kind, error), expected, "{kind}: {error}");
    }
}

/// Readers of answers, for tests of what they take: whether the answer could be read.
pub(in crate::adapters) fn read_samples(response: &Response, most: usize) -> bool {
    answer::SampleMatrix::read(response, most).is_ok()
}

pub(in crate::adapters) fn read_strings(response: &Response) -> bool {
    answer::strings(response).is_ok()
}

#[test]
fn parts_and_answers_of_another_type_are_refused() {
    let good = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
    let exchange = raw();
    assert!((exchange.read)(&answer(200, good)).is_ok());
    let vector = r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#;
    let mut broken = answer(200, r#"{"status":"success","data":["X"]}"#);
    let body: Vec<u8> = broken
        .body
        .iter()
        .map(|b| if *b == b'X' { 0xff } else { *b })
        .collect();
    broken.body = body.into();
    for (status, wrong) in [(206, answer(206, good)), (200, answer(200, vector))] {
        let error = refused(&exchange, &wrong);
        assert_eq!(error.kind, Kind::UpstreamFailed, "{status}");
    }
    // Whole answers, which are passed on.
    let request = crate::adapters::Request {
        method: http::Method::GET,
        path: String::new(),
        headers: Vec::new(),
        body: Bytes::new(),
        units: 0,
    };
    let pass = adapter().pass(request, true).unwrap();
    assert!((pass.read)(&answer(200, vector)).is_ok());
    for wrong in [answer(206, good), broken] {
        let error = (pass.read)(&wrong).map(|_| ()).unwrap_err();
        assert_eq!(error.kind, Kind::UpstreamFailed);
    }
}

#[test]
fn garbage_is_an_error_and_no_panic() {
    for body in [
        "",
        "<html>",
        "[]",
        "null",
        r#"{"status":"success"}"#,
        r#"{"status":"success","data":{}}"#,
        r#"{"status":"success","data":{"result":[{"values":[[1]]}]}}"#,
        r#"{"status":"success","data":{"result":[{"values":[[1,"x"]]}]}}"#,
        r#"{"status":"success","data":{"result":[{"values":[[1e300,"1"]]}]}}"#,
        r#"{"status":"success","data":{"result":[{"values":[[1,[2]]]}]}}"#,
        r#"{"status":"success","data":{"result":[1,"2"]}}"#,
    ] {
        for status in [200, 404, 500] {
            let error = refused(&raw(), &answer(status, body));
            assert_eq!(error.kind, Kind::UpstreamFailed, "{status} {body}");
            let expected = match status {
                500 => Evidence::Address,
                _ if ["", "<html>"].contains(&body) => Evidence::Stranger,
                _ => Evidence::Question,
            };
            assert_eq!(error.evidence, expected, "{status} {body}");
        }
    }
    assert_eq!(
        refused(&raw(), &answer(503, "<html>")).kind,
        Kind::UpstreamBusy
    );
    // Buckets at other times than those asked for.
    let layout = buckets(Statistic::Max, MINUTE);
    let fetch = fetch("__gauge__", "g", layout, START, START + 5 * MINUTE);
    let exchange = adapter().series(&fetch).unwrap().remove(0).call.alone();
    let moved = json!([{ "metric": {}, "values": [[START / 1000 + 67, "1"]] }]);
    assert_eq!(
        refused(&exchange, &matrix(&moved)).kind,
        Kind::UpstreamFailed
    );
}

#[test]
fn the_grid_of_a_counter_is_found_in_few_steps() {
    let of = |interval, size| {
        let adapter = Prometheus::new(Step::new(interval).unwrap(), false, 1);
        adapter.rate_grid(Step::new(size).unwrap())
    };
    let slowly = |interval: Millis, size: Millis| {
        let longest = (interval / 2).max(1);
        let grids = ((longest / 64).max(1)..=longest.min(size)).rev();
        grids.into_iter().find(|d| size % d == 0).unwrap_or(longest)
    };
    for interval in [1, 2, 100, 1000, 15_000, 60_000, 131_000] {
        for size in [2, 3, 999, 7001, 60_000, 61_000, 86_399_999, 999_999_999_989] {
            assert_eq!(
                of(interval, size),
                slowly(interval, size),
                "{interval} {size}"
            );
        }
    }
    // Trying all parts would take hours.
    assert_eq!(
        of(15_000, 253_402_300_799_992),
        slowly(15_000, 253_402_300_799_992)
    );
    let day = 86_400_000;
    assert_eq!(of(day, 7 * day), day / 2);
    assert!(of(100 * day, crate::model::MAX_TIME - 1) > 0);
}

#[test]
fn a_fetch_of_too_many_calls_is_refused_before_they_are_built() {
    let days = |days: Millis| days * 86_400_000;
    let long = format!("up{{a=\"{}\"}}", "x".repeat(8000));
    let parts = |key, value: &str, size, end| {
        adapter().series(&fetch(key, value, buckets(Statistic::Mean, size), 0, end))
    };
    let refused = |parts: Result<Vec<Part>, Error>| {
        let error = parts.err().unwrap();
        assert_eq!(error.kind, Kind::TooManyPoints);
        assert_eq!(error.field.as_deref(), Some("query.endTime"));
        error.message
    };
    let error = refused(parts(EXPRESSION, &long, days(5), days(500_000)));
    assert!(
        error.contains("100000 calls") && error.contains("at most 1"),
        "{error}"
    );
    refused(parts(COUNTER, "x", days(5), days(500_000)));
    // Three years by days, and the longest range of one call each.
    for (key, value) in [(COUNTER, "x"), (EXPRESSION, "up")] {
        assert!(parts(key, value, days(1), days(3 * 365)).unwrap().len() > 100);
    }
    let expression = |query: &str| Expression {
        query: query.into(),
        step: Step::new(days(1)).unwrap(),
        phase: 0,
        lag: 0,
        parameters: Vec::new(),
        headers: Vec::new(),
    };
    let limits = RangeLimits {
        series: 10,
        span: days(1),
    };
    let range = |query: &str, end| {
        let range = TimeRange::new(0, end).unwrap();
        adapter().range(&expression(query), &range, limits)
    };
    assert_eq!(range("up", days(1000)).unwrap().len(), 1000);
    for (query, end) in [("up", days(1001)), (&long, days(400))] {
        let error = range(query, end).err().unwrap();
        assert_eq!(error.kind, Kind::TooManyPoints);
        assert_eq!(error.field.as_deref(), Some("end"));
    }
}

#[test]
fn an_expression_whose_values_depend_on_the_range_is_refused() {
    let series = |text, layout| adapter().series(&fetch(EXPRESSION, text, layout, 0, MINUTE));
    for text in [
        "topk(5, up) and topk(5, up @ end())",
        "up @ start()",
        "up @ 1700000000 + up @ end()",
        "topk(scalar(k), up)",
    ] {
        for layout in [Layout::Raw, buckets(Statistic::Max, MINUTE)] {
            let error = series(text, layout).err().unwrap();
            assert_eq!(error.kind, Kind::MetricNotFound, "{text}");
        }
    }
    for text in [
        "topk(5, up)",
        "up @ 1700000000",
        "up offset -1d",
        // Not PromQL, but the upstream may know it.
        "rollup(up)",
        "up[",
    ] {
        assert!(series(text, Layout::Raw).is_ok(), "{text}");
    }
}

#[test]
fn what_an_expression_reads_decides_when_it_is_settled() {
    let settled = |key, text| {
        let fetch = fetch(key, text, Layout::Raw, 0, MINUTE);
        let reads = adapter().reads(&fetch.selector);
        reads.map(|reads| reads.settled_before(START))
    };
    assert_eq!(settled(EXPRESSION, "up"), Some(START));
    assert_eq!(settled(EXPRESSION, "up offset 1m"), Some(START + MINUTE));
    assert_eq!(
        settled(EXPRESSION, "up - up offset -1m"),
        Some(START - MINUTE)
    );
    assert_eq!(settled(EXPRESSION, "up + up @ 1700000039"), Some(START));
    assert_eq!(
        settled(EXPRESSION, "up + up @ 1700000040"),
        Some(Millis::MIN)
    );
    for unread in ["rollup(up)", "up offset -1d keep_metric_names", "up["] {
        assert_eq!(settled(EXPRESSION, unread), Some(Millis::MIN), "{unread}");
    }
    assert_eq!(settled(GAUGE, "up"), None);
}
