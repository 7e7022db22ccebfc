//! The admin API: the state of upstreams' protection and of the cache, explanations of queries,
//! invalidation, the log level, the configuration and its reload, and the traffic of the last minutes.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::body::Body;
use super::path::allow;
use super::reloads::Reloads;
use super::report::ConfigReport;
use super::respond;
use super::traffic::{MemoryReport, Traffic};
use super::{assets, mirror, prometheus};
use crate::engine::{
    BreakerState, Engine, Explanation, Invalidated, LaneDescription, LaneStats, LevelHoldings,
    LevelReport, Replica, RequestContext, Selection, Upstream,
};
use crate::model::{Error, Kind, Layout, Millis};
use crate::telemetry::logs;
use crate::wire::admin;
use crate::wire::mirror::request::{self, RequestBounds};

/// The prefix of every path of this API.
const ROOT: &str = "/admin/v1/";

/// A call of the admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `upstreams`
    Upstreams,
    /// `cache`
    Cache,
    /// `explain/…`, followed by the path of the request to explain
    Explain,
    /// `invalidate`
    Invalidate,
    /// `log`
    Log,
    /// `reload`
    Reload,
    /// `config`
    Config,
    /// `traffic`
    Traffic,
    /// `replicas`
    Replicas,
}

/// The state of the front that the admin API shows.
pub(super) struct FrontState<'a> {
    /// The handle for reloads, if the configuration can be read again.
    pub(super) reloads: Option<&'a Reloads>,
    /// The configuration in use.
    pub(super) report: &'a ConfigReport,
    /// The traffic of the last minutes.
    pub(super) traffic: &'a Traffic,
    /// The bounds of a request to explain.
    pub(super) bounds: RequestBounds,
}

impl Call {
    /// All calls.
    pub(super) const ALL: [Self; 9] = [
        Self::Replicas,
        Self::Upstreams,
        Self::Cache,
        Self::Explain,
        Self::Invalidate,
        Self::Log,
        Self::Reload,
        Self::Config,
        Self::Traffic,
    ];

    /// Returns its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Upstreams => "upstreams",
            Self::Cache => "cache",
            Self::Explain => "explain",
            Self::Invalidate => "invalidate",
            Self::Log => "log",
            Self::Reload => "reload",
            Self::Config => "config",
            Self::Traffic => "traffic",
            Self::Replicas => "replicas",
        }
    }

    /// Returns the call at `path`, normalized; `None` if it is not of this API.
    pub(super) fn of(path: &str) -> Option<Self> {
        let below = path.strip_prefix(ROOT)?;
        let (name, explained) = match below.split_once('/') {
            None => (below, false),
            Some((name, _)) => (name, true),
        };
        let found = Self::ALL.into_iter().find(|call| call.name() == name)?;
        (explained == (found == Self::Explain)).then_some(found)
    }

    /// Returns the HTTP methods it accepts; an explanation accepts those of the request explained.
    pub(super) fn methods(self) -> &'static [Method] {
        match self {
            Self::Upstreams | Self::Cache | Self::Config | Self::Traffic | Self::Replicas => {
                &[Method::GET, Method::HEAD]
            }
            Self::Explain => &[Method::GET, Method::HEAD, Method::POST],
            Self::Invalidate | Self::Reload => &[Method::POST],
            Self::Log => &[Method::GET, Method::HEAD, Method::PUT],
        }
    }

    /// Returns whether it changes something if it is called with `method`.
    pub(super) fn changes(self, method: &Method) -> bool {
        match self {
            Self::Invalidate | Self::Reload => true,
            Self::Log => *method == Method::PUT,
            Self::Upstreams
            | Self::Cache
            | Self::Explain
            | Self::Config
            | Self::Traffic
            | Self::Replicas => false,
        }
    }

    /// Checks that it accepts `method`.
    pub(super) fn check(self, method: &Method) -> Result<(), Error> {
        allow(method, self.methods())
    }
}

