//! What is fuzzed, for cargo-fuzz (`fuzz_targets/`) and for the tests (`tests/it/fuzz.rs`). An entry
//! takes any bytes; a panic is a finding.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heliostat::adapters::cloudwatch::CloudWatch;
use heliostat::adapters::mirror::Mirror;
use heliostat::adapters::prometheus::{Prometheus, ReplicaLabels};
use heliostat::adapters::{
    Adapter, Data, Exchange, Fetch, FetchResult, Forwarded, Next, PartCall, Request, Response,
    StatisticsQuery,
};
use heliostat::clock::Clock;
use heliostat::config;
use heliostat::model::{
    Condition, Error, Expression, FieldNamesQuery, FieldType, FieldValuesQuery, Layout, MAX_TIME,
    MetricPace, NanInterpretation, RangeLimits, Scalar, Scope, Selector, Statistic, Step, Test,
    TimeRange,
};
use heliostat::promql::{Analysis, canonical, classify};
use heliostat::store::key::{LaneName, Slot};
use heliostat::store::page::{self, BlockContent, ValueId};
use heliostat::wire::encoding::Encoding;
use heliostat::wire::prometheus::{self, InstantQuery, Params, RangeQuery};
use heliostat::wire::{
    json,
    mirror::{
        points,
        request::{self, RequestBounds},
        response,
    },
};
use http::{HeaderMap, Method, StatusCode};

/// Requests as clients send them: of the mirror API, and the parameters of Prometheus' API.
pub(crate) fn mirror_request(data: &[u8]) {
    let _ = request::read_connection(data, RequestBounds::default());
    if let Ok(read) = request::read_field_names(data, RequestBounds::default()) {
        scope_in_range(&read.query.scope);
        let written = request::write_field_names(&read.details.rest, &read.query);
        let again = request::read_field_names(&written, RequestBounds::default())
            .expect("what is written is read");
        assert_eq!(again.query, read.query);
        assert_eq!(again.details.rest, read.details.rest);
    }
    if let Ok(read) = request::read_field_values(data, RequestBounds::default()) {
        scope_in_range(&read.query.scope);
        let written = request::write_field_values(&read.details.rest, &read.query);
        let again = request::read_field_values(&written, RequestBounds::default())
            .expect("what is written is read");
        assert_eq!(again.query, read.query);
    }
    if let Ok(read) = request::read_metric(data, RequestBounds::default()) {
        let range = read.query.range;
        assert!(0 <= range.start() && range.start() <= range.end() && range.end() <= MAX_TIME);
        let written = request::write_metric(&read.details.rest, &read.query);
        let again = request::read_metric(&written, RequestBounds::default())
            .expect("what is written is read");
        assert_eq!(again.query, read.query);
    }
    let params = Params::read(std::str::from_utf8(data).ok(), Some(data), |_| true);
    let mut params = params.unwrap_or_default();
    let _ = InstantQuery::read(&mut params.clone());
    if let Ok(read) = RangeQuery::read(&mut params) {
        assert!(read.start <= read.end);
        let form = read.form(read.start, read.end);
        let again = Params::read(None, Some(form.as_bytes()), |_| true);
        let again = again.and_then(|mut params| RangeQuery::read(&mut params));
        let again = again.expect("what is written is read");
        assert_eq!((again.start, again.end), (read.start, read.end));
        assert_eq!((again.query, again.step), (read.query, read.step));
    }
}

fn scope_in_range(scope: &Scope) {
    let times = scope.start.iter().chain(&scope.end);
    assert!(times.into_iter().all(|t| (0..=MAX_TIME).contains(t)));
}

/// Answers as upstreams send them, to all that is asked of mirrors and Prometheus servers.
pub(crate) fn upstream_answer(data: &[u8]) {
    mirror_answers(data);
    matrix(data);
    tree(data);
    for status in [200, 400, 503] {
        let response = Response {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(data),
        };
        adapters(&response);
    }
}

