//! Common parts of responses with data: their encoding, `Cache-Status` and `Server-Timing`.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::{HeaderValue, Response};

use super::body::Body;
use crate::engine::{CacheOutcome, CachedResponse, Lookup, Timing};
use crate::model::Error;
use crate::wire::encoding::Encoding;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Returns a response of JSON in `parts`.
pub(super) fn json(parts: impl IntoIterator<Item = Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::of(parts));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns the response for `answer`.
pub(super) fn cached(answer: CachedResponse) -> Response<Body> {
    let body = answer.encoding.join(answer.body);
    let mut response = encoded(Response::new(Body::of(body)), answer.encoding);
    *response.status_mut() = answer.status;
    for (name, value) in answer.headers {
        response.headers_mut().insert(name, value);
    }
    let response = with_cache(response, &answer.cache);
    with_timing(response, &answer.timing)
}

/// Adds the headers that state the encoding of `response`, and that it depends on what the client
/// accepts.
pub(super) fn encoded(mut response: Response<Body>, encoding: Encoding) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(name) = encoding.name() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    response
}

/// Adds the `Cache-Status` header.
pub(super) fn with_cache(mut response: Response<Body>, cache: &CacheOutcome) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(cache_status(cache))) {
        response.headers_mut().insert(CACHE_STATUS, value);
    }
    response
}

/// The `Cache-Status` of a remembered error of the upstream.
const REMEMBERED: &str = "heliostat; hit; detail=\"error\"";

/// What it says where some of the answer came from the second level of the cache just now.
const SECOND_LEVEL: &str = "; detail=\"second level\"";

/// Adds the `Cache-Status` header to `response`, which says `error`, if the upstream was not asked.
pub(super) fn with_remembered(response: &mut Response<Body>, error: &Error) {
    if error.remembered {
        let value = HeaderValue::from_static(REMEMBERED);
        response.headers_mut().insert(CACHE_STATUS, value);
    }
}

/// Returns the value of `Cache-Status` (RFC 9211) for `cache`.
fn cache_status(cache: &CacheOutcome) -> String {
    if cache.error {
        return REMEMBERED.to_owned();
    }
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
    if let Some(reason) = cache.bypass {
        text.push_str("; fwd=bypass");
        if cache.collapsed {
            text.push_str("; collapsed");
        }
        let _ = write!(text, "; detail=\"{reason}\"");
        return text;
    }
    match cache.lookup {
        Lookup::Hit => {
            text.push_str("; hit; ttl=");
            text.push_str(itoa::Buffer::new().format(cache.ttl_seconds));
            if cache.second_level {
                text.push_str(SECOND_LEVEL);
            }
            return text;
        }
        Lookup::Stale => text.push_str("; fwd=stale"),
        Lookup::Partial => text.push_str("; fwd=partial"),
        Lookup::Miss => text.push_str("; fwd=miss"),
    }
    if cache.stored {
        text.push_str("; stored");
    }
    if cache.collapsed {
        text.push_str("; collapsed");
    }
    if cache.other_buckets {
        text.push_str("; detail=\"the source answered other buckets\"");
    } else if cache.second_level {
        text.push_str(SECOND_LEVEL);
    }
    text
}

/// Adds the `Server-Timing` header (W3C), in milliseconds.
pub(super) fn with_timing(mut response: Response<Body>, timing: &Timing) -> Response<Body> {
    let mut text = String::with_capacity(72);
    for (name, took) in [
        ("plan", timing.plan),
        ("second", timing.second),
        ("fetch", timing.fetch),
        ("render", timing.render),
    ] {
        if name == "second" && took.is_zero() {
            continue;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(name);
        text.push_str(";dur=");
        let mut number = itoa::Buffer::new();
        text.push_str(number.format(took.as_millis()));
        text.push('.');
        // Three digits, behind a leading 1.
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
        let outcome = |lookup, stored, collapsed| CacheOutcome {
            lookup,
            stored,
            collapsed,
            ttl_seconds: 7,
            bypass: None,
            other_buckets: false,
            detail: None,
            error: false,
            second_level: false,
        };
        assert_eq!(
            cache_status(&outcome(Lookup::Hit, false, false)),
            "heliostat; hit; ttl=7"
        );
        assert_eq!(
            cache_status(&outcome(Lookup::Miss, true, false)),
            "heliostat; fwd=miss; stored"
        );
        assert_eq!(
            cache_status(&outcome(Lookup::Partial, true, true)),
            "heliostat; fwd=partial; stored; collapsed"
        );
        let mut found = outcome(Lookup::Hit, false, false);
        found.second_level = true;
        assert_eq!(
            cache_status(&found),
            "heliostat; hit; ttl=7; detail=\"second level\""
        );
        found.lookup = Lookup::Partial;
        assert_eq!(
            cache_status(&found),
            "heliostat; fwd=partial; detail=\"second level\""
        );
        let mut passed = outcome(Lookup::Hit, false, true);
        passed.bypass = Some("at-modifier");
        assert_eq!(
            cache_status(&passed),
            "heliostat; fwd=bypass; collapsed; detail=\"at-modifier\""
        );
        let mut stale = outcome(Lookup::Stale, false, false);
        stale.ttl_seconds = -5;
        stale.detail = Some("it \"broke\"\r\n".into());
        assert_eq!(
            cache_status(&stale),
            "heliostat; hit; ttl=-5; detail=\"it 'broke'  \""
        );
    }
}
