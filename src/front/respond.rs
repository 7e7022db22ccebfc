//! Common parts of responses with data: their encoding, `Cache-Status` and `Server-Timing`.

use std::iter::once;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::{HeaderMap, HeaderValue, Response};

use super::body::Body;
use crate::engine::{Answer, CacheOutcome, CachedResponse, Lookup, Timing};
use crate::model::Error;
use crate::wire::encoding::{Encoding, Text};
use crate::wire::mirror::{API_KEY_HEADER, response};

/// The headers of a response with data: those below, the API key and that of browsers.
const HEADERS: usize = 6;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The value of a header that is certainly short, as it is written.
struct Line {
    bytes: [u8; 160],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self {
            bytes: [0; 160],
            length: 0,
        }
    }

    fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(part);
            self.length = end;
        }
    }

    fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(self.bytes.get(..self.length)?).ok()
    }
}

/// Returns a response of JSON in `parts`.
pub(super) fn json(parts: impl IntoIterator<Item = Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::of(parts));
    *response.headers_mut() = HeaderMap::with_capacity(HEADERS);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The headers of a response with points, made once: the service sets the API key, and an answer those of the
/// cache.
static OF_POINTS: LazyLock<HeaderMap> = LazyLock::new(|| {
    let fixed = |value| HeaderValue::from_static(value);
    HeaderMap::from_iter([
        (CONTENT_TYPE, fixed("application/json")),
        (VARY, fixed("accept-encoding")),
        (CACHE_STATUS, fixed("")),
        (SERVER_TIMING, fixed("")),
        (API_KEY_HEADER, fixed("")),
    ])
});

/// Returns the response of the mirror API for `answer`, whose points it takes.
pub(super) fn points(answer: &mut Answer) -> Response<Body> {
    let tail = response::metric_tail(answer.aggregated, answer.partial);
    let around = (response::METRIC_HEAD, tail);
    let body = if answer.encoding == Encoding::Identity {
        let short = Body::short(around, answer.points.iter().map(Text::bytes));
        short.unwrap_or_else(|| Body::around(around, answer.points.drain(..).map(Text::into_bytes)))
    } else {
        let (head, tail) = around;
        let [head, tail] = [head, tail].map(|text| Text::Plain(Bytes::from_static(text)));
        let parts = once(head).chain(answer.points.drain(..)).chain(once(tail));
        Body::of(answer.encoding.join(parts))
    };
    let mut response = Response::new(body);
    *response.headers_mut() = OF_POINTS.clone();
    let headers = response.headers_mut();
    if answer.encoding != Encoding::Identity {
        add_encoding(headers, answer.encoding);
    }
    // In place: to find a header by its name takes longer than to look at the few that there are.
    let mut cache = cache_status(&answer.cache);
    let mut timing = server_timing(&answer.timing);
    for (name, value) in headers.iter_mut() {
        let new = match name {
            name if *name == CACHE_STATUS => cache.take(),
            name if *name == SERVER_TIMING => timing.take(),
            _ => None,
        };
        if let Some(new) = new {
            *value = new;
        }
    }
    response
}

/// Returns the response for `answer`.
pub(super) fn cached(answer: CachedResponse) -> Response<Body> {
    let mut response = Response::new(Body::of(answer.encoding.join(answer.body)));
    *response.status_mut() = answer.status;
    let mut headers = HeaderMap::with_capacity(HEADERS);
    add_encoding(&mut headers, answer.encoding);
    headers.extend(answer.headers);
    add_cache(&mut headers, &answer.cache);
    add_timing(&mut headers, &answer.timing);
    *response.headers_mut() = headers;
    response
}

/// Adds the headers that state the `encoding` of a response, and that it depends on what the client
/// accepts.
pub(super) fn add_encoding(headers: &mut HeaderMap, encoding: Encoding) {
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(name) = encoding.name() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
}

