//! Prometheus' HTTP API in front of the upstreams of its kind: `/api/v1/…` of the default upstream,
//! `/prometheus/NAME/api/v1/…` of any.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use super::body::Body;
pub(super) use super::endpoint::ApiEndpoint;
use super::endpoint::{EXTENSIONS, split, takes_form};
use super::respond::{cached, json, with_remembered};
use super::status::{add_advice, prometheus_status};
use crate::engine::{
    CachePolicy, Engine, Evaluation, PassthroughRequest, RangeRequest, RequestContext, Upstream,
};
use crate::model::{Error, Kind, Millis, SharedText, Step};
use crate::promql::{Analysis, ExpressionFacts};
use crate::wire::prometheus::{InstantQuery, Params, RangeQuery, write_error};

/// Headers that select a tenant: Mimir's, which Cortex, Loki and VictoriaMetrics' companions read too,
/// and that of Thanos. They are passed on and are part of the cache key. No other header that identifies
/// the client is passed on: `Authorization` and `Cookie` are between the client and Heliostat; upstreams
/// get their configured `headers`.
const TENANT: [HeaderName; 2] = [
    HeaderName::from_static("x-scope-orgid"),
    HeaderName::from_static("thanos-tenant"),
];

/// The longest value of a header that is passed on, in bytes.
const LONGEST_HEADER: usize = 256;

/// Longer requests, in bytes of parameters and body, are read off the threads that serve connections, as an
/// expression may take a millisecond then.
const LONG: usize = 12 << 10;

/// Headers that describe a body other than a form.
const OF_BODY: [HeaderName; 3] = [
    CONTENT_TYPE,
    CONTENT_ENCODING,
    HeaderName::from_static("x-prometheus-remote-read-version"),
];

/// The CORS headers of Prometheus (`corsHeaders` in its `util/httputil/cors.go`).
const CORS: [(&str, &str); 4] = [
    (
        "access-control-allow-headers",
        "Accept, Authorization, Cache-Control, Content-Type, Origin, X-Scope-OrgID, THANOS-TENANT",
    ),
    ("access-control-allow-methods", "GET, POST, OPTIONS"),
    ("access-control-allow-origin", "*"),
    (
        "access-control-expose-headers",
        "Date, Cache-Status, Server-Timing, Retry-After, X-MIRROR-API-KEY",
    ),
];

/// The headers that an answer depends on.
const VARIES: HeaderValue =
    HeaderValue::from_static("accept-encoding, origin, x-scope-orgid, thanos-tenant");

/// A request, read.
#[derive(Clone)]
pub(super) enum Asked {
    /// A range query whose values are cached by evaluation time.
    Range(RangeRequest),
    /// A whole answer.
    Whole {
        method: Method,
        question: PassthroughRequest,
        keep: CachePolicy,
        /// Of an instant query, the range query for its one time, if its values are the same.
        lane: Option<RangeRequest>,
    },
}

/// Reads a request with this `head` and `body`, and finds its upstream. The client's own timeout
/// shortens the deadline of `context`.
pub(super) async fn asked(
    engine: &Arc<Engine>,
    endpoint: ApiEndpoint,
    head: &Parts,
    path: &str,
    body: Bytes,
    context: &mut RequestContext,
) -> Result<(Arc<Upstream>, Asked), Error> {
    if body.len() + head.uri.query().map_or(0, str::len) <= LONG {
        return read(engine, endpoint, head, path, &body, context);
    }
    let (engine, path, mut within) = (engine.clone(), path.to_owned(), context.clone());
    let mut asking = Parts::clone(head);
    asking.extensions = http::Extensions::new();
    let reading = move || {
        let asked = read(&engine, endpoint, &asking, &path, &body, &mut within);
        (asked, within.deadline)
    };
    // Boxed, so that no other request carries its state.
    let (asked, deadline) = Box::pin(crate::work::elsewhere(reading))
        .await
        .map_err(|e| Error::new(Kind::Internal, format!("reading the request failed: {e}")))?;
    context.deadline = deadline;
    asked
}

