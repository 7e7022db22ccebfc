//! One error type: what happened, whose doing it was, and whether asking again may help.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::raw_response::RawResponse;

/// What went wrong. The front has the only map from kinds to HTTP statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Malformed JSON, or a field that is missing or bad.
    InvalidRequest,
    /// A valid token or password is needed; the subject is the schemes of `Authorization` that are
    /// known, such as `Bearer Basic`.
    Unauthenticated,
    /// The client's address may not ask this API, or nobody may.
    ClientNotAllowed,
    /// The connection details name a target that may not be reached.
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
    /// We have as many requests in hand as we admit.
    Overloaded,
    /// The queue or the budget of the upstream is spent.
    UpstreamBudget,
    /// The upstream asked us to slow down (429 or 503).
    UpstreamBusy,
    /// The upstream could not be reached, or the connection broke.
    UpstreamUnreachable,
    /// The upstream answered an error, or something that is not an answer.
    UpstreamFailed,
    /// The upstream's answer is larger than `max_response`.
    AnswerTooLarge,
    /// The deadline passed.
    DeadlineExceeded,
    /// A fault of our own.
    Internal,
}

/// Who has to change something for the request to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The client that asked.
    Client,
    /// The upstream that was asked.
    Upstream,
    /// Heliostat itself.
    Us,
}

impl Kind {
    /// Who has to change something.
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
            | Self::AnswerTooLarge
            | Self::DeadlineExceeded => Origin::Upstream,
            Self::Overloaded | Self::UpstreamBudget | Self::Internal => Origin::Us,
        }
    }
}

/// An error that a client can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What went wrong.
    pub kind: Kind,
    /// A sentence for the client; never holds a secret.
    pub message: String,
    /// JSON path of the field at fault, such as `query.startTime`.
    pub field: Option<String>,
    /// The metric or the field type that the error is about, where its body names one.
    pub subject: Option<String>,
    /// When asking again may help, if that is known.
    pub retry_after: Option<Duration>,
    /// Whether the same attempt may succeed if it is made again at once.
    pub retryable: bool,
    /// What the upstream answered, for clients that speak its own API.
    pub said: Option<Arc<RawResponse>>,
}

impl Error {
    /// An error of `kind`, said in `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            field: None,
            subject: None,
            retry_after: None,
            retryable: matches!(kind, Kind::UpstreamUnreachable),
            said: None,
        }
    }

    /// A bad field of a request: `path` names it, `message` says what is allowed.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::InvalidRequest, message);
        error.field = Some(path.into());
        error
    }

    /// The same error about `subject`.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// The same error, worth another attempt or not.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// The same error with a time after which asking again may help.
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