fn mirror_answers(data: &[u8]) {
    let _ = response::read_connection(data);
    let _ = response::read_error(data);
    if let Ok(names) = response::read_field_names(data) {
        let written = response::write_field_names(&names.fields, names.partial);
        let again = response::read_field_names(&written).expect("what is written is read");
        assert_eq!(again, names);
    }
    if let Ok(values) = response::read_field_values(data) {
        let written = response::write_field_values(&values);
        let again = response::read_field_values(&written).expect("what is written is read");
        assert_eq!(again, values);
    }
    if let Ok(read) = points::read_metric(data) {
        assert_eq!(read.times.len(), read.values.len());
        if let Some(ends) = read.ends {
            assert_eq!(read.times.len(), ends.len());
            assert!(read.times.iter().zip(&ends).all(|(start, end)| start < end));
        }
    }
}

/// What is read of a matrix is written as it was read.
fn matrix(data: &[u8]) {
    let Ok(read) = prometheus::read_matrix(&Bytes::copy_from_slice(data), 1000) else {
        return;
    };
    for series in &read.series {
        for track in [&series.values, &series.histograms] {
            assert!(track.times().is_sorted_by(|a, b| a < b));
        }
    }
    let plain = Encoding::Identity;
    let parts = prometheus::write_matrix(&[&read.series], &TimeRange::ALL, &read.extras, plain);
    let written = Bytes::from(plain.join(parts).concat());
    let again = prometheus::read_matrix(&written, 1000).expect("what is written is read");
    let held = |t: &i64| TimeRange::ALL.holds(*t);
    let mut shown = read.series.iter().filter(|s| {
        let mut times = s.values.times().iter().chain(s.histograms.times());
        times.any(held)
    });
    for series in &again.series {
        let first = shown.next().expect("a series that was read");
        assert_eq!(series.metric.labels, first.metric.labels);
        let times = |s: &prometheus::Series| -> Vec<i64> {
            let times = s.values.times().iter().chain(s.histograms.times());
            times.copied().filter(held).collect()
        };
        assert_eq!(times(series), times(first));
    }
    assert!(shown.next().is_none());
}

/// The tree is the one that serde_json reads.
fn tree(data: &[u8]) {
    let ours = json::parse(data).ok().map(|tree| tree.to_value());
    let theirs = serde_json::from_slice::<serde_json::Value>(data).ok();
    assert_eq!(ours, theirs);
}

/// All exchanges of both adapters, each with `response` to whatever it asks.
fn adapters(response: &Response) {
    let minute = Step::new(60_000).expect("a step");
    let mirror = Mirror {
        api_key: None,
        page: 100,
    };
    let prometheus = Prometheus::new(minute, false, 20_000);
    let mut filled = prometheus.clone();
    filled.fill = Some(ReplicaLabels::new(&["job".to_owned()]));
    let scope = Scope {
        selector: Selector::default(),
        start: None,
        end: None,
        limit: None,
        latest_first: false,
    };
    let names = FieldNamesQuery {
        scope: scope.clone(),
    };
    let values = FieldValuesQuery {
        scope,
        field: heliostat::model::Field {
            name: "job".into(),
            kind: FieldType::String,
            classified: false,
        },
        prefix: String::new(),
        offset: 0,
    };
    cloudwatch(response, &names, &values);
    let none = Forwarded::default();
    let all: [&dyn Adapter; 3] = [&mirror, &prometheus, &filled];
    for adapter in all {
        follow(adapter.health(&none), response);
        if let Ok(exchange) = adapter.field_names(&none, &names) {
            follow(exchange, response);
        }
        if let Ok(exchange) = adapter.field_values(&none, &values) {
            follow(exchange, response);
        }
        for fetch in fetches(minute) {
            let Ok(parts) = adapter.series(&fetch) else {
                continue;
            };
            for part in parts {
                if let Some(series) = follow(alone(part.call), response)
                    && let Data::Points(points) = &series.data
                {
                    let range = match fetch.layout {
                        Layout::Raw => fetch.range,
                        Layout::Buckets { size, .. } => fetch.range.aligned(size),
                    };
                    assert!(points.times().is_sorted());
                    assert!(points.times().iter().all(|t| range.holds(*t)));
                    assert!(points.values().iter().all(|v| v.is_finite()));
                }
            }
        }
    }
    let expression = Expression {
        query: "up".into(),
        step: minute,
        phase: 0,
        lag: 0,
        parameters: Vec::new(),
        headers: Vec::new(),
    };
    let limits = RangeLimits {
        series: 100,
        span: 0,
    };
    let asked = window();
    let ways = [&prometheus, &filled].into_iter();
    for part in ways.flat_map(|way| way.range(&expression, &asked, limits).unwrap()) {
        if let Some(series) = follow(alone(part.call), response)
            && let Data::Matrix(matrix) = &series.data
        {
            for track in matrix
                .series
                .iter()
                .flat_map(|s| [&s.values, &s.histograms])
            {
                assert!(track.times().iter().all(|t| asked.holds(*t)));
                assert!(track.times().is_sorted_by(|a, b| a < b));
            }
        }
    }
    for (way, json) in [(&prometheus, false), (&prometheus, true), (&filled, true)] {
        let request = Request {
            method: Method::GET,
            path: "/api/v1/query".into(),
            headers: Vec::new(),
            body: Bytes::new(),
            units: 0,
        };
        follow(way.pass(request, json).unwrap(), response);
    }
}

