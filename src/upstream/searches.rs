//! Queries that are billed by the series in their answers: the last number of each, and which of them
//! were refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::UpstreamClient;
use crate::adapters::Exchange;
use crate::model::{Error, Kind, Millis, Origin, Selector, TimeRange};

/// Most queries that are remembered.
const MOST: usize = 1000;

/// The queries of one upstream that are billed by their answers.
#[derive(Default)]
pub(super) struct Searches(Mutex<HashMap<Selector, Search>>);

#[derive(Default)]
struct Search {
    /// The units of the last answer.
    units: Option<u32>,
    refused: Option<Refused>,
}

/// An error that is about the query itself.
struct Refused {
    error: Error,
    /// The shortest time range, in milliseconds, that it is the answer for.
    shortest: Millis,
    /// When the query may be asked again, by the monotonic clock.
    until: Duration,
}

impl Refused {
    /// Returns the length of `range`, in milliseconds.
    fn length(range: &TimeRange) -> Millis {
        range.end().saturating_sub(range.start())
    }
}

impl Searches {
    fn all(&self) -> MutexGuard<'_, HashMap<Selector, Search>> {
        // Entries are changed one by one, and each is sound.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, selector: &Selector, change: impl FnOnce(&mut Search)) {
        let mut all = self.all();
        if all.len() >= MOST && !all.contains_key(selector) {
            all.clear();
        }
        change(all.entry(selector.clone()).or_default());
    }
}

impl UpstreamClient {
    /// Returns the units that the last answer to `selector` was billed as; 1 if there was none.
    pub fn last_units(&self, selector: &Selector) -> u32 {
        let known = self.ledger.as_ref().and_then(|ledger| {
            let all = ledger.searches.all();
            all.get(selector)?.units
        });
        known.unwrap_or(1).max(1)
    }

    /// Returns the error about `selector` itself that the upstream had less than a refresh ago, if it
    /// is one about `range`, too.
    pub fn refused_before(&self, selector: &Selector, range: &TimeRange) -> Option<Error> {
        let all = self.ledger.as_ref()?.searches.all();
        let refused = all.get(selector)?.refused.as_ref()?;
        let holds =
            self.clock.monotonic() < refused.until && Refused::length(range) >= refused.shortest;
        holds.then(|| Error {
            remembered: true,
            ..refused.error.clone()
        })
    }

    /// Counts what the answers to `exchange` are billed beyond the units that were counted when it was
    /// sent.
    pub(super) fn settle<T>(&self, exchange: &Exchange<T>) {
        if let (Some(ledger), Some(bill)) = (&self.ledger, &exchange.bill) {
            let beyond = bill.take().saturating_sub(exchange.request.units);
            ledger.add(beyond, self.clock.now());
        }
    }

    /// Remembers the `units` of the last answer to `selector` for `range`, if there was one. An `error`
    /// about the query itself is the answer for `refresh`, for ranges as long as this and longer ones;
    /// if the query is not valid, for all.
    pub fn remember(
        &self,
        selector: &Selector,
        range: &TimeRange,
        units: Option<u32>,
        error: Option<&Error>,
        refresh: Duration,
    ) {
        let Some(ledger) = &self.ledger else { return };
        let length = Refused::length(range);
        let refused = error.filter(|error| error.kind.origin() == Origin::Client);
        let refused = refused.map(|error| Refused {
            error: error.clone(),
            shortest: match error.kind {
                Kind::InvalidRequest => 0,
                _ => length,
            },
            until: self.clock.monotonic().saturating_add(refresh),
        });
        if units.is_none() && refused.is_none() {
            return;
        }
        ledger.searches.change(selector, |search| {
            search.units = units.or(search.units);
            // That a shorter range is answered says nothing about longer ones.
            let answered = |before: &mut Refused| error.is_none() && length >= before.shortest;
            search.refused.take_if(answered);
            search.refused = refused.or(search.refused.take());
        });
    }
}
