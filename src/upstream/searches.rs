//! Queries that are billed by the series in their answers: the last number of each, and which of them
//! were refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::{Answered, UpstreamClient};
use crate::adapters::FetchResult;
use crate::model::{Error, Origin, Selector};

/// Most queries that are remembered.
const MOST: usize = 1000;

/// The queries of one upstream that are billed by their answers.
#[derive(Default)]
pub(super) struct Searches(Mutex<HashMap<Selector, Search>>);

#[derive(Default)]
struct Search {
    /// The units of the last answer.
    units: Option<u32>,
    /// The error that is about the query itself, and up to when it is not asked again, by the
    /// monotonic clock.
    refused: Option<(Error, Duration)>,
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

    /// Returns the error about `selector` itself that the upstream had less than a refresh ago.
    pub fn refused_before(&self, selector: &Selector) -> Option<Error> {
        let all = self.ledger.as_ref()?.searches.all();
        let (error, until) = all.get(selector)?.refused.as_ref()?;
        (self.clock.monotonic() < *until).then(|| Error {
            remembered: true,
            ..error.clone()
        })
    }

    /// Counts what `outcome`, the answer to `selector`, is billed beyond the units that were `counted`
    /// before it was sent. An error about the query itself is the answer for `refresh`.
    pub fn billed(
        &self,
        selector: &Selector,
        counted: u32,
        outcome: &Result<Answered<FetchResult>, Error>,
        refresh: Duration,
    ) {
        let Some(ledger) = &self.ledger else { return };
        match outcome {
            Ok(answered) => {
                let units = answered.value.series;
                ledger.add(units.saturating_sub(counted), self.clock.now());
                ledger.searches.change(selector, |search| {
                    search.units = Some(units);
                    search.refused = None;
                });
            }
            Err(error) if error.kind.origin() == Origin::Client => {
                let until = self.clock.monotonic().saturating_add(refresh);
                let refused = Some((error.clone(), until));
                let change = |search: &mut Search| search.refused = refused;
                ledger.searches.change(selector, change);
            }
            Err(_) => {}
        }
    }
}