/// Answers a request with this `head` and `body` for `path`, normalized.
pub(super) async fn answer(
    engine: &Arc<Engine>,
    known: &FrontState<'_>,
    call: Call,
    path: &str,
    head: &Parts,
    body: Bytes,
    context: RequestContext,
) -> Result<Response<Body>, Error> {
    // What changes seldom, and is asked for again and again by the page, has a validator.
    let mut validator = None;
    let said = match call {
        Call::Upstreams => {
            let one = |upstream: &Arc<Upstream>| state(upstream, known.report, context.wall);
            let upstreams: Vec<Value> = engine.upstreams().iter().map(one).collect();
            json!({ "upstreams": upstreams }).to_string()
        }
        Call::Cache => {
            let engine = engine.clone();
            blocking(move || cache(&engine)).await?.to_string()
        }
        Call::Replicas => replicas(engine).to_string(),
        Call::Explain => {
            let path = path.get(ROOT.len() + Call::Explain.name().len()..);
            let explained = explain(
                engine,
                path.unwrap_or_default(),
                head,
                body,
                known.bounds,
                context,
            )
            .await?;
            // Serialized directly: a tree would lose the order of members.
            serde_json::to_string(&explained).map_err(|e| internal(&e))?
        }
        Call::Invalidate => {
            let asked = admin::read_invalidate(&body)?;
            invalidate(engine, asked).await?.to_string()
        }
        Call::Log => {
            if head.method == Method::PUT {
                logs::set_level(admin::read_level(&body)?);
            }
            json!({ "level": logs::level().map(admin::level_name) }).to_string()
        }
        Call::Reload => reload(known.reloads).await?.to_string(),
        Call::Config => {
            let reload = known.report.reload.as_ref().map_or(0, |reload| reload.time);
            validator = Some(format!("W/\"{:x}-{reload:x}\"", known.report.read_time));
            serde_json::to_string(known.report).map_err(|e| internal(&e))?
        }
        Call::Traffic => {
            let (bytes, bound) = engine.weight();
            let memory = MemoryReport { bytes, bound };
            let rendered = known
                .traffic
                .rendered(memory, || levels(engine), engine.upstreams());
            let (traffic, begun) = rendered.map_err(|e| internal(&e))?;
            let response = respond::json([traffic]);
            return Ok(validated(response, &format!("W/\"{begun:x}\""), head));
        }
    };
    let response = respond::json([Bytes::from(said)]);
    Ok(match validator {
        Some(tag) => validated(response, &tag, head),
        None => response,
    })
}

/// Returns `response` with its validator `tag`, or without a body if the client has what it stands for.
fn validated(mut response: Response<Body>, tag: &str, head: &Parts) -> Response<Body> {
    let Ok(tag) = HeaderValue::from_str(tag) else {
        return response;
    };
    if assets::known(&head.headers, &tag) {
        response = Response::new(Body::default());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ETAG, tag);
    response
}

/// Runs `work`, whose time grows with the cache, off the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| internal(&e))
}

fn internal(error: &dyn std::error::Error) -> Error {
    Error::new(Kind::Internal, error.to_string())
}

fn state(upstream: &Upstream, report: &ConfigReport, now: Millis) -> Value {
    let mut configured = report.upstreams.iter();
    let configured = configured.find(|u| u.name == upstream.name());
    json!({
        "upstream": upstream.name(),
        "kind": configured.map(|u| u.kind),
        "default": configured.is_some_and(|u| u.default),
        "failure": upstream.metrics.failure(),
        "state": upstream.client.state(now),
    })
}

fn cache(engine: &Engine) -> Value {
    let cache_stats = engine.cache_stats().into_iter().map(|held| {
        json!({
            "upstream": held.upstream.name(),
            "bytes": held.bytes,
            "chunks": held.chunks,
            "lanes": held.lanes,
            "hottest": held.hottest.iter().map(hot).collect::<Vec<_>>(),
        })
    });
    json!({
        "upstreams": cache_stats.collect::<Vec<_>>(),
        "levels": levels(engine),
    })
}

/// Returns the states of the second levels of the cache, in the order in which they are asked.
fn levels(engine: &Engine) -> Vec<Value> {
    engine.levels().iter().map(level).collect()
}

/// Returns the state of a second level of the cache.
fn level(level: &LevelReport) -> Value {
    let LevelReport {
        name,
        shared,
        usable,
        holdings,
        queue_bytes,
        reads,
        writes,
        clock_error,
        replicas,
    } = level;
    let breaker = |state: &BreakerState| json!({ "open": state.open, "of": state.of, "failure": state.failure });
    let mut said = Map::new();
    let mut say = |name: &str, value: Value| said.insert(name.to_owned(), value);
    say("level", json!(name));
    say("shared", json!(shared));
    say("usable", json!(usable));
    say("queueBytes", json!(queue_bytes));
    let breakers = json!({ "read": breaker(reads), "write": breaker(writes) });
    say("breakers", breakers);
    if let Some(LevelHoldings {
        bytes,
        limit,
        values,
    }) = holdings
    {
        say("bytes", json!(bytes));
        say("limitBytes", json!(limit));
        say("values", json!(values));
    }
    if *shared {
        say(
            "clockErrorSeconds",
            json!(clock_error.map(|e| e.as_secs_f64())),
        );
        say("liveReplicas", json!(replicas));
    }
    Value::Object(said)
}

