//! One attempt, as metrics and traces show it.

use http::{Method, StatusCode};

use crate::model::{Error, Kind, TargetUrl};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::telemetry::trace::{Span, Trace};

/// Which attempt of a call it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// How often the call was made again before.
    pub(super) retry: u32,
    /// Whether it is beside another that is slow.
    pub(super) hedge: bool,
    /// Whether it goes on with what an earlier attempt or call began.
    pub(super) continues: bool,
}

impl Turn {
    pub(super) const FIRST: Self = Self {
        retry: 0,
        hedge: false,
        continues: false,
    };
}

/// Counts an attempt as under way, and then by how it ended. One that is dropped has ended too:
/// the upstream was called.
pub(super) struct Attempt<'a> {
    metrics: &'a UpstreamMetrics,
    outcome: &'static str,
    span: Span,
}

impl<'a> Attempt<'a> {
    pub(super) fn begin(metrics: &'a UpstreamMetrics, trace: &Trace, turn: Turn) -> Self {
        metrics.in_flight.increment(1.0);
        let mut span = trace.client_span("attempt");
        span.text("heliostat.upstream", &metrics.name());
        span.number("heliostat.attempt", turn.retry.saturating_add(1));
        span.flag("heliostat.hedge", turn.hedge);
        Self {
            metrics,
            outcome: "abandoned",
            span,
        }
    }

    /// It asks `url` by `method`. Gives the trace of the request, which is a part of `trace`.
    pub(super) fn to(&mut self, url: &TargetUrl, method: &Method, trace: &Trace) -> Trace {
        self.span.text("http.request.method", method);
        self.span.text("server.address", &url.host());
        self.span.number("server.port", url.port());
        trace.within(&self.span)
    }

    /// It was answered with `status`.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.span
            .number("http.response.status_code", status.as_u16());
    }

    /// It ended with `result`.
    pub(super) fn end<T>(mut self, result: &Result<T, Error>) {
        self.outcome = outcome(result);
        if let Err(error) = result {
            self.span.fail(&error.kind);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.span.text("heliostat.outcome", &self.outcome);
        self.metrics.in_flight.decrement(1.0);
        self.metrics.attempt(self.outcome);
    }
}

/// The metric label of an attempt's result.
fn outcome<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(e) => match e.kind {
            Kind::DeadlineExceeded => "timeout",
            Kind::UpstreamUnreachable => "unreachable",
            Kind::UpstreamBusy => "busy",
            Kind::UpstreamFailed | Kind::AnswerTooLarge => "error",
            _ => "refused",
        },
    }
}
