//! The law for dashboards: range queries, instant queries and lists of several engines over one
//! level are what the source says.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::adapters::Response;
use crate::adapters::prometheus::Prometheus;
use crate::engine::encoded::EncodedResponse;
use crate::engine::second::tests::{
    Fleet, REFRESH, WorldOp, histories, keeping, runtime, window, world_op,
};
use crate::engine::tests::{Clocks, INTERVAL, SETTLE, World, engine_with};
use crate::engine::whole::Content;
use crate::engine::{Evaluation, Lookup, RangeRequest};
use crate::model::RawResponse;
use crate::model::{Aggregate, Details, Field, FieldType, FieldValuesQuery, Kind, Scope, Selector};
use crate::upstream::{AnswerShare, BoxFuture, Outgoing, Transport};
use crate::wire::prometheus::{Params, RangeQuery, write_time};

/// A list changes so often.
const ERA: Millis = 30_000;

/// Whether there is a sample of `series` at `time`, and when it arrives.
fn sample(series: Millis, time: Millis) -> Option<Millis> {
    let n = time.div_euclid(INTERVAL) * 7919 + series * 31;
    let gap = (time.div_euclid(60_000) + series) % 5 == 0;
    (!gap).then(|| time + n.rem_euclid(SETTLE / INTERVAL - 1) * INTERVAL)
}

/// The value of `series` at `time` when it is `now`; 0 if there is none.
fn value(clocks: &Clocks, series: Millis, time: Millis, now: Millis) -> i64 {
    let newest = time.div_euclid(INTERVAL) * INTERVAL;
    let samples = (0..5).map(|i| newest - i * INTERVAL);
    let there = samples.filter(|s| sample(series, *s).is_some_and(|arrives| arrives <= now));
    let there = i64::try_from(there.count()).unwrap();
    let rewritten = clocks.rewritten.lock().unwrap();
    let changes = rewritten.iter().filter(|r| r.holds(time)).count();
    match there {
        0 => 0,
        n => n + 10 * i64::try_from(changes).unwrap(),
    }
}

/// Returns the version of a list at `now`, without its changes by hand.
fn era(now: Millis) -> Millis {
    now.div_euclid(ERA)
}

/// A Prometheus in memory.
struct Source {
    clocks: Arc<Clocks>,
    mirror: Arc<crate::engine::tests::Source>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Source {
    fn said(&self, request: &Outgoing, now: Millis) -> Value {
        let url = url::Url::parse(&request.url.to_string()).unwrap();
        let mut params = Params::read(url.query(), Some(&request.body), |_| true).unwrap();
        let data = match url.path() {
            "/api/v1/query_range" => {
                let asked = RangeQuery::read(&mut params).unwrap();
                let times: Vec<Millis> = (asked.start..=asked.end)
                    .step_by(usize::try_from(asked.step.millis()).unwrap())
                    .collect();
                let series = (0..3).filter_map(|series| {
                    let value = |time: &Millis| (*time, value(&self.clocks, series, *time, now));
                    let values = times.iter().map(value).filter(|(_, value)| *value > 0);
                    let values: Vec<Value> = values.map(|(t, v)| sampled(t, v)).collect();
                    let series = json!({ "metric": { "s": series.to_string() }, "values": values });
                    (!values.is_empty()).then_some(series)
                });
                json!({ "resultType": "matrix", "result": series.collect::<Vec<_>>() })
            }
            "/api/v1/query" => {
                let time = params.time_at("time").unwrap();
                let series = (0..3).filter_map(|series| {
                    let value = value(&self.clocks, series, time, now);
                    let sampled = sampled(time, value);
                    let series = json!({ "metric": { "s": series.to_string() }, "value": sampled });
                    (value > 0).then_some(series)
                });
                json!({ "resultType": "vector", "result": series.collect::<Vec<_>>() })
            }
            _ => {
                let changes = self.clocks.rewritten.lock().unwrap().len();
                json!([era(now).to_string(), format!("c{changes}")])
            }
        };
        json!({ "status": "success", "data": data })
    }
}

fn sampled(time: Millis, value: i64) -> Value {
    json!([time as f64 / 1000.0, value.to_string()])
}

impl Transport for Source {
    fn send(
        &self,
        request: Outgoing,
        _: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, crate::model::Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.mirror.failing.load(Ordering::SeqCst) {
                return Err(crate::model::Error::new(Kind::UpstreamUnreachable, "down"));
            }
            self.calls.lock().unwrap().push(request.url.to_string());
            let now = self.clocks.truth();
            let body = self.said(&request, now).to_string();
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            let date = UNIX_EPOCH + std::time::Duration::from_millis(now as u64);
            let date = HeaderValue::from_str(&httpdate::fmt_http_date(date)).unwrap();
            let kind = HeaderValue::from_static("application/json");
            Ok(Response {
                status: StatusCode::OK,
                headers: HeaderMap::from_iter([(DATE, date), (CONTENT_TYPE, kind)]),
                body: Bytes::from(body),
            })
        })
    }
}