/// Adds the `Cache-Status` header.
fn add_cache(headers: &mut HeaderMap, cache: &CacheOutcome) {
    if let Some(value) = cache_status(cache) {
        headers.insert(CACHE_STATUS, value);
    }
}

/// The `Cache-Status` of a remembered error of the upstream.
const REMEMBERED: &str = "heliostat; hit; detail=\"error\"";

/// The detail of an answer of which some was read from the second level of the cache just now.
const SECOND_LEVEL: &str = "; detail=\"second level\"";

/// The detail of an answer in which another replica filled a gap, just now.
const FILLED: &str = "; detail=\"another replica filled a gap\"";

/// Adds the `Cache-Status` header to `response`, which says `error`, if the upstream was not asked.
pub(super) fn with_remembered(response: &mut Response<Body>, error: &Error) {
    if error.remembered {
        let value = HeaderValue::from_static(REMEMBERED);
        response.headers_mut().insert(CACHE_STATUS, value);
    }
}

/// Returns the value of `Cache-Status` (RFC 9211) for `cache`.
fn cache_status(cache: &CacheOutcome) -> Option<HeaderValue> {
    let collapsed = if cache.collapsed { "; collapsed" } else { "" };
    let text = if cache.error {
        return Some(HeaderValue::from_static(REMEMBERED));
    } else if let Some(detail) = &cache.detail {
        let quoted: String = detail
            .chars()
            .map(|c| match c {
                '"' | '\\' => '\'',
                c if c.is_ascii() && !c.is_ascii_control() => c,
                _ => ' ',
            })
            .take(300)
            .collect();
        let ttl = cache.ttl_seconds;
        format!("heliostat; hit; ttl={ttl}; detail=\"{quoted}\"")
    } else if let Some(reason) = cache.bypass {
        format!("heliostat; fwd=bypass{collapsed}; detail=\"{reason}\"")
    } else if cache.lookup == Lookup::Hit {
        let mut line = Line::new();
        line.push(b"heliostat; hit; ttl=");
        line.push(itoa::Buffer::new().format(cache.ttl_seconds).as_bytes());
        if cache.second_level {
            line.push(SECOND_LEVEL.as_bytes());
        }
        return line.value();
    } else {
        let reason = cache.lookup.name();
        let stored = if cache.stored { "; stored" } else { "" };
        let detail = match cache.other_buckets {
            true => "; detail=\"the source answered other buckets\"",
            false if cache.filled => FILLED,
            false if cache.second_level => SECOND_LEVEL,
            false => "",
        };
        format!("heliostat; fwd={reason}{stored}{collapsed}{detail}")
    };
    HeaderValue::try_from(text).ok()
}

/// Adds the `Server-Timing` header.
fn add_timing(headers: &mut HeaderMap, timing: &Timing) {
    if let Some(value) = server_timing(timing) {
        headers.insert(SERVER_TIMING, value);
    }
}

/// Returns the value of `Server-Timing` (W3C) for `timing`, in milliseconds.
fn server_timing(timing: &Timing) -> Option<HeaderValue> {
    if let Some(value) = timing_of_a_hit(timing) {
        return Some(value);
    }
    let mut line = Line::new();
    let fetch: &[u8] = match timing.filled {
        true => b", fetch;desc=\"another replica filled a gap\";dur=",
        false => b", fetch;dur=",
    };
    for (name, took) in [
        (&b"plan;dur="[..], timing.plan),
        (b", second;dur=", timing.second),
        (fetch, timing.fetch),
        (b", render;dur=", timing.render),
    ] {
        if name == b", second;dur=" && took.is_zero() {
            continue;
        }
        line.push(name);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        line.push(itoa::Buffer::new().format(micros / 1000).as_bytes());
        let digit = |unit: u64| b'0' + (micros / unit % 10) as u8;
        line.push(&[b'.', digit(100), digit(10), digit(1)]);
    }
    line.value()
}

