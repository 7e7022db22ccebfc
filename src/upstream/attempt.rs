//! One attempt, as metrics and traces show it.

use std::sync::{Mutex, PoisonError};

use http::{Method, StatusCode};

use super::addresses::{Tried, Verdict};
use super::answer_memory::Charges;
use super::failure_log::one_line;
use super::limiter::Ended;
use crate::model::{Error, Evidence, Kind, Millis, TargetUrl};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::telemetry::trace::{Span, Trace};

/// The place of an attempt in its call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Number of earlier attempts at the call.
    pub(super) retry: u32,
    /// Set if it runs beside another one that is slow.
    pub(super) hedge: bool,
    /// Set if it continues the work of an earlier attempt or call.
    pub(super) continues: bool,
}

impl Turn {
    pub(super) const FIRST: Self = Self {
        retry: 0,
        hedge: false,
        continues: false,
    };
}

/// The state that the attempts at one call share.
#[derive(Debug)]
pub(super) struct Tries {
    /// The addresses that it has been tried at.
    tried: Mutex<Tried>,
    /// The charges for what has been built of earlier answers.
    pub(super) kept: Charges,
}

impl Tries {
    /// Returns the state of a call before its first attempt, beside what has been `kept` of those that it continues.
    pub(super) fn after(kept: Option<&Charges>) -> Self {
        Self {
            tried: Mutex::default(),
            kept: kept.cloned().unwrap_or_default(),
        }
    }

    pub(super) fn so_far(&self) -> Tried {
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, index: usize) {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        *tried = tried.with(index);
    }
}

/// Counts an attempt as in flight, and then by its outcome. One that is dropped has ended too: the
/// upstream was called.
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

    /// Takes in that it asks `url` by `method`. Returns the trace of the request, which is a part
    /// of `trace`.
    pub(super) fn to(&mut self, url: &TargetUrl, method: &Method, trace: &Trace) -> Trace {
        self.span.text("http.request.method", method);
        self.span.text("server.address", &url.host());
        self.span.number("server.port", url.port());
        trace.within(&self.span)
    }

    /// Takes in that it was answered with `status`.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.span
            .number("http.response.status_code", status.as_u16());
    }

    /// Ends it as one that was refused without evidence of a failure.
    pub(super) fn refused(mut self) {
        self.outcome = "refused";
    }

    /// Ends it with `result`, at `now`. Returns the label of its outcome.
    pub(super) fn end<T>(mut self, result: &Result<T, Error>, now: Millis) -> &'static str {
        self.outcome = outcome(result);
        if let Err(error) = result {
            self.span.fail(&error.kind);
        }
        match result {
            Ok(_) => self.metrics.works(),
            Err(_) if matches!(self.outcome, "refused" | "overloaded") => {}
            Err(error) => self.metrics.fails(&error.to_string(), now),
        }
        self.outcome
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.span.text("heliostat.outcome", &self.outcome);
        self.metrics.in_flight.decrement(1.0);
        self.metrics.attempt(self.outcome);
    }
}

/// Returns the evidence of `result` about the address, if there is any. An attempt that ran out of
/// time is classified by how the address answered other calls meanwhile.
pub(super) fn verdict<T>(result: &Result<T, Error>, timed_out: bool) -> Option<Verdict> {
    let error = match result {
        Ok(_) => return Some(Verdict::Works),
        Err(error) => error,
    };
    let said = || one_line(&error.message);
    match error.evidence {
        _ if timed_out => Some(Verdict::TimedOut(said())),
        Evidence::Address | Evidence::Stranger => Some(Verdict::Fails(said())),
        Evidence::Load => Some(Verdict::Busy(error.retry_after, said())),
        Evidence::Question => Some(Verdict::Works),
        Evidence::Nothing => None,
    }
}

/// Returns the evidence of `result` about the load that the upstream can take.
pub(super) fn ended<T>(result: &Result<T, Error>, timed_out: bool) -> Ended {
    match result {
        Ok(_) => Ended::Answered,
        Err(_) if timed_out => Ended::TimedOut,
        Err(error) => match error.evidence {
            Evidence::Address | Evidence::Stranger | Evidence::Load => Ended::Failed,
            Evidence::Question | Evidence::Nothing => Ended::Unrelated,
        },
    }
}

/// Returns the metric label of an attempt's result.
fn outcome<T>(result: &Result<T, Error>) -> &'static str {
    let error = match result {
        Ok(_) => return "ok",
        Err(error) => error,
    };
    match (error.evidence, error.kind) {
        (_, Kind::DeadlineExceeded) => "timeout",
        (_, Kind::UpstreamUnreachable) => "unreachable",
        (Evidence::Load, _) => "busy",
        (_, Kind::UpstreamFailed | Kind::AnswerTooLarge) => "error",
        (Evidence::Nothing, Kind::Overloaded) => "overloaded",
        _ => "refused",
    }
}