/// Engines in front of a Prometheus, and the calls that it saw.
struct Dashboards {
    fleet: Fleet,
    calls: Arc<Mutex<Vec<String>>>,
}

/// An answer, as far as it is compared: what it says, whether it was marked expired.
struct Said {
    json: Value,
    cache: crate::engine::CacheOutcome,
}

impl Dashboards {
    fn new(count: usize, time: Option<Millis>) -> Self {
        let calls = Arc::<Mutex<Vec<String>>>::default();
        let seen = calls.clone();
        let make = move |world: &World, clock: &Arc<dyn crate::clock::Clock>, memory| {
            let source = Arc::new(Source {
                clocks: world.clocks.clone(),
                mirror: world.source.clone(),
                calls: seen.clone(),
            });
            let adapter = Prometheus::new(Step::SECOND, false, 20_000);
            let keeping = keeping(Aggregate::Local);
            engine_with(source, clock, Box::new(adapter), keeping, memory)
        };
        let fleet = Fleet::with(count, time, Box::new(make));
        Self { fleet, calls }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn engine(&self, who: usize) -> &Arc<Engine> {
        &self.fleet.members[who].1.engine
    }

    async fn range(
        &self,
        who: usize,
        (start, end, step): (Millis, Millis, Millis),
    ) -> Result<Said, crate::model::Error> {
        let text = format!(
            "query=x&start={}&end={}&step={step}ms",
            write_time(start),
            write_time(end)
        );
        let request = RangeRequest {
            query: RangeQuery::read(&mut Params::read(Some(&text), None, |_| true).unwrap())
                .unwrap(),
            lag: 0,
            headers: Vec::new(),
        };
        let upstream = self.engine(who).upstreams()[0].clone();
        let context = self.fleet.context(who);
        let answer = self.engine(who).query_range(&upstream, request, &context);
        let answer = answer.await?;
        let body = answer.encoding.join(answer.body).concat();
        Ok(Said {
            json: serde_json::from_slice(&body).unwrap(),
            cache: answer.cache,
        })
    }

    /// An instant query for `time`, or for now, and the time that it is evaluated at.
    async fn instant(
        &self,
        who: usize,
        time: Option<Millis>,
    ) -> Result<(Said, Millis), crate::model::Error> {
        let engine = self.engine(who);
        let upstream = engine.upstreams()[0].clone();
        let context = self.fleet.context(who);
        let Evaluation { time, newest } = engine.evaluation(&upstream, time, &context).unwrap();
        let policy = CachePolicy::AtTime {
            reads: crate::promql::read("x").reads,
            time,
            newest,
        };
        let param = |name: &str, value: String| (name.to_owned(), value);
        let params = vec![param("query", "x".into()), param("time", write_time(time))];
        let said = self.response(who, "/api/v1/query", params, policy).await?;
        let at = &said.json["data"]["result"][0]["value"][0];
        // An expired answer states the time that it is of.
        let at = at
            .as_f64()
            .map_or(time, |at| (at * 1000.0).round() as Millis);
        Ok((said, at))
    }

    async fn response(
        &self,
        who: usize,
        path: &str,
        params: Vec<(String, String)>,
        policy: CachePolicy,
    ) -> Result<Said, crate::model::Error> {
        let request = PassthroughRequest {
            path: path.to_owned(),
            params: Arc::new(params.into_iter().map(|(n, v)| (n, v.into())).collect()),
            body: Bytes::new(),
            headers: Vec::new(),
            json: true,
        };
        let upstream = self.engine(who).upstreams()[0].clone();
        let context = self.fleet.context(who);
        let answer =
            self.engine(who)
                .pass_through(&upstream, Method::GET, request, policy, None, &context);
        let answer = answer.await?;
        let body = answer.encoding.join(answer.body).concat();
        Ok(Said {
            json: serde_json::from_slice(&body).unwrap(),
            cache: answer.cache,
        })
    }

    async fn labels(&self, who: usize) -> Result<Said, crate::model::Error> {
        let policy = CachePolicy::Metadata;
        let mut said = self
            .response(who, "/api/v1/labels", Vec::new(), policy)
            .await?;
        said.json = said.json["data"].take();
        Ok(said)
    }

    /// The values of a field, as the mirror API lists them.
    async fn values(&self, who: usize) -> Result<Said, crate::model::Error> {
        let query = FieldValuesQuery {
            scope: Scope {
                selector: Selector::default(),
                start: None,
                end: None,
                limit: None,
                latest_first: false,
            },
            field: Field {
                name: "x".into(),
                kind: FieldType::String,
                classified: false,
            },
            prefix: String::new(),
            offset: 0,
        };
        let context = self.fleet.context(who);
        let engine = self.engine(who);
        let details = Details::default();
        let answer = engine.field_values(&details, &query, &context);
        let answer = answer.await?;
        let body = answer.encoding.join(answer.body).concat();
        let json: Value = serde_json::from_slice(&body).unwrap();
        let values = json["values"].as_array().unwrap().iter();
        Ok(Said {
            json: values.map(|v| v["value"].clone()).collect(),
            cache: answer.cache,
        })
    }

    fn excused<T>(&self, result: Result<T, crate::model::Error>) -> Option<T> {
        let failing = &self.fleet.members[0].1.source.failing;
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let failing = failing.load(Ordering::SeqCst);
                assert!(failing, "only a failing source is an excuse: {error:?}");
                None
            }
        }
    }

    /// Holds samples, at `times`, to what the source had at most a refresh ago.
    fn check_samples(&self, said: &Said, times: &[Millis], now: Millis) {
        if said.cache.detail.is_some() {
            return;
        }
        let clocks = self.fleet.clocks();
        for series in 0..3 {
            let all = said.json["data"]["result"].as_array().unwrap();
            let name = json!(series.to_string());
            let one = all.iter().find(|s| s["metric"]["s"] == name);
            let samples = one.map(|s| match &s["values"] {
                Value::Null => vec![s["value"].clone()],
                values => values.as_array().unwrap().clone(),
            });
            let samples = samples.unwrap_or_default();
            let mut left = samples.iter().peekable();
            for time in times {
                let at = |s: &Value| (s[0].as_f64().unwrap() * 1000.0).round() as Millis;
                let got = left.next_if(|s| at(s) == *time);
                let got = got.map_or(0, |s| s[1].as_str().unwrap().parse::<i64>().unwrap());
                let old = value(clocks, series, *time, now - REFRESH);
                let new = value(clocks, series, *time, now);
                assert!(
                    (old..=new).contains(&got),
                    "series {series} at {time}: {got} is not within {old}..={new}, now {now}"
                );
            }
            assert_eq!(left.next(), None, "of times that were not asked for");
        }
    }

    fn check_list(&self, said: &Said, now: Millis) {
        if said.cache.detail.is_some() {
            return;
        }
        let changes = self.fleet.clocks().rewritten.lock().unwrap().len();
        let listed: Vec<&str> = said
            .json
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let listed: Vec<&str> = listed.into_iter().filter(|v| !v.is_empty()).collect();
        let of = |v: &&&str| v.starts_with('c');
        let change = listed.iter().find(of).unwrap();
        assert_eq!(**change, format!("c{changes}"), "{listed:?}");
        let seen: Millis = listed.iter().find(|v| !of(v)).unwrap().parse().unwrap();
        let oldest = era(now - 60_000);
        assert!(
            (oldest..=era(now)).contains(&seen),
            "{seen} at {}",
            era(now)
        );
    }
}

