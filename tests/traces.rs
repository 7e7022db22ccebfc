//! Traces as a collector receives them. Tracing can be started only once per process, so these
//! tests are a separate program; each examines the traces of its own requests.
#![cfg(feature = "otlp")]
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::indexing_slicing, clippy::panic)]

#[path = "it/scripted.rs"]
mod scripted;
#[path = "it/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use heliostat::clock::SystemClock;
use heliostat::telemetry::otlp::Export;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use serde_json::{Value, json};

use scripted::{Answer, Scripted, Seen};
use support::{Reply, Server, TestClock};

const NOW: i64 = 1_200_000_000;
const MINUTE: i64 = 60_000;
const OLD: i64 = NOW - 600 * MINUTE;

/// The collector and the exporter, on a runtime that outlives those of the tests.
struct Collector {
    upstream: Scripted,
    export: Arc<Export>,
    _runtime: tokio::runtime::Runtime,
}

static COLLECTOR: LazyLock<Collector> = LazyLock::new(|| {
    let start = || {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let (upstream, export) = runtime.block_on(async {
            let upstream = collector().await;
            let toml = format!(
                "[traces]\nendpoint = \"{}/v1/traces\"\nheaders = {{ X-Token = \"hidden\" }}",
                upstream.url
            );
            let config = heliostat::config::parse(&toml, "test.toml", &BTreeMap::new()).unwrap();
            let clock: Arc<dyn heliostat::clock::Clock> = Arc::new(SystemClock::default());
            let export = heliostat::app::traces::start(&config.traces.unwrap(), &clock);
            (upstream, Arc::new(export.unwrap().unwrap()))
        });
        Collector {
            upstream,
            export,
            _runtime: runtime,
        }
    };
    // A runtime cannot be started within another.
    std::thread::spawn(start).join().unwrap()
});

async fn collector() -> Scripted {
    Scripted::start(TestClock::at(NOW), |_, _| Answer::json(json!({}))).await
}

/// Returns the spans that `collector` received.
fn exported(collector: &Scripted) -> Vec<ResourceSpans> {
    let decoded = collector.seen().into_iter().flat_map(|seen| {
        assert_eq!((&*seen.method, &*seen.path), ("POST", "/v1/traces"));
        assert_eq!(seen.headers["content-type"], "application/x-protobuf");
        ExportTraceServiceRequest::decode(&seen.body[..])
            .unwrap()
            .resource_spans
    });
    decoded.collect()
}

/// Returns the finished spans of the trace `id`, in the order in which they began.
async fn spans(id: &str) -> Vec<Span> {
    let export = COLLECTOR.export.clone();
    let flushed = tokio::task::spawn_blocking(move || export.flush());
    flushed.await.unwrap().unwrap();
    of_trace(exported(&COLLECTOR.upstream), id)
}