/// Does so in this thread.
fn read(
    engine: &Engine,
    endpoint: ApiEndpoint,
    head: &Parts,
    path: &str,
    body: &Bytes,
    context: &mut RequestContext,
) -> Result<(Arc<Upstream>, Asked), Error> {
    endpoint.check(&head.method)?;
    let Some((name, below)) = split(path) else {
        return Err(Error::new(Kind::PathNotFound, "no such path"));
    };
    let upstream = engine.prometheus(name)?;
    let form = !body.is_empty() && is_form(&head.headers);
    let mut params = params(&upstream, endpoint, head, form.then_some(body))?;
    let (mut lane, mut expression) = (None, None);
    let keep = match endpoint {
        ApiEndpoint::QueryRange => {
            let mut query = RangeQuery::read(&mut params)?;
            within(context, query.timeout);
            let facts = engine.expression(&mut query.query);
            match cacheable(&facts, &query) {
                Ok(lag) => {
                    let headers = picked(&head.headers, &TENANT)?;
                    let request = RangeRequest {
                        query,
                        lag,
                        headers,
                    };
                    return Ok((upstream, Asked::Range(request)));
                }
                Err(reason) => {
                    expression = Some(query.query);
                    CachePolicy::NoStore(reason)
                }
            }
        }
        ApiEndpoint::Query => {
            let mut asked = InstantQuery::read(&mut params)?;
            within(context, asked.timeout);
            let facts = engine.expression(&mut asked.query);
            expression = Some(asked.query.clone());
            // The client's own limit is not part of the answer.
            params.remove("timeout");
            match engine.evaluation(&upstream, asked.time, context) {
                None => CachePolicy::Short,
                Some(Evaluation { time, newest }) => {
                    // In one spelling for all clients.
                    params.set_time("time", time);
                    lane = lane_of(&facts, asked, time, picked(&head.headers, &TENANT)?);
                    CachePolicy::AtTime {
                        reads: facts.reads,
                        time,
                        newest,
                    }
                }
            }
        }
        ApiEndpoint::Labels | ApiEndpoint::LabelValues | ApiEndpoint::Series => {
            let selectors = engine.selectors(params.take_all("match[]"));
            params.replace("match[]", selectors);
            let (start, end) = (params.time_at("start"), params.time_at("end"));
            let (start, end) = engine.metadata_window(&upstream, start, end);
            for (name, time) in [("start", start), ("end", end)] {
                if let Some(time) = time {
                    params.set_time(name, time);
                }
            }
            CachePolicy::Metadata
        }
        ApiEndpoint::Metadata | ApiEndpoint::Status => CachePolicy::Metadata,
        ApiEndpoint::FormatQuery | ApiEndpoint::ParseQuery => CachePolicy::Settled,
        ApiEndpoint::QueryExemplars
        | ApiEndpoint::Rules
        | ApiEndpoint::Alerts
        | ApiEndpoint::Targets => CachePolicy::Short,
        ApiEndpoint::Read => CachePolicy::NoStore("remote-read"),
        ApiEndpoint::Refused | ApiEndpoint::Stream | ApiEndpoint::Other => {
            CachePolicy::NoStore("unknown-endpoint")
        }
    };
    let keep = match params.get("trace") {
        "" | "0" => keep,
        // A trace belongs to one evaluation.
        _ => CachePolicy::NoStore("trace"),
    };
    let raw = !form && !body.is_empty();
    let mut headers = picked(&head.headers, &TENANT)?;
    if raw {
        headers.extend(picked(&head.headers, &OF_BODY)?);
    }
    let question = PassthroughRequest {
        path: below.to_owned(),
        params: Arc::new(shared(params, expression)),
        // A copy: a slice would hold the whole buffer of the request.
        body: if raw {
            Bytes::copy_from_slice(body)
        } else {
            Bytes::new()
        },
        headers,
        json: !matches!(endpoint, ApiEndpoint::Read | ApiEndpoint::Other),
    };
    // The upstream may accept no target as long as that.
    let by_form = head.method == Method::POST || (question.length() > LONG && takes_form(path));
    let method = match by_form {
        true => Method::POST,
        false => Method::GET,
    };
    let whole = Asked::Whole {
        method,
        question,
        keep,
        lane,
    };
    Ok((upstream, whole))
}