/// All exchanges of CloudWatch, each with `response` to whatever it asks.
fn cloudwatch(response: &Response, names: &FieldNamesQuery, values: &FieldValuesQuery) {
    #[derive(Debug)]
    struct Fixed;
    impl Clock for Fixed {
        fn now(&self) -> i64 {
            window().end()
        }
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }
    let minute = Step::new(60_000).expect("a step");
    let adapter = CloudWatch {
        rules: Vec::new(),
        region: "eu-west-1".into(),
        pace: MetricPace {
            interval: minute,
            settle: 0,
            refresh: Duration::ZERO,
        },
        single_series: false,
        statistics: 5,
        clock: Arc::new(Fixed),
    };
    let none = Forwarded::default();
    follow(adapter.health(&none), response);
    expression(&adapter, response);
    for scope in adapter.catalogue_scopes(&names.scope).expect("scopes") {
        let list = adapter.catalogue(&scope).expect("a list");
        if let Some(catalogue) = follow(list, response) {
            let names = adapter.names_in(&catalogue, names).expect("names");
            let values = adapter.values_in(&catalogue, values).expect("values");
            assert!(names.partial == values.partial && values.values.is_sorted());
        }
    }
    let fetch = |layout| Fetch {
        selector: Selector::new(vec![Condition {
            key: "Namespace".into(),
            test: Test::Is(Scalar::String("AWS/Lambda".into())),
        }]),
        metric_field: Some("Duration".into()),
        layout,
        range: window(),
        nan: NanInterpretation::Omit,
        details: Forwarded::default(),
    };
    let percentiles = fetch(Layout::Buckets {
        statistic: Statistic::P95,
        size: minute,
    });
    let summaries = adapter.summaries(&fetch(Layout::Raw), minute);
    let both = [(summaries, 4), (adapter.series(&percentiles), 1)];
    for (parts, width) in both {
        for part in parts.expect("a metric") {
            if let Some(series) = follow(alone(part.call), response)
                && let Data::Points(points) = &series.data
            {
                assert_eq!(points.len() % width, 0);
                assert!(points.times().iter().all(|t| window().holds(*t)));
                let of_one = |times: &[i64]| times.iter().all(|t| Some(t) == times.first());
                assert!(points.times().chunks(width).all(of_one));
            }
        }
    }
}

/// The values of an expression of CloudWatch, with `response` to whatever it asks.
fn expression(adapter: &CloudWatch, response: &Response) {
    let fetch = Fetch {
        selector: Selector::new(vec![Condition {
            key: "~".into(),
            test: Test::Is(Scalar::String("SEARCH('x', 'Sum')".into())),
        }]),
        metric_field: None,
        layout: Layout::Raw,
        range: window(),
        nan: NanInterpretation::Omit,
        details: Forwarded::default(),
    };
    for part in adapter.series(&fetch).expect("an expression") {
        let PartCall::Alone(exchange) = part.call else {
            panic!("a call that others may share");
        };
        let bill = exchange.bill.clone().expect("a bill");
        if let Some(series) = follow(exchange, response)
            && let Data::Points(points) = &series.data
        {
            assert!(points.times().is_sorted());
            assert!(points.times().iter().all(|t| window().holds(*t)));
            assert!(bill.last() > Some(0));
        }
    }
}

/// Twenty minutes that the corpus has points of.
fn window() -> TimeRange {
    TimeRange::clamped(1_700_000_040_000, 1_700_001_240_000)
}