fn hot(lane: &LaneStats) -> Value {
    let mut said = Map::new();
    let mut say = |name: &str, value: Value| said.insert(name.to_owned(), value);
    match &lane.series {
        LaneDescription::Metric { selector, layout } => {
            say("conditions", request::conditions_json(selector));
            if let Layout::Buckets { statistic, size } = layout {
                let method = request::method_name(*statistic);
                let size = size.millis();
                let aggregation = json!({ "method": method, "bucketSizeMillis": size });
                say("aggregation", aggregation);
            }
        }
        LaneDescription::Expression { query, step } => {
            say("query", json!(query));
            say("stepMillis", json!(step));
        }
    }
    say("answers", json!(lane.answers));
    say("bytes", json!(lane.bytes));
    Value::Object(said)
}

/// Explains how a request for `path`, of another API, would be answered.
async fn explain(
    engine: &Arc<Engine>,
    path: &str,
    head: &Parts,
    body: Bytes,
    bounds: RequestBounds,
    mut context: RequestContext,
) -> Result<Explanation, Error> {
    if let Some(method) = mirror::Method::of(path) {
        allow(&head.method, &mirror::METHODS)?;
        return mirror::explain(engine, method, body, bounds, context).await;
    }
    let Some(endpoint) = prometheus::ApiEndpoint::of(path) else {
        let message = format!(
            "{path:.100?} cannot be explained; append the path of a query to {ROOT}explain"
        );
        return Err(Error::new(Kind::PathNotFound, message));
    };
    let asked = prometheus::asked(engine, endpoint, head, path, body, &mut context).await?;
    match asked {
        (upstream, prometheus::Asked::Range(request)) => {
            engine.explain_range(&upstream, request, &context).await
        }
        (upstream, prometheus::Asked::Whole { question, keep, .. }) => {
            let explained = engine.explain_response(&upstream, question, &keep, &context);
            Ok(explained.await)
        }
    }
}

/// Returns who shares a level of the cache with this process.
fn replicas(engine: &Engine) -> Value {
    let replicas = engine.replicas();
    let shared = replicas.is_some();
    let one = |replica: &Replica| {
        let Replica {
            name,
            version,
            this,
            heard,
            live,
            applied: _,
        } = replica;
        json!({
            "name": name,
            "version": version,
            "this": this,
            "live": live,
            "heardSeconds": heard.as_secs_f64(),
        })
    };
    let replicas = replicas.iter().flat_map(|replicas| replicas.iter());
    json!({ "shared": shared, "replicas": replicas.map(one).collect::<Vec<_>>() })
}

async fn invalidate(engine: &Arc<Engine>, asked: admin::Invalidate) -> Result<Value, Error> {
    let admin::Invalidate {
        upstream,
        selector,
        query,
        range,
    } = asked;
    let found = engine.registry().named(Some(&upstream)).ok_or_else(|| {
        let names: Vec<_> = engine.upstreams().iter().map(|u| u.name()).collect();
        let message = format!("no such upstream; the upstreams are {}", names.join(", "));
        Error::invalid("upstream", message)
    })?;
    let selection = Selection {
        selector,
        query,
        range,
    };
    let invalidated = engine.invalidate_everywhere(found, selection).await;
    let invalidated = invalidated.map_err(|e| {
        let message = format!(
            "memory is invalidated, but the second level of the cache may bring back what it has: {e}; try again"
        );
        Error::new(Kind::Internal, message)
    })?;
    let Invalidated { chunks, replicas } = invalidated;
    tracing::info!(upstream, chunks, "invalidated by an admin call");
    let mut said = json!({ "upstream": upstream, "chunks": chunks });
    if let (Some((applied, of)), Some(said)) = (replicas, said.as_object_mut()) {
        said.insert("replicas".into(), json!({ "applied": applied, "of": of }));
    }
    Ok(said)
}

async fn reload(reloads: Option<&Reloads>) -> Result<Value, Error> {
    let none = || {
        let message = "this server has no configuration file to read again";
        Error::invalid("$", message)
    };
    let outcome = reloads.ok_or_else(none)?.ask().await.ok_or_else(none)?;
    let applied = outcome.map_err(|e| Error::invalid("configuration", e))?;
    serde_json::to_value(applied).map_err(|e| internal(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_calls() {
        for (path, call) in [
            ("/admin/v1/upstreams", Some(Call::Upstreams)),
            ("/admin/v1/explain/api/metric", Some(Call::Explain)),
            ("/admin/v1/explain", None),
            ("/admin/v1/cache/x", None),
            ("/admin/v1/nothing", None),
            ("/admin/v1", None),
            ("/api/metric", None),
        ] {
            assert_eq!(Call::of(path), call, "{path}");
        }
    }

    #[test]
    fn calls_have_methods() {
        assert!(Call::Log.check(&Method::PUT).is_ok());
        let error = Call::Reload.check(&Method::GET).unwrap_err();
        assert_eq!(error.subject.as_deref(), Some("POST"));
    }
}
