//! A warning where the clock of this machine and that of an upstream disagree: what is settled, and which
//! hour a budget is of, goes by clocks.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::AGE;
use tokio::time::Instant;
use tracing::warn;

use crate::adapters::{Response, date};
use crate::model::Millis;

/// The difference that is taken for none.
const TOLERANCE: Millis = 10_000;

/// The least time between two warnings.
const PAUSE: Duration = Duration::from_secs(600);

/// Compares the clock with the `Date` of one upstream's responses.
#[derive(Debug, Default)]
pub(super) struct ClockCheck(Mutex<Option<Instant>>);

impl ClockCheck {
    /// Warns if the `Date` of `response` of the upstream `name` is not between `sent` and `received`, which
    /// are wall times of this machine.
    pub(super) fn look(&self, name: &str, response: &Response, sent: Millis, received: Millis) {
        let Some(ahead) = disagreement(response, sent, received) else {
            return;
        };
        if !self.may_warn(Instant::now()) {
            return;
        }
        let by = Duration::from_millis(ahead.unsigned_abs().next_multiple_of(1000));
        let which = match ahead > 0 {
            true => "ahead of",
            false => "behind",
        };
        warn!(
            upstream = name,
            "the clock of this machine is {} {which} the upstream's (its Date header): they decide how old data is and what has settled",
            humantime::format_duration(by)
        );
    }

    fn may_warn(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| now.duration_since(last) >= PAUSE);
        if may {
            *last = Some(now);
        }
        may
    }
}

/// Returns by how much this machine is ahead of the upstream, if that is too much; negative if it is behind.
fn disagreement(response: &Response, sent: Millis, received: Millis) -> Option<Millis> {
    // What comes out of a cache on the way was said some time ago.
    if response.headers.contains_key(AGE) {
        return None;
    }
    let date = date(response)?;
    // A `Date` is rounded down to whole seconds.
    let ahead = sent.saturating_sub(date.saturating_add(1000));
    let behind = date.saturating_sub(received);
    match (ahead > TOLERANCE, behind > TOLERANCE) {
        (true, _) => Some(ahead),
        (_, true) => Some(-behind),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::header::{DATE, HeaderValue};
    use http::{HeaderMap, StatusCode};

    const NOW: Millis = 1_700_000_000_000;

    fn response(date: &'static str) -> Response {
        Response {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(DATE, HeaderValue::from_static(date))]),
            body: Bytes::new(),
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_noticed_and_a_slow_answer_is_not_taken_for_one() {
        let at = response("Tue, 14 Nov 2023 22:13:20 GMT");
        assert_eq!(disagreement(&at, NOW, NOW), None);
        assert_eq!(disagreement(&at, NOW + 900, NOW + 60_000), None);
        assert_eq!(disagreement(&at, NOW - 60_000, NOW), None);
        assert_eq!(disagreement(&at, NOW + 61_000, NOW + 62_000), Some(60_000));
        assert_eq!(disagreement(&at, NOW - 90_000, NOW - 60_000), Some(-60_000));
        let mut cached = at.clone();
        cached.headers.insert(AGE, HeaderValue::from_static("60"));
        assert_eq!(disagreement(&cached, NOW + 61_000, NOW + 62_000), None);
        assert_eq!(disagreement(&response("today"), NOW, NOW), None);
        let mut none = at;
        none.headers.remove(DATE);
        assert_eq!(disagreement(&none, NOW, NOW), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_said_once_in_ten_minutes() {
        let check = ClockCheck::default();
        assert!(check.may_warn(Instant::now()));
        assert!(!check.may_warn(Instant::now()));
        tokio::time::advance(PAUSE).await;
        assert!(check.may_warn(Instant::now()));
    }
}
