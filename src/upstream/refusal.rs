//! The errors of calls that are not made.

use std::time::Duration;

use crate::model::{Error, Kind};

/// Nobody waits any more for the answer of a call that has not been sent.
pub(super) fn nobody_waits() -> Error {
    let message = "the call was not made: nobody waits for its answer any more";
    Error::new(Kind::DeadlineExceeded, message)
}

/// All addresses failed again and again, and the first is tried again after `wait`.
pub(super) fn breaker_open(wait: Duration) -> Error {
    let message = "the upstream failed again and again and is left alone for a while (breaker)";
    let error = Error::new(Kind::UpstreamUnreachable, message).retryable(false);
    error.retry_after(Some(wait))
}

/// A budget is spent, and renewed after `wait`.
pub(super) fn overspent(wait: Duration) -> Error {
    let message = "the upstream's budget of calls is spent (rate_limit)";
    Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait))
}
