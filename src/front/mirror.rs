//! The mirror API's four methods.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::{HeaderValue, Response};

use super::body::Body;
use crate::engine::{CacheOutcome, Context, Engine, Held, Timing};
use crate::model::{Details, Error, Kind, Origin};
use crate::wire::encoding::{Encoding, Text};
use crate::wire::{request, response};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A method of the mirror API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `/api/connection`
    Connection,
    /// `/api/field/name`
    FieldNames,
    /// `/api/field/value`
    FieldValues,
    /// `/api/metric`
    Metric,
}

impl Method {
    /// Its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::FieldNames => "field_name",
            Self::FieldValues => "field_value",
            Self::Metric => "metric",
        }
    }
}

/// Answers a request with this `body`.
pub(super) async fn answer(
    engine: &Arc<Engine>,
    method: Method,
    body: &[u8],
    context: Context,
) -> Result<Response<Body>, Error> {
    match method {
        Method::Connection => {
            let asked = request::read_connection(body)?;
            let context = within(context, &asked.details);
            let failure = match engine.test(&asked.details, &context).await {
                Ok(()) => None,
                // Whom we may not or cannot ask is an error; who fails is an answer.
                Err(e) if e.kind.origin() == Origin::Client && e.kind != Kind::MetricNotFound => {
                    return Err(e);
                }
                Err(e) => Some(e.to_string()),
            };
            Ok(json([Bytes::from(response::write_connection(
                failure.as_deref(),
            ))]))
        }
        Method::FieldNames => {
            let asked = request::read_field_names(body)?;
            let context = within(context, &asked.details);
            let listed = engine
                .field_names(&asked.details, &asked.query, &context)
                .await?;
            let (fields, partial) = listed.list;
            let body = response::write_field_names(&fields, partial);
            Ok(with_cache(
                list(body, context.encoding).await?,
                &listed.cache,
            ))
        }
        Method::FieldValues => {
            let asked = request::read_field_values(body)?;
            let context = within(context, &asked.details);
            let listed = engine
                .field_values(&asked.details, &asked.query, &context)
                .await?;
            let body = response::write_field_values(&listed.list);
            Ok(with_cache(
                list(body, context.encoding).await?,
                &listed.cache,
            ))
        }
        Method::Metric => {
            let asked = request::read_metric(body)?;
            let context = within(context, &asked.details);
            let answer = engine.metric(&asked.details, asked.query, &context).await?;
            let head = Bytes::from_static(response::METRIC_HEAD);
            let tail = response::metric_tail(answer.aggregated, answer.partial);
            let tail = Bytes::from_static(tail);
            let points = answer.points.into_iter();
            let parts = std::iter::once(Text::Plain(head))
                .chain(points)
                .chain([Text::Plain(tail)]);
            let response = json(answer.encoding.join(parts));
            let response = with_cache(encoded(response, answer.encoding), &answer.cache);
            Ok(with_timing(response, &answer.timing))
        }
    }
}

/// `context` with the client's own limit, where that is shorter.
fn within(mut context: Context, details: &Details) -> Context {
    if let Some(timeout) = details.timeout {
        let limit = tokio::time::Instant::now() + timeout;
        context.deadline = context.deadline.min(limit);
    }
    context
}

fn json(parts: impl IntoIterator<Item = Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::of(parts));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A list of names or values, which may be long; it is packed if it is.
async fn list(body: Vec<u8>, encoding: Encoding) -> Result<Response<Body>, Error> {
    const WORTH_PACKING: usize = 8 << 10;
    const BLOCKING: usize = 64 << 10;
    let text = Bytes::from(body);
    let plain = text.clone();
    let pack = move || encoding.pack(&plain);
    let packed = match text.len() {
        ..WORTH_PACKING => None,
        WORTH_PACKING..BLOCKING => pack(),
        _ => tokio::task::spawn_blocking(pack)
            .await
            .map_err(|e| Error::new(Kind::Internal, format!("packing failed: {e}")))?,
    };
    Ok(match packed {
        Some(packed) => encoded(json(encoding.join([Text::Packed(packed)])), encoding),
        None => encoded(json([text]), Encoding::Identity),
    })
}

/// Says how `response` is encoded, and that this depends on what the client accepts.
fn encoded(mut response: Response<Body>, encoding: Encoding) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(name) = encoding.name() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    response
}

fn with_cache(mut response: Response<Body>, cache: &CacheOutcome) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(cache_status(cache))) {
        response.headers_mut().insert(CACHE_STATUS, value);
    }
    response
}

/// The `Cache-Status` header (RFC 9211) for `cache`.
fn cache_status(cache: &CacheOutcome) -> String {
    let mut text = String::with_capacity(64);
    text.push_str("heliostat");
    if let Some(detail) = &cache.detail {
        let quoted: String = detail
            .chars()
            .map(|c| match c {
                '"' | '\\' => '\'',
                c if c.is_ascii() && !c.is_ascii_control() => c,
                _ => ' ',
            })
            .take(300)
            .collect();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "; hit; ttl={}; detail=\"{quoted}\"",
            cache.ttl_seconds
        );
        return text;
    }
    match cache.held {
        Held::Hit => {
            text.push_str("; hit; ttl=");
            text.push_str(itoa::Buffer::new().format(cache.ttl_seconds));
            return text;
        }
        Held::Stale => text.push_str("; fwd=stale"),
        Held::Partial => text.push_str("; fwd=partial"),
        Held::Miss => text.push_str("; fwd=miss"),
    }
    if cache.stored {
        text.push_str("; stored");
    }
    if cache.collapsed {
        text.push_str("; collapsed");
    }
    text
}

/// Adds the `Server-Timing` header (W3C), in milliseconds.
fn with_timing(mut response: Response<Body>, timing: &Timing) -> Response<Body> {
    let mut text = String::with_capacity(72);
    for (name, took) in [
        ("plan", timing.plan),
        ("fetch", timing.fetch),
        ("render", timing.render),
    ] {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name);
        text.push_str(";dur=");
        let mut number = itoa::Buffer::new();
        text.push_str(number.format(took.as_millis()));
        text.push('.');
        // Three digits: what stands before the first is a 1.
        let fraction = number.format(1000 + took.subsec_micros() % 1000);
        text.push_str(fraction.get(1..).unwrap_or_default());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        response.headers_mut().insert(SERVER_TIMING, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_status_says_what_the_cache_did() {
        let outcome = |held, stored, collapsed| CacheOutcome {
            held,
            stored,
            collapsed,
            ttl_seconds: 7,
            detail: None,
        };
        assert_eq!(
            cache_status(&outcome(Held::Hit, false, false)),
            "heliostat; hit; ttl=7"
        );
        assert_eq!(
            cache_status(&outcome(Held::Miss, true, false)),
            "heliostat; fwd=miss; stored"
        );
        assert_eq!(
            cache_status(&outcome(Held::Partial, true, true)),
            "heliostat; fwd=partial; stored; collapsed"
        );
        let mut stale = outcome(Held::Stale, false, false);
        stale.ttl_seconds = -5;
        stale.detail = Some("it \"broke\"\r\n".into());
        assert_eq!(
            cache_status(&stale),
            "heliostat; hit; ttl=-5; detail=\"it 'broke'  \""
        );
    }
}
