//! The outages of an address: a store that was down has no data of that time.

use std::collections::VecDeque;

use crate::model::{Millis, TimeRange};

/// Outages that are remembered.
const MOST: usize = 32;

/// Times at which an address was away, by the wall clock.
#[derive(Debug, Default)]
pub(super) struct Outages {
    past: VecDeque<TimeRange>,
    /// The time of its last answer, or of its first failure if it never answered.
    well: Option<Millis>,
    /// Set from the first failure until the next answer.
    failing: bool,
}

impl Outages {
    /// Takes in that it answered at `now`: an outage is over.
    pub(super) fn answered(&mut self, now: Millis) {
        if self.failing {
            self.failing = false;
            let since = self.well.unwrap_or(now);
            self.past.push_back(TimeRange::clamped(since.min(now), now));
            if self.past.len() > MOST {
                self.past.pop_front();
            }
        }
        self.well = Some(now);
    }

    /// Takes in that it failed at `now`, or said that it cannot take calls, as a store does while
    /// it starts.
    pub(super) fn failed(&mut self, now: Millis) {
        self.failing = true;
        self.well.get_or_insert(now);
    }

    /// Returns whether it was away at some time of `span`, or may have been.
    pub(super) fn meet(&self, span: &TimeRange) -> bool {
        let fails = self.failing && self.well.is_some_and(|since| span.end() > since);
        fails || self.are_over(span)
    }

    /// Returns whether it was away at some time of `span`, as far as is known.
    pub(super) fn are_over(&self, span: &TimeRange) -> bool {
        self.past.iter().any(|o| o.intersection(span).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_from_the_last_answer_before_it_to_the_first_after_it() {
        let range = |start, end| TimeRange::new(start, end).unwrap();
        let mut outages = Outages::default();
        outages.answered(100);
        outages.answered(200);
        assert!(!outages.meet(&range(0, 1000)));
        outages.failed(250);
        assert!(outages.meet(&range(300, 400)), "it goes on");
        outages.failed(250);
        outages.answered(500);
        outages.answered(600);
        for (span, meets) in [
            ((0, 200), false),
            ((0, 201), true),
            ((499, 700), true),
            ((500, 700), false),
        ] {
            assert_eq!(outages.meet(&range(span.0, span.1)), meets, "{span:?}");
        }
    }
}