#[derive(Clone, Debug)]
enum Op {
    Range(usize, (Millis, Millis), Millis),
    Instant(usize, Option<Millis>),
    Labels(usize),
    Values(usize),
    Other(WorldOp),
}

fn op() -> impl Strategy<Value = Op> {
    let step = prop::sample::select(vec![1000i64, 3000, 15_000]);
    prop_oneof![
        6 => (0usize..5, window(), step).prop_map(|(who, w, step)| Op::Range(who, w, step)),
        4 => (0usize..5, prop::option::of(window()))
            .prop_map(|(who, w)| Op::Instant(who, w.map(|(back, _)| back))),
        2 => (0usize..5).prop_map(Op::Labels),
        2 => (0usize..5).prop_map(Op::Values),
        29 => world_op().prop_map(Op::Other),
    ]
}

async fn obey(ops: &[Op], count: usize, time: Option<Millis>) {
    let mut all = Dashboards::new(count, time);
    for op in ops {
        let now = all.fleet.clocks().truth();
        match op {
            Op::Range(who, (back, len), step) => {
                let grid = Step::new(*step).unwrap();
                let start = grid.floor(now - back - len);
                let end = start + grid.floor(*len);
                let said = all.range(who % count, (start, end, *step)).await;
                let Some(said) = all.excused(said) else {
                    continue;
                };
                let step = usize::try_from(*step).unwrap();
                let times: Vec<Millis> = (start..=end).step_by(step).collect();
                all.check_samples(&said, &times, now);
            }
            Op::Instant(who, back) => {
                let time = back.map(|back| now - back);
                let said = all.instant(who % count, time).await;
                if let Some((said, time)) = all.excused(said) {
                    all.check_samples(&said, &[time], now);
                }
            }
            Op::Labels(who) => {
                let said = all.labels(who % count).await;
                if let Some(said) = all.excused(said) {
                    all.check_list(&said, now);
                }
            }
            Op::Values(who) => {
                let said = all.values(who % count).await;
                if let Some(said) = all.excused(said) {
                    all.check_list(&said, now);
                }
            }
            Op::Other(op) => all.fleet.undergo(op).await,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(histories()))]

    #[test]
    fn dashboards_out_of_a_second_level_show_what_the_source_says(
        ops in prop::collection::vec(op(), 1..40),
        count in 1usize..=5,
        time in prop_oneof![Just(None), (0i64..400).prop_map(Some)],
    ) {
        let count = if time.is_some() { count } else { 1 };
        runtime().block_on(obey(&ops, count, time));
    }
}

