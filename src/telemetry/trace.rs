//! Spans: the steps of a request and how long they take.
//!
//! A fetch runs in a task of its own, so its parent span is passed to it as a [`Trace`]. Spans
//! exist in builds with the feature `otlp`; in others they are empty, and only the client's trace
//! context is passed on.

use std::fmt;

use http::HeaderMap;

pub use super::context::Trace;
#[cfg(feature = "otlp")]
use super::otlp as spans;

impl Trace {
    /// Starts the span of a request with `headers` to this `method` of this `api`, and returns it
    /// with the trace for its steps.
    pub fn served(headers: &HeaderMap, api: &str, method: &str) -> (Span, Self) {
        let (recorded, trace) = spans::served(Self::sent(headers), api, method);
        (Span(recorded), trace)
    }

    /// Starts the span of a step; it ends when it is dropped.
    pub fn span(&self, name: &'static str) -> Span {
        Span(spans::step(self, name, false))
    }

    /// Starts the span of a request to an upstream.
    pub fn client_span(&self, name: &'static str) -> Span {
        Span(spans::step(self, name, true))
    }

    /// Returns the trace for steps of `span`, which is a step of this trace.
    pub fn within(&self, span: &Span) -> Self {
        span.trace().unwrap_or_else(|| self.clone())
    }
}

/// A running span; it ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(spans::Recorded);

impl Span {
    /// Sets the attribute `key` to a text.
    pub fn text(&mut self, key: &'static str, value: &dyn fmt::Display) {
        self.0.text(key, value);
    }

    /// Sets the attribute `key` to a number.
    pub fn number(&mut self, key: &'static str, value: impl TryInto<i64>) {
        self.0.number(key, value);
    }

    /// Sets the attribute `key` to true or false.
    pub fn flag(&mut self, key: &'static str, value: bool) {
        self.0.flag(key, value);
    }

    /// Marks it as failed; `kind` is one of few.
    pub fn fail(&mut self, error: &dyn fmt::Debug) {
        self.0.fail(error);
    }

    /// Links it to `other`, which its work was a part of too.
    pub fn link(&mut self, other: &Trace) {
        self.0.link(other);
    }

    /// Ends it.
    pub fn end(self) {}

    fn trace(&self) -> Option<Trace> {
        self.0.trace()
    }
}

/// Spans in a build without the feature `otlp`: empty.
#[cfg(not(feature = "otlp"))]
mod spans {
    use std::fmt;

    use super::Trace;

    #[derive(Debug, Default)]
    pub(crate) struct Recorded;

    pub(super) fn served(sent: Trace, _: &str, _: &str) -> (Recorded, Trace) {
        (Recorded, sent)
    }

    pub(super) fn step(_: &Trace, _: &'static str, _: bool) -> Recorded {
        Recorded
    }

    impl Recorded {
        pub(super) fn text(&mut self, _: &'static str, _: &dyn fmt::Display) {}
        pub(super) fn number(&mut self, _: &'static str, _: impl TryInto<i64>) {}
        pub(super) fn flag(&mut self, _: &'static str, _: bool) {}
        pub(super) fn fail(&mut self, _: &dyn fmt::Debug) {}
        pub(super) fn link(&mut self, _: &Trace) {}
        pub(super) fn trace(&self) -> Option<Trace> {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_the_client_sent_is_passed_on_as_it_came() {
        let sent = headers(&[
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("x", "y"),
            ("tracestate", "b=2"),
        ]);
        let (_, trace) = Trace::served(&sent, "mirror", "metric");
        let mut out = headers(&[("traceparent", "ours"), ("tracestate", "ours"), ("z", "1")]);
        trace.send(&mut out);
        let expected = headers(&[
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
            ("z", "1"),
        ]);
        assert_eq!(out, expected);
        assert_eq!(trace.id().as_deref(), PARENT.get(3..35));
    }

    #[test]
    fn without_a_trace_nothing_is_sent() {
        let (_, trace) = Trace::served(&headers(&[("tracestate", "a=1")]), "mirror", "metric");
        let mut out = HeaderMap::new();
        trace.send(&mut out);
        assert!(out.is_empty(), "{out:?}");
        assert_eq!(trace.id(), None);
        let (_, odd) = Trace::served(&headers(&[("traceparent", "00-12-34-01")]), "a", "b");
        assert_eq!(odd.id(), None);
    }
}