/// Returns `params` ordered by name, with `expression` as that of the first name `query`, which has been taken
/// out.
fn shared(params: Params, mut expression: Option<SharedText>) -> Vec<(String, SharedText)> {
    let sorted = params.sorted().into_iter();
    let shared = sorted.map(|(name, value)| match name.as_str() {
        "query" => {
            let text = expression.take().unwrap_or_else(|| value.into());
            (name, text)
        }
        _ => (name, value.into()),
    });
    shared.collect()
}

/// Reads the parameters of a request that `endpoint` of `upstream` knows.
fn params(
    upstream: &Upstream,
    endpoint: ApiEndpoint,
    head: &Parts,
    form: Option<&Bytes>,
) -> Result<Params, Error> {
    let more = &upstream.reading.parameters;
    let known = endpoint.parameters();
    Params::read(head.uri.query(), form.map(|form| &form[..]), |name| {
        known.is_none_or(|known| {
            known.contains(&name) || EXTENSIONS.contains(&name) || more.iter().any(|m| m == name)
        })
    })
}

/// Answers what `upstream` was asked.
pub(super) async fn answer(
    engine: &Arc<Engine>,
    upstream: &Arc<Upstream>,
    asked: Asked,
    context: RequestContext,
) -> Result<Response<Body>, Error> {
    match asked {
        Asked::Range(request) => {
            let answer = engine.query_range(upstream, request, &context);
            Ok(cached(answer.await?))
        }
        Asked::Whole {
            method,
            question,
            keep,
            lane,
        } => {
            let answer = engine.pass_through(upstream, method, question, keep, lane, &context);
            Ok(cached(answer.await?))
        }
    }
}

/// Returns the range query for `time` alone whose values are the answer to the instant query `asked`, if
/// there is one: its order means nothing, it is a vector, and all of it is asked for.
fn lane_of(
    facts: &ExpressionFacts,
    asked: InstantQuery,
    time: Millis,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> Option<RangeRequest> {
    let query = RangeQuery {
        query: asked.query,
        start: time,
        end: time,
        step: Step::MILLI,
        timeout: None,
        carried: asked.carried,
        other: asked.other,
    };
    // Functions such as `sort` and `topk` order the answer to an instant query only.
    if !facts.vector || facts.ordered {
        return None;
    }
    let lag = cacheable(facts, &query).ok()?;
    Some(RangeRequest {
        query,
        lag,
        headers,
    })
}

/// The last millisecond that a 64-bit number of nanoseconds reaches: in the year 2262, and, negative,
/// in 1677.
const LAST_NANOS: Millis = i64::MAX / 1_000_000;

/// Returns the lag of `query`'s values behind their evaluation times if they may be cached one by one;
/// else the reason why not.
fn cacheable(facts: &ExpressionFacts, query: &RangeQuery) -> Result<Millis, &'static str> {
    if query.start < -LAST_NANOS || query.end > LAST_NANOS {
        // Prometheus answers for other times than requested then.
        return Err("beyond-nanoseconds");
    }
    if !query.carried.stats.is_empty() {
        // Statistics belong to one evaluation.
        return Err("stats");
    }
    let traced = |(name, value): &(String, String)| name == "trace" && value != "0";
    if query.other.iter().any(traced) {
        // So do traces.
        return Err("trace");
    }
    if !matches!(query.carried.limit.as_str(), "" | "0") {
        // The window decides which series are left out.
        return Err("limit");
    }
    match facts.analysis {
        Analysis::PerInstant { lag } => Ok(lag),
        Analysis::PassThrough(reason) => Err(reason.as_str()),
    }
}