/// Each way to ask for points, once.
fn fetches(size: Step) -> impl Iterator<Item = Fetch> {
    let buckets = |statistic| Layout::Buckets { statistic, size };
    let ways = [
        ("__gauge__", Layout::Raw, NanInterpretation::Omit),
        (
            "__gauge__",
            buckets(Statistic::Mean),
            NanInterpretation::Zero,
        ),
        ("__counter__", Layout::Raw, NanInterpretation::Zero),
        (
            "__counter__",
            buckets(Statistic::P95),
            NanInterpretation::Omit,
        ),
        ("__expression__", Layout::Raw, NanInterpretation::Omit),
    ];
    ways.into_iter().map(|(key, layout, nan)| Fetch {
        selector: Selector::new(vec![Condition {
            key: key.into(),
            test: Test::Is(Scalar::String("up".into())),
        }]),
        metric_field: None,
        layout,
        range: window(),
        nan,
        details: Forwarded::default(),
    })
}

/// The answer to `exchange` where every response is `response`; none after a few.
/// The exchange for a call that is shared with nothing.
fn alone(call: PartCall) -> Exchange<FetchResult> {
    match call {
        PartCall::Alone(exchange) => exchange,
        PartCall::Shared(query) => only(StatisticsQuery::call(vec![query])),
    }
}

/// `exchange` with the only one of its answers.
fn only(exchange: Exchange<Vec<Result<FetchResult, Error>>>) -> Exchange<FetchResult> {
    let read = exchange.read;
    Exchange {
        request: exchange.request,
        read: Arc::new(move |response| {
            Ok(match read(response)? {
                Next::Done(mut all) => Next::Done(all.pop().expect("an answer")?),
                Next::More(next) => Next::More(only(next)),
                Next::Compare(_) => unreachable!("statistics are not compared"),
            })
        }),
        bill: None,
    }
}

fn follow<T>(mut exchange: Exchange<T>, response: &Response) -> Option<T> {
    for _ in 0..4 {
        exchange = match (exchange.read)(response).ok()? {
            Next::Done(answer) => return Some(answer),
            Next::More(next) => next,
            Next::Compare(comparison) => comparison.ask,
        }
    }
    None
}

/// A configuration. Folders and devices that it names are left alone.
pub(crate) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if text.contains("dir") || text.contains("/dev/") {
        return;
    }
    match config::parse(text, "c.toml", &BTreeMap::new()) {
        Ok(config) => {
            assert!(!config.upstreams.is_empty());
            let default = &config.default_upstream;
            assert!(config.upstreams.iter().any(|u| u.name == *default));
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.starts_with("c.toml"), "{shown}");
            assert!(!shown.contains(char::is_control), "{shown:?}");
            assert!(!error.message.is_empty());
            if let Some((line, column)) = error.position {
                let lines = text.matches('\n').count() + 1;
                assert!((1..=lines).contains(&line) && column >= 1, "{shown}");
            }
        }
    }
    // As the value of a variable: said of it, or taken.
    let name = "HELIOSTAT_SERVER__REQUEST_TIMEOUT";
    let env = BTreeMap::from([(name.to_owned(), text.to_owned())]);
    if let Err(error) = config::parse("", "c.toml", &env) {
        assert!(error.source.ends_with(name), "{error}");
    }
}

/// An expression.
pub(crate) fn promql(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let analysis = classify(text);
    if let Analysis::PerInstant { lag } = analysis {
        assert!((0..=MAX_TIME).contains(&lag));
    }
    let known_by = canonical(text);
    assert_eq!(canonical(&known_by), known_by);
    assert_eq!(classify(&known_by), analysis);
}

/// Values of a second level of the cache, as a disk or a server gives them back. What is read is
/// written to something that is read as the same.
pub(crate) fn stored_value(data: &[u8]) {
    let lane = LaneName([7; 32]);
    let id = ValueId {
        lane: &lane,
        slot: Slot::Page(3),
        cell: Step::new(15_000).expect("it is positive"),
    };
    let Ok(value) = page::decode(id, data, MAX_TIME) else {
        return;
    };
    if let BlockContent::Points(points) = &value.content {
        assert!(points.times().is_sorted());
        let inside = |t: i64| value.parts.iter().any(|part| part.range.holds(t));
        assert!(points.times().iter().all(|t| inside(*t)));
    }
    if let Some(written) = page::encode(id, &value) {
        let again = page::decode(id, &written, MAX_TIME).expect("what is written is read");
        assert_eq!(again, value);
    }
}
