//! What responses with data have in common: their encoding, `Cache-Status` and `Server-Timing`.

use std::fmt::Write;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::{HeaderValue, Response};

use super::body::Body;
use crate::engine::{CacheOutcome, Lookup, Timing};
use crate::model::{Error, Kind};
use crate::wire::encoding::{Encoding, Text};

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

/// Returns a response of `text`, JSON, compressed if it is long.
pub(super) async fn packed(
    text: impl Into<Bytes>,
    encoding: Encoding,
) -> Result<Response<Body>, Error> {
    const WORTH_PACKING: usize = 8 << 10;
    const BLOCKING: usize = 64 << 10;
    let text: Bytes = text.into();
    let plain = text.clone();
    let pack = move || encoding.pack(&plain);
    let packed = match text.len() {
        ..WORTH_PACKING => None,
        WORTH_PACKING..BLOCKING => pack(),
        _ => tokio::task::spawn_blocking(pack)
            .await
            .map_err(|e| Error::new(Kind::Internal, format!("compression failed: {e}")))?,
    };
    Ok(match packed {
        Some(packed) => encoded(json(encoding.join([Text::Packed(packed)])), encoding),
        None => encoded(json([text]), Encoding::Identity),
    })
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

/// Returns the value of `Cache-Status` (RFC 9211) for `cache`.
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
    text
}

/// Adds the `Server-Timing` header (W3C), in milliseconds.
pub(super) fn with_timing(mut response: Response<Body>, timing: &Timing) -> Response<Body> {
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
            detail: None,
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