/// Returns the response for `error`: the upstream's own, if it answered one that the client can read.
fn error_response(error: &Error) -> Response<Body> {
    let mut response = match &error.said {
        Some(said) => {
            let mut response = Response::new(Body::from(said.body.clone()));
            *response.status_mut() = said.status;
            set(&mut response, &said.headers);
            response
        }
        None => {
            let mut response = json([write_error(error)]);
            *response.status_mut() = prometheus_status(error.kind);
            response
        }
    };
    with_remembered(&mut response, error);
    add_advice(&mut response, error);
    response
}

/// Returns the whole response for `error`; `browser` is whether the request had an `Origin`.
pub(super) fn refused(error: &Error, browser: bool) -> Response<Body> {
    let mut response = error_response(error);
    finish(&mut response, browser);
    response
}

/// Returns the answer to a CORS preflight request.
pub(super) fn options() -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Adds the headers of every answer of the API; `browser` is whether the request had an `Origin`.
pub(super) fn finish(response: &mut Response<Body>, browser: bool) {
    let headers = response.headers_mut();
    headers.insert(VARY, VARIES);
    let cors = CORS.into_iter().filter(|_| browser);
    headers.extend(cors.map(|(name, value)| {
        let name = HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    }));
}

fn set(response: &mut Response<Body>, headers: &[(HeaderName, HeaderValue)]) {
    for (name, value) in headers {
        response.headers_mut().insert(name, value.clone());
    }
}

/// Returns those of `names` that `headers` hold, in copies of their own: a part of the head would
/// keep all of it in memory.
fn picked(
    headers: &HeaderMap,
    names: &[HeaderName],
) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
    let mut picked = Vec::new();
    for name in names {
        let Some(value) = headers.get(name) else {
            continue;
        };
        let length = value.len();
        if length > LONGEST_HEADER {
            let message = format!(
                "the header {name} is {length} bytes long; at most {LONGEST_HEADER} are allowed"
            );
            return Err(Error::invalid(name.as_str(), message));
        }
        if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
            picked.push((name.clone(), copy));
        }
    }
    // They are a part of keys.
    picked.shrink_to_fit();
    Ok(picked)
}

/// Shortens the deadline of `context` to the client's own timeout.
fn within(context: &mut RequestContext, timeout: Option<Duration>) {
    let limit = timeout.and_then(|t| tokio::time::Instant::now().checked_add(t));
    context.deadline = limit.map_or(context.deadline, |limit| context.deadline.min(limit));
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind: Cow<'_, str> = kind.map_or(Cow::Borrowed(""), String::from_utf8_lossy);
    let essence = kind.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_has_an_order_is_no_column_of_a_range_query() {
        let has_lane = |text: &str| {
            let query = format!("query={}", text.replace(' ', "+"));
            let mut params = Params::read(Some(&query), None, |_| true).unwrap();
            let asked = InstantQuery::read(&mut params).unwrap();
            let facts = crate::promql::read(&asked.query);
            lane_of(&facts, asked, 1000, Vec::new()).is_some()
        };
        assert!(has_lane("up") && has_lane("sum by (sort) (up)"));
        for text in ["topk(3, up)", "TOPK(3, up offset %2B5m)", "sort(up)"] {
            assert!(!has_lane(text), "{text}");
        }
    }

    #[test]
    fn forms_are_known_by_their_type() {
        let form = |kind: &'static str| {
            is_form(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static(kind),
            )]))
        };
        assert!(form("Application/X-WWW-Form-URLencoded; charset=utf-8"));
        assert!(!form("application/json"));
        assert!(!is_form(&HeaderMap::new()));
    }
}