fn of_trace(exported: Vec<ResourceSpans>, id: &str) -> Vec<Span> {
    let scopes = exported.into_iter().flat_map(|r| r.scope_spans);
    let spans = scopes.flat_map(|s| s.spans);
    let mut spans: Vec<Span> = spans.filter(|s| hex(&s.trace_id) == id).collect();
    spans.sort_by_key(|s| s.start_time_unix_nano);
    spans
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn attributes(attributes: &[KeyValue]) -> Value {
    let value = |kv: &KeyValue| match kv.value.clone().unwrap().value.unwrap() {
        any_value::Value::StringValue(text) => Value::from(text),
        any_value::Value::IntValue(number) => Value::from(number),
        any_value::Value::BoolValue(flag) => Value::from(flag),
        other => panic!("{other:?}"),
    };
    let pairs = attributes.iter().map(|kv| (kv.key.clone(), value(kv)));
    pairs.collect::<serde_json::Map<_, _>>().into()
}

/// Returns `spans` as lines: the name of each below those of its parents, with its contents.
fn tree(spans: &[Span]) -> Vec<(String, Value)> {
    let path = |span: &Span| {
        let mut names = vec![span.name.clone()];
        let mut at = span;
        while let Some(parent) = spans.iter().find(|s| s.span_id == at.parent_span_id) {
            names.push(parent.name.clone());
            at = parent;
        }
        names.reverse();
        names.join(" > ")
    };
    let line = |span: &Span| (path(span), attributes(&span.attributes));
    spans.iter().map(line).collect()
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().unwrap().code == StatusCode::Error as i32
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|s| s.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {:?}", tree(spans));
    found[0]
}

fn query(start: i64, end: i64) -> Value {
    json!({
        "connectionDetails": {},
        "query": {
            "_type": "MetricsQuery", "startTime": start, "endTime": end,
            "conditions": [{
                "_type": "EqualityCondition", "key": "name",
                "value": { "_type": "StringValue", "value": "secretive_cpu" },
            }],
        },
    })
}

fn points() -> Answer {
    Answer::json(json!({
        "_type": "MetricsResponse",
        "telemetry": {
            "_type": "RawMetricTelemetry", "points": [[1, OLD]],
            "dataFormat": ["value", "timestamp"], "isPartial": false,
        },
    }))
}

/// A Heliostat in front of a script, with an upstream called `name`.
struct Traced {
    server: Server,
    upstream: Scripted,
}

impl Traced {
    async fn start(
        name: &str,
        kind: &str,
        script: impl Fn(usize, &Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        LazyLock::force(&COLLECTOR);
        let clock = TestClock::at(NOW);
        let upstream = Scripted::start(clock.clone(), script).await;
        let toml = format!(
            "[[upstream]]\nname = {name:?}\nkind = {kind:?}\nurls = [{:?}]\nretries = 1\n",
            upstream.url
        );
        let server = Server::start_at(&toml, clock).await;
        Self { server, upstream }
    }

    async fn ask(&self, traceparent: &str) -> Reply {
        let request = self.server.client();
        let request = request.post(format!("{}/api/metric", self.server.url));
        let request = request
            .header("content-type", "application/json")
            .header("traceparent", traceparent)
            .header("tracestate", "a=1")
            .header("tracestate", "b=2");
        let body = query(OLD, OLD + MINUTE).to_string();
        self.server.reply(request.body(body)).await
    }
}

#[tokio::test]
async fn a_miss_is_told_step_by_step_and_a_hit_has_no_attempt() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const CLIENT: &str = "b7ad6b7169203331";
    let traced = Traced::start("steps", "mirror", |_, _| points()).await;
    let reply = traced.ask(&format!("00-{TRACE}-{CLIENT}-01")).await;
    assert_eq!(reply.status, 200);

    let spans_of_miss = spans(TRACE).await;
    let served = one(&spans_of_miss, "mirror metric");
    assert_eq!(hex(&served.parent_span_id), CLIENT);
    assert_eq!(served.kind, SpanKind::Server as i32);
    let attempt = one(&spans_of_miss, "attempt");
    assert_eq!(attempt.kind, SpanKind::Client as i32);
    assert_eq!(
        tree(&spans_of_miss),
        [
            (
                "mirror metric".to_owned(),
                json!({
                    "http.request.method": "POST", "url.path": "/api/metric",
                    "client.address": "127.0.0.1", "http.response.status_code": 200,
                })
            ),
            (
                "mirror metric > plan".to_owned(),
                json!({ "heliostat.held": "miss", "heliostat.missing_ranges": 1 })
            ),
            (
                "mirror metric > fetch".to_owned(),
                json!({ "heliostat.collapsed": false })
            ),
            (
                "mirror metric > fetch > queue".to_owned(),
                json!({ "heliostat.upstream": "steps" })
            ),
            (
                "mirror metric > fetch > attempt".to_owned(),
                json!({
                    "heliostat.upstream": "steps", "heliostat.attempt": 1,
                    "heliostat.hedge": false, "heliostat.outcome": "ok",
                    "http.request.method": "POST", "http.response.status_code": 200,
                    "server.address": "127.0.0.1", "server.port": traced.upstream.port,
                })
            ),
            ("mirror metric > render".to_owned(), json!({})),
        ]
    );
    assert!(!spans_of_miss.iter().any(failed));
    let sent = &traced.upstream.seen()[0].headers;
    let own = hex(&attempt.span_id);
    assert_eq!(sent["traceparent"], format!("00-{TRACE}-{own}-01"));
    assert_eq!(sent["tracestate"], "a=1,b=2");

    const AGAIN: &str = "0af7651916cd43dd8448eb211c80319d";
    traced.ask(&format!("00-{AGAIN}-{CLIENT}-01")).await;
    let paths: Vec<_> = tree(&spans(AGAIN).await).into_iter().collect();
    let hit = json!({ "heliostat.held": "hit", "heliostat.missing_ranges": 0 });
    assert_eq!(paths[1], ("mirror metric > plan".to_owned(), hit));
    assert_eq!(paths[2].0, "mirror metric > render");
    assert_eq!(paths.len(), 3);
}

#[tokio::test]
async fn failed_spans_have_the_status_error() {
    const TRACE: &str = "11111111111111111111111111111111";
    let traced = Traced::start("failing", "mirror", |_, _| Answer {
        status: 500,
        ..Answer::json(json!({ "_type": "MetricStoreConnectionError", "details": "down" }))
    })
    .await;
    let reply = traced.ask(&format!("00-{TRACE}-b7ad6b7169203331-01")).await;
    let all = spans(TRACE).await;
    let attempts: Vec<_> = all.iter().filter(|s| s.name == "attempt").collect();
    let shown = attempts.iter().map(|s| {
        let shown = attributes(&s.attributes);
        let of = |key: &str| shown[key].clone();
        let said = [
            "heliostat.attempt",
            "http.response.status_code",
            "error.type",
        ]
        .map(of);
        (said, failed(s))
    });
    // The store's error is about the query, which is not retried.
    let expected = ([json!(1), json!(500), json!("UpstreamFailed")], true);
    assert_eq!(shown.collect::<Vec<_>>(), [expected]);
    assert!(failed(one(&all, "fetch")));
    let served = one(&all, "mirror metric");
    assert!(failed(served));
    let shown = attributes(&served.attributes);
    assert_eq!(shown["http.response.status_code"], reply.status);
    assert_eq!(shown["error.type"], reply.status.to_string());
}

#[tokio::test]
async fn what_the_client_does_not_record_is_not_recorded() {
    const TRACE: &str = "22222222222222222222222222222222";
    let traced = Traced::start("unsampled", "mirror", |_, _| points()).await;
    let sent = format!("00-{TRACE}-b7ad6b7169203331-00");
    assert_eq!(traced.ask(&sent).await.status, 200);
    assert_eq!(tree(&spans(TRACE).await), []);
    let passed = &traced.upstream.seen()[0].headers;
    assert_eq!(passed["traceparent"], sent);
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one() {
    let traced = Traced::start("roots", "prometheus", |_, _| {
        Answer::json(
            json!({ "status": "success", "data": { "resultType": "matrix", "result": [] } }),
        )
    })
    .await;
    for invalid in [
        None,
        Some("00-00000000000000000000000000000000-b7ad6b7169203331-01"),
    ] {
        let at = traced.upstream.seen().len();
        let (start, end) = (
            OLD / 1000 + at as i64 * 600,
            OLD / 1000 + at as i64 * 600 + 60,
        );
        let path = format!("query_range?query=secretive_cpu&start={start}&end={end}&step=60");
        let request = traced.server.client();
        let request = request.get(format!("{}/api/v1/{path}", traced.server.url));
        let request = invalid
            .into_iter()
            .fold(request, |r, t| r.header("traceparent", t));
        assert_eq!(traced.server.reply(request).await.status, 200);
        let passed = traced.upstream.seen()[at].headers["traceparent"].clone();
        let parts: Vec<&str> = passed.split('-').collect();
        assert_eq!((parts[0], parts[3]), ("00", "01"), "{passed}");
        let all = spans(parts[1]).await;
        let served = one(&all, "prometheus query_range");
        assert_eq!(served.parent_span_id, b"");
        assert_eq!(hex(&one(&all, "attempt").span_id), parts[2]);
        let shown = format!("{:?}", tree(&all));
        assert!(!shown.contains("secretive"), "{shown}");
        assert!(shown.contains("/api/v1/query_range"), "{shown}");
    }
    // Health checks appear in no trace.
    traced.server.get("/healthz").await;
    let named = exported(&COLLECTOR.upstream).into_iter().flat_map(|r| {
        let spans = r.scope_spans.into_iter().flat_map(|s| s.spans);
        spans.map(|s| s.name).collect::<Vec<_>>()
    });
    let named: Vec<_> = named.filter(|n| n.starts_with("admin")).collect();
    assert_eq!(named, Vec::<String>::new());
}

#[tokio::test]
async fn a_span_that_waits_for_another_fetch_links_to_it() {
    const FIRST: &str = "33333333333333333333333333333333";
    const SECOND: &str = "44444444444444444444444444444444";
    let traced = Traced::start("shared", "mirror", |_, _| Answer {
        gate: true,
        ..points()
    })
    .await;
    let (first, second) = (
        format!("00-{FIRST}-b7ad6b7169203331-01"),
        format!("00-{SECOND}-b7ad6b7169203331-01"),
    );
    let joined = async {
        traced.upstream.asked(1).await;
        let opened = async {
            let series = "heliostat_coalesced_requests_total{upstream=\"shared\"}";
            while traced.server.metric(series).await < 1.0 {}
            traced.upstream.open();
        };
        tokio::join!(traced.ask(&second), opened).0
    };
    let both = async { tokio::join!(traced.ask(&first), joined) };
    let (one_reply, other) = tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .expect("it is time");
    assert_eq!((one_reply.status, other.status), (200, 200));
    let (first, second) = (spans(FIRST).await, spans(SECOND).await);
    let (fetch, waited) = (one(&first, "fetch"), one(&second, "fetch"));
    one(&first, "attempt");
    assert!(
        !second
            .iter()
            .any(|s| s.name == "attempt" || s.name == "queue")
    );
    assert_eq!(attributes(&waited.attributes)["heliostat.collapsed"], true);
    assert_eq!(attributes(&fetch.attributes)["heliostat.collapsed"], false);
    assert_eq!(waited.links.len(), 1);
    assert_eq!(waited.links[0].span_id, fetch.span_id);
    assert_eq!(waited.links[0].trace_id, fetch.trace_id);
}

#[tokio::test]
async fn buckets_of_raw_points_are_a_step_of_their_own() {
    const TRACE: &str = "55555555555555555555555555555555";
    let traced = Traced::start("derived", "mirror", |_, _| points()).await;
    let mut asked = query(OLD, OLD + 10 * MINUTE);
    asked["query"]["aggregation"] = json!({ "method": "MAX", "bucketSizeMillis": MINUTE });
    let request = traced.server.client();
    let request = request.post(format!("{}/api/metric", traced.server.url));
    let request = request
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
    let reply = traced.server.reply(request.body(asked.to_string())).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let paths: Vec<String> = tree(&spans(TRACE).await).into_iter().map(|p| p.0).collect();
    assert_eq!(
        paths,
        [
            "mirror metric",
            "mirror metric > plan",
            "mirror metric > derive",
            "mirror metric > derive > plan",
            "mirror metric > derive > fetch",
            "mirror metric > derive > fetch > queue",
            "mirror metric > derive > fetch > attempt",
            "mirror metric > render",
        ]
    );
}

/// A program that does not outlive its test.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        // An error means that it has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program itself: at its end it sends the remaining spans and identifies itself.
#[tokio::test]
async fn the_last_spans_leave_before_the_end() {
    const TRACE: &str = "66666666666666666666666666666666";
    let collector = collector().await;
    let program = Command::new(env!("CARGO_BIN_EXE_heliostat"))
        .args(["--config", "config.toml"])
        .env("HELIOSTAT_SERVER__LISTEN", "127.0.0.1:0")
        .env(
            "HELIOSTAT_TRACES__ENDPOINT",
            format!("{}/v1/traces", collector.url),
        )
        .env("HELIOSTAT_TRACES__HEADERS", "{ X-Token = \"hidden\" }")
        .env("HELIOSTAT_TRACES__SAMPLE", "0")
        .env(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        )
        // Anything exported before the end is exported because of the end.
        .env("OTEL_BSP_SCHEDULE_DELAY", "600000")
        .stderr(Stdio::piped())
        .spawn();
    let mut program = Program(program.unwrap());
    let log = BufReader::new(program.0.stderr.take().unwrap());
    let mut lines = log.lines().map(Result::unwrap);
    let listening = lines.find(|l| l.contains("listening on")).unwrap();
    let url = listening.rsplit_once("listening on ").unwrap().1;
    let url = url.split(' ').next().unwrap();
    let client = heliostat::upstream::Http::builder().build().unwrap();
    for parent in [Some(format!("00-{TRACE}-b7ad6b7169203331-01")), None] {
        let request = client.post(format!("{url}/api/metric"));
        let request = request.header("content-type", "application/json");
        let request = parent
            .into_iter()
            .fold(request, |r, p| r.header("traceparent", p));
        let body = query(OLD, OLD + MINUTE).to_string();
        assert_eq!(request.body(body).send().await.unwrap().status(), 404);
    }
    assert_eq!(collector.seen().len(), 0);
    let killed = Command::new("kill")
        .arg(program.0.id().to_string())
        .status();
    assert!(killed.unwrap().success());
    // The collector answers on this thread.
    let ended = tokio::task::spawn_blocking(move || program.0.wait().unwrap());
    assert!(ended.await.unwrap().success());
    assert_eq!(collector.seen()[0].headers["x-token"], "hidden");
    let exported = exported(&collector);
    let resource = attributes(&exported[0].resource.as_ref().unwrap().attributes);
    assert_eq!(resource["service.name"], "heliostat");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["deployment.environment.name"], "test");
    let all = exported.iter().flat_map(|r| &r.scope_spans);
    let served = all
        .flat_map(|s| &s.spans)
        .filter(|s| s.name == "mirror metric");
    assert_eq!(served.count(), 1, "what begins here is not recorded");
    one(&of_trace(exported, TRACE), "mirror metric");
}
