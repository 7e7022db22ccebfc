//! The one error type: what happened, who has to act, and whether a retry may help.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::raw_response::RawResponse;

/// The kind of an error. The front has the only map from kinds to HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Malformed JSON, or a field that is missing or invalid.
    InvalidRequest,
    /// A valid token or password is required; the subject lists the accepted schemes of
    /// `Authorization`, such as `Bearer Basic`.
    Unauthenticated,
    /// The client's address has no access to this API, or the API is closed.
    ClientNotAllowed,
    /// The connection details name a target that is not allowed.
    TargetNotAllowed,
    /// The upstream cannot express the selector, or does not know the metric.
    MetricNotFound,
    /// A field of a type that the upstream cannot search.
    UnsupportedFieldType,
    /// No such path.
    PathNotFound,
    /// The path exists, but not for this HTTP method.
    MethodNotAllowed,
    /// The request body is larger than `server.max_body`.
    BodyTooLarge,
    /// The request body is not declared as JSON.
    UnsupportedMediaType,
    /// More buckets or points than a cap allows.
    TooManyPoints,
    /// The client did not send its request in time.
    RequestTimeout,
    /// As many requests are in flight as are admitted.
    Overloaded,
    /// The queue or the budget of the upstream is spent.
    UpstreamBudget,
    /// The upstream asked us to slow down (429 or 503).
    UpstreamBusy,
    /// The upstream could not be reached, or the connection broke.
    UpstreamUnreachable,
    /// The upstream answered with an error, or with something invalid.
    UpstreamFailed,
    /// The upstream answered for times that are multiples of the step, not for those that were
    /// requested.
    TimesAligned,
    /// The upstream's answer is larger than `max_response`.
    AnswerTooLarge,
    /// The deadline passed.
    DeadlineExceeded,
    /// A bug in Heliostat.
    Internal,
}

/// The party that has to change something for the request to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The client.
    Client,
    /// The upstream.
    Upstream,
    /// Heliostat itself.
    Us,
}

/// The evidence of a failed call about the upstream: the one classification that moves to another address,
/// retries, breakers, rests and metrics go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// The address does not work: it cannot be reached, a new connection is lost, or a gateway says
    /// that it has no store behind it. Another may do better, or the same in a moment.
    Address,
    /// The address answers, but not as the store: with a login page, say. Another may do better.
    Stranger,
    /// The address cannot take more calls for now: 429, 503. Another may do better.
    Load,
    /// The address works. It is this question that has no answer: the store says so, or takes too
    /// long while it answers others.
    Question,
    /// Nothing: no call was made, or it failed for want of something of our own.
    Nothing,
}

impl Kind {
    /// Returns the party that has to change something.
    pub fn origin(self) -> Origin {
        match self {
            Self::InvalidRequest
            | Self::Unauthenticated
            | Self::ClientNotAllowed
            | Self::TargetNotAllowed
            | Self::MetricNotFound
            | Self::UnsupportedFieldType
            | Self::PathNotFound
            | Self::MethodNotAllowed
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType
            | Self::TooManyPoints
            | Self::RequestTimeout => Origin::Client,
            Self::UpstreamBusy
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed
            | Self::TimesAligned
            | Self::AnswerTooLarge
            | Self::DeadlineExceeded => Origin::Upstream,
            Self::Overloaded | Self::UpstreamBudget | Self::Internal => Origin::Us,
        }
    }
}

/// An error, fit to be shown to a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// Its kind.
    pub kind: Kind,
    /// A sentence for the client; never contains a secret.
    pub message: String,
    /// JSON path of the field at fault, such as `query.startTime`.
    pub field: Option<String>,
    /// The metric or the field type that the error is about, where its body names one.
    pub subject: Option<String>,
    /// The time after which a retry may help, if known.
    pub retry_after: Option<Duration>,
    /// The evidence of the failed call about the upstream.
    pub evidence: Evidence,
    /// The upstream's answer, for clients of its own API.
    pub said: Option<Arc<RawResponse>>,
    /// Whether the upstream said so a moment ago and was not asked again.
    pub remembered: bool,
}

impl Error {
    /// Creates an error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            field: None,
            subject: None,
            retry_after: None,
            evidence: match kind {
                Kind::UpstreamUnreachable => Evidence::Address,
                Kind::UpstreamBusy => Evidence::Load,
                kind if kind.origin() == Origin::Us => Evidence::Nothing,
                _ => Evidence::Question,
            },
            said: None,
            remembered: false,
        }
    }

    /// Creates an error about an invalid field of a request: `path` names it, `message` says what is
    /// allowed.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::InvalidRequest, message);
        error.field = Some(path.into());
        error
    }

    /// Returns the same error about `subject`.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Returns the same error, which shows `evidence`.
    #[must_use]
    pub fn shows(mut self, evidence: Evidence) -> Self {
        self.evidence = evidence;
        self
    }

    /// Returns whether the upstream's error is about the query itself, so that the same query would
    /// fail again at once.
    pub fn is_about_query(&self) -> bool {
        self.said.as_ref().is_some_and(|said| said.is_about_query())
    }

    /// Returns the same error with a time after which a retry may help.
    #[must_use]
    pub fn retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Error {}