const HOUR: Millis = 3_600_000;

#[test]
fn a_dashboard_is_warm_after_a_restart() {
    runtime().block_on(async {
        let mut all = Dashboards::new(1, None);
        let window = |all: &Dashboards| {
            let end = all.fleet.clocks().truth();
            (end / 15_000 * 15_000 - HOUR, end / 15_000 * 15_000, 15_000)
        };
        let old = all.fleet.clocks().truth() - HOUR;
        // It is polled for a while.
        for _ in 0..20 {
            all.range(0, window(&all)).await.unwrap();
            all.instant(0, Some(old)).await.unwrap();
            all.labels(0).await.unwrap();
            all.values(0).await.unwrap();
            all.fleet.clocks().pass(REFRESH + 1000);
        }
        all.fleet.flush().await;
        all.fleet.restart(0);
        all.calls();
        let now = all.fleet.clocks().truth();
        let (start, end, step) = window(&all);
        let said = all.range(0, (start, end, step)).await.unwrap();
        let times: Vec<Millis> = (start..=end).step_by(15_000).collect();
        all.check_samples(&said, &times, now);
        assert_eq!(all.calls().len(), 1, "the tail is fetched");
        assert_eq!(said.cache.lookup, Lookup::Partial);
        assert!(said.cache.second_level);
        // What had settled is there.
        let said = all.range(0, (start, end - HOUR / 2, step)).await.unwrap();
        assert_eq!(said.cache.lookup, Lookup::Hit);
        let (said, _) = all.instant(0, Some(old)).await.unwrap();
        assert!(said.cache.second_level && said.cache.lookup == Lookup::Hit);
        assert_eq!(all.calls(), Vec::<String>::new());
        // Lists are at hand if the source is not.
        all.fleet.undergo(&WorldOp::Failing(true)).await;
        for said in [all.labels(0).await, all.values(0).await] {
            let said = said.unwrap();
            assert!(said.cache.detail.is_some() && said.cache.ttl_seconds < 0);
        }
    });
}

