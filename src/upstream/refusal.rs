//! The errors of calls that are not made.

use std::time::Duration;

use tokio::time::Instant;

use super::addresses::Addresses;
use crate::model::{Error, Evidence, Kind};

/// Returns the error of a call that has not been sent and that nobody waits for any more.
pub(super) fn nobody_waits() -> Error {
    let message = "the call was not made: nobody waits for its answer any more";
    Error::new(Kind::DeadlineExceeded, message).shows(Evidence::Nothing)
}

/// Returns the error where the breakers of all of `addresses` are open, and the next trial is at
/// `trial`.
pub(super) fn breaker_open(addresses: &Addresses, trial: Instant) -> Error {
    let wait = trial.saturating_duration_since(Instant::now());
    let why = addresses.last_failure().map_or_else(String::new, |failed| {
        let (failures, error) = failed;
        format!(": the upstream failed {failures} times in a row; last error: {error}")
    });
    let next = match wait.is_zero() {
        true => "a trial is in progress".to_owned(),
        false => format!("next trial in {} s", wait.as_secs_f64().ceil()),
    };
    let message = format!("circuit breaker is open{why}; {next}");
    let error = Error::new(Kind::UpstreamUnreachable, message).shows(Evidence::Nothing);
    error.retry_after(Some(wait.max(Duration::from_secs(1))))
}

/// Returns the error where all of `addresses` rest, and the first may be called after `wait`.
pub(super) fn pause(addresses: &Addresses, wait: Duration) -> Error {
    let why = addresses
        .last_error()
        .map_or_else(String::new, |e| format!(": {e}"));
    let message = format!("the upstream asked for a pause (Retry-After){why}");
    Error::new(Kind::UpstreamBusy, message)
        .shows(Evidence::Nothing)
        .retry_after(Some(wait.max(Duration::from_secs(1))))
}

/// Returns the error where the limits leave no room for a call, which could be made after `wait`.
pub(super) fn refusal(message: String, wait: Duration) -> Error {
    let wait = wait.clamp(Duration::from_secs(1), Duration::from_secs(3600));
    Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait))
}

/// Returns the message where `waiting` calls leave no time for another.
pub(super) fn no_call_left(waiting: usize) -> String {
    format!(
        "the upstream's limits leave no time for another answer before the request's deadline; {waiting} calls wait"
    )
}

/// Returns the error where a budget of units is spent, and renewed after `wait`.
pub(super) fn units_overspent(wait: Duration) -> Error {
    let message = "the upstream's budget of units is spent (units)";
    Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait))
}

/// Returns the error where a budget is spent, and renewed after `wait`.
pub(super) fn overspent(wait: Duration) -> Error {
    let message = "the upstream's budget of calls is spent (rate_limit)";
    Error::new(Kind::UpstreamBudget, message).retry_after(Some(wait))
}
