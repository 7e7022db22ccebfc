//! W3C's trace context: the position of a request's work in a trace, and the headers that carry it
//! to upstreams.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
#[cfg(feature = "otlp")]
use opentelemetry::trace::SpanContext;

/// The headers of <https://www.w3.org/TR/trace-context/>.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest `tracestate` that is passed on, in bytes.
const LONGEST_STATE: usize = 512;

/// Whether `value` is a `traceparent`: version, trace, span and flags in lower-case hexadecimal digits,
/// and no more in version 00.
fn is_parent(value: &[u8]) -> bool {
    const LENGTHS: [usize; 4] = [2, 32, 16, 2];
    let known = value.get(..55).unwrap_or_default();
    let mut parts = known.split(|b| *b == b'-');
    let fits = LENGTHS.iter().all(|length| {
        let part = parts.next().unwrap_or_default();
        part.len() == *length && part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    let zero = |range: std::ops::Range<usize>| {
        let part = value.get(range).unwrap_or_default();
        part.iter().all(|b| *b == b'0')
    };
    let after = match value.get(55) {
        None => true,
        Some(next) => !value.starts_with(b"00") && *next == b'-' && value.len() <= 256,
    };
    fits && after && !value.starts_with(b"ff") && !zero(3..35) && !zero(36..52)
}

/// The position of a request's work in a trace: its parent, if it is in a trace at all.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Below>>);

#[derive(Debug)]
pub(super) enum Below {
    /// The client's span: its `traceparent` and `tracestate`, unchanged.
    Sent(HeaderValue, Vec<HeaderValue>),
    /// A span of Heliostat's.
    #[cfg(feature = "otlp")]
    Span(SpanContext),
}

impl Trace {
    /// Returns the trace that a request with `headers` belongs to. Headers that are not valid, or longer
    /// than the standard asks to pass on, are ignored.
    pub(super) fn sent(headers: &HeaderMap) -> Self {
        if !headers.contains_key(&TRACEPARENT) {
            return Self::default();
        }
        let mut parents = headers.get_all(&TRACEPARENT).iter();
        let parent = parents.next().filter(|p| is_parent(p.as_bytes()));
        let Some(parent) = parent.filter(|_| parents.next().is_none()) else {
            return Self::default();
        };
        // Copies of their own: a part of the head would keep all of it in memory.
        let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
        let states = headers.get_all(&TRACESTATE);
        let length = states.iter().fold(0, |sum, state| sum + state.len() + 1);
        let states = match length <= LONGEST_STATE + 1 {
            true => states.iter().filter_map(copy).collect(),
            false => Vec::new(),
        };
        Self(copy(parent).map(|parent| Arc::new(Below::Sent(parent, states))))
    }

    /// Adds the trace to the `headers` of a request.
    pub fn send(&self, headers: &mut HeaderMap) {
        match self.below() {
            None => {}
            Some(Below::Sent(parent, states)) => {
                headers.insert(TRACEPARENT, parent.clone());
                headers.remove(&TRACESTATE);
                for state in states {
                    headers.append(TRACESTATE, state.clone());
                }
            }
            #[cfg(feature = "otlp")]
            Some(Below::Span(span)) => send_span(span, headers),
        }
    }

    /// Returns the ID of the trace for logs: 32 hexadecimal digits.
    pub fn id(&self) -> Option<String> {
        match self.below()? {
            Below::Sent(parent, _) => {
                let id = parent.to_str().ok()?.split('-').nth(1)?;
                let good = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
                good.then(|| id.to_owned())
            }
            #[cfg(feature = "otlp")]
            Below::Span(span) => Some(span.trace_id().to_string()),
        }
    }

    pub(super) fn below(&self) -> Option<&Below> {
        self.0.as_deref()
    }

    #[cfg(feature = "otlp")]
    pub(super) fn below_span(span: SpanContext) -> Self {
        Self(Some(Arc::new(Below::Span(span))))
    }
}

/// Adds `span` to the `headers` of a request.
#[cfg(feature = "otlp")]
fn send_span(span: &SpanContext, headers: &mut HeaderMap) {
    let parent = format!(
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags()
    );
    if let Ok(parent) = HeaderValue::try_from(parent) {
        headers.insert(TRACEPARENT, parent);
    }
    headers.remove(&TRACESTATE);
    let state = span.trace_state().header();
    if let Some(state) = HeaderValue::try_from(state).ok().filter(|s| !s.is_empty()) {
        headers.insert(TRACESTATE, state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_valid_trace_headers_are_passed_on() {
        assert!(is_parent(PARENT.as_bytes()));
        assert!(is_parent(PARENT.replacen("00", "01", 1).as_bytes()));
        assert!(is_parent(
            format!("{}-more", PARENT.replacen("00", "01", 1)).as_bytes()
        ));
        for bad in [
            String::new(),
            "y".repeat(55),
            format!("{PARENT}-more"),
            format!("{PARENT}0"),
            PARENT.to_uppercase(),
            PARENT.replacen("00", "ff", 1),
            PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            PARENT[..54].to_owned(),
            "00-12-34-01".to_owned(),
        ] {
            assert!(!is_parent(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_long_state_is_left_out() {
        let sent = |states: &[usize]| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(PARENT));
            for length in states {
                let state = HeaderValue::try_from("s".repeat(*length)).unwrap();
                headers.append(TRACESTATE, state);
            }
            let mut out = HeaderMap::new();
            Trace::sent(&headers).send(&mut out);
            assert!(out.contains_key(TRACEPARENT));
            out.get_all(TRACESTATE).iter().count()
        };
        assert_eq!(sent(&[512]), 1);
        assert_eq!(sent(&[255, 256]), 2);
        assert_eq!(sent(&[513]), 0);
        assert_eq!(sent(&[512, 10]), 0);
    }
}
