//! W3C's trace context: the position of a request's work in a trace, and the headers that carry it
//! to upstreams.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
#[cfg(feature = "otlp")]
use opentelemetry::trace::SpanContext;

/// The headers of <https://www.w3.org/TR/trace-context/>.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

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
    /// Returns the trace that a request with `headers` belongs to.
    pub(super) fn sent(headers: &HeaderMap) -> Self {
        let sent = |parent: &HeaderValue| {
            let states = headers.get_all(&TRACESTATE).iter();
            Arc::new(Below::Sent(parent.clone(), states.cloned().collect()))
        };
        Self(headers.get(&TRACEPARENT).map(sent))
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
