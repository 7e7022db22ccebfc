//! The log of failures: texts of an upstream are cut and escaped, and an upstream that fails at
//! each call does not fill the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use crate::model::{Error, Evidence, Origin};

/// Lines in each second.
const LINES: u32 = 5;

/// Most characters of an error in the log.
const LONGEST: usize = 500;

/// Writes the failures of one upstream to the log.
#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<Option<LineWindow>>);

#[derive(Clone, Copy, Debug)]
struct LineWindow {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl FailureLog {
    /// Logs `error` of the upstream `name`. An error that only says that a query has no answer is
    /// not a failure of the upstream.
    pub(super) fn log(&self, name: &str, error: &Error) {
        if error.kind.origin() != Origin::Upstream {
            return;
        }
        let kind = error.kind;
        let said = one_line(&error.to_string());
        if error.evidence == Evidence::Question {
            debug!(upstream = name, ?kind, "upstream error: {said}");
            return;
        }
        match self.may_write(Instant::now()) {
            Some(0) => warn!(upstream = name, ?kind, "upstream failure: {said}"),
            Some(left_out) => {
                warn!(upstream = name, ?kind, left_out, "upstream failure: {said}");
            }
            None => debug!(upstream = name, ?kind, "upstream failure: {said}"),
        }
    }

    /// Returns the number of lines that were left out before this one, if it may be written.
    fn may_write(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = LineWindow {
            since: now,
            lines: 0,
            left_out: 0,
        };
        let current = window.get_or_insert(fresh);
        if now.duration_since(current.since) >= Duration::from_secs(1) {
            let left_out = current.left_out;
            *current = LineWindow { left_out, ..fresh };
        }
        if current.lines >= LINES {
            current.left_out += 1;
            return None;
        }
        current.lines += 1;
        Some(std::mem::take(&mut current.left_out))
    }
}

/// Returns `text` on one line, without control characters, and cut.
pub(super) fn one_line(text: &str) -> String {
    crate::adapters::quoted(text, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_lines_a_second_are_written_and_the_rest_counted() {
        let log = FailureLog::default();
        let write = || log.may_write(Instant::now());
        let written: Vec<_> = (0..8).map(|_| write()).collect();
        assert_eq!(&written[..5], [Some(0); 5]);
        assert_eq!(&written[5..], [None; 3]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(write(), Some(3));
        assert_eq!(write(), Some(0));
    }
}