/// Returns the value of `Server-Timing` for what took less than a millisecond each, and fetched nothing: a
/// text with other digits.
fn timing_of_a_hit(timing: &Timing) -> Option<HeaderValue> {
    let mut text = *b"plan;dur=0.000, fetch;dur=0.000, render;dur=0.000";
    if !timing.second.is_zero() || !timing.fetch.is_zero() || timing.filled {
        return None;
    }
    // Where the three digits of each begin.
    for (at, took) in [(11, timing.plan), (46, timing.render)] {
        let micros = took.subsec_micros();
        if took.as_secs() > 0 || micros >= 1000 {
            return None;
        }
        let digit = |unit: u32| b'0' + (micros / unit % 10) as u8;
        let place = text.get_mut(at..at + 3)?;
        place.copy_from_slice(&[digit(100), digit(10), digit(1)]);
    }
    HeaderValue::from_bytes(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timing_is_in_milliseconds_with_three_digits() {
        let mut timing = Timing {
            plan: Duration::from_nanos(12_999),
            second: Duration::ZERO,
            fetch: Duration::ZERO,
            render: Duration::from_micros(1_234_005),
            filled: false,
        };
        let header = |timing: &Timing| {
            let mut headers = HeaderMap::new();
            add_timing(&mut headers, timing);
            headers.remove(SERVER_TIMING).unwrap()
        };
        assert_eq!(
            header(&timing),
            "plan;dur=0.012, fetch;dur=0.000, render;dur=1234.005"
        );
        for (micros, digits) in [(0, "000"), (7, "007"), (999, "999")] {
            let took = Duration::from_micros(micros);
            let timing = Timing {
                plan: took,
                second: Duration::ZERO,
                fetch: Duration::ZERO,
                render: took,
                filled: false,
            };
            let expected = format!("plan;dur=0.{digits}, fetch;dur=0.000, render;dur=0.{digits}");
            assert_eq!(header(&timing), expected);
        }
        timing.filled = true;
        assert_eq!(
            header(&timing),
            "plan;dur=0.012, fetch;desc=\"another replica filled a gap\";dur=0.000, render;dur=1234.005"
        );
    }

    #[test]
    fn cache_status_says_what_the_cache_did() {
        let status = |outcome: &CacheOutcome| {
            let value = cache_status(outcome).unwrap();
            value.to_str().unwrap().to_owned()
        };
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
            filled: false,
        };
        assert_eq!(
            status(&outcome(Lookup::Hit, false, false)),
            "heliostat; hit; ttl=7"
        );
        assert_eq!(
            status(&outcome(Lookup::Miss, true, false)),
            "heliostat; fwd=miss; stored"
        );
        assert_eq!(
            status(&outcome(Lookup::Partial, true, true)),
            "heliostat; fwd=partial; stored; collapsed"
        );
        let mut found = outcome(Lookup::Hit, false, false);
        found.second_level = true;
        assert_eq!(
            status(&found),
            "heliostat; hit; ttl=7; detail=\"second level\""
        );
        found.lookup = Lookup::Partial;
        assert_eq!(
            status(&found),
            "heliostat; fwd=partial; detail=\"second level\""
        );
        found.filled = true;
        assert_eq!(
            status(&found),
            "heliostat; fwd=partial; detail=\"another replica filled a gap\""
        );
        let mut passed = outcome(Lookup::Hit, false, true);
        passed.bypass = Some("at-modifier");
        assert_eq!(
            status(&passed),
            "heliostat; fwd=bypass; collapsed; detail=\"at-modifier\""
        );
        let mut stale = outcome(Lookup::Stale, false, false);
        stale.ttl_seconds = -5;
        stale.detail = Some("it \"broke\"\r\n".into());
        assert_eq!(
            status(&stale),
            "heliostat; hit; ttl=-5; detail=\"it 'broke'  \""
        );
    }
}