#[test]
fn replicas_share_answers_while_they_are_fresh() {
    runtime().block_on(async {
        let all = Dashboards::new(2, Some(5));
        for who in 0..2 {
            let end = all.fleet.clocks().truth() / 15_000 * 15_000;
            all.range(who, (end - HOUR, end, 15_000)).await.unwrap();
            let (said, _) = all.instant(who, None).await.unwrap();
            assert_eq!(said.cache.second_level, who == 1);
            all.labels(who).await.unwrap();
            all.values(who).await.unwrap();
            assert_eq!(all.calls().len(), if who == 0 { 4 } else { 0 });
            all.fleet.flush().await;
        }
        // A while later nothing is, but what was the newest serves if there is no newer.
        all.fleet.clocks().pass(REFRESH * 2);
        let mut all = all;
        all.fleet.restart(1);
        all.fleet.undergo(&WorldOp::Failing(true)).await;
        let (said, _) = all.instant(1, None).await.unwrap();
        assert!(said.cache.detail.is_some(), "{:?}", said.cache);
    });
}

#[test]
fn what_is_no_answer_is_not_read_as_one() {
    let request = PassthroughRequest {
        path: "/api/v1/query".into(),
        params: Arc::new(vec![
            ("time".into(), "12.5".into()),
            ("query".into(), "x".into()),
        ]),
        body: Bytes::new(),
        headers: Vec::new(),
        json: true,
    };
    let of = |request: &PassthroughRequest| WholeQuery::Response(request.clone());
    let query = StoredQuery::of(&of(&request)).unwrap();
    assert_eq!(query.settled(), Some(Slot::Page(12_500)));
    let later = StoredQuery::of(&of(&request.at_text("13"))).unwrap();
    assert_eq!(later.form, query.form);
    let mut twice = request.clone();
    Arc::make_mut(&mut twice.params).push(("time".into(), "1".into()));
    assert!(StoredQuery::of(&of(&twice)).is_none());
    let mut other = request.clone();
    other.json = false;
    assert_ne!(StoredQuery::of(&of(&other)).unwrap().form, query.form);
    let raw = RawResponse {
        status: StatusCode::OK,
        headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body: Bytes::from_static(b"{\"a\":1}"),
    };
    let content = Content::Response(EncodedResponse::new(Arc::new(raw)));
    let text = text(query.time, StoredPolicy::Settled, &content).unwrap();
    let (head, content) = read(&text, &of(&request)).unwrap();
    assert_eq!(head.time.as_deref(), Some("12.5"));
    let Content::Response(response) = content else {
        panic!("a response");
    };
    assert_eq!(response.raw().body, "{\"a\":1}");
    assert_eq!(response.raw().headers.len(), 1);
    let end = 4 + serde_json::to_vec(&head).unwrap().len();
    for cut in 0..end {
        assert!(read(&text[..cut], &of(&request)).is_none(), "cut at {cut}");
    }
}
