//! The usage of the budgets of calls and of units.

use std::time::Duration;

use tokio::time::Instant;

use super::budget::Lacking;
use super::client::UpstreamClient;
use super::ledger::Ledger;
use super::refusal::{overspent, units_overspent};
use super::state::BudgetState;
use crate::model::{Error, Millis};

impl UpstreamClient {
    /// Sets the metrics that change with time alone.
    pub fn observe(&self) {
        let units = self.ledger.as_ref().map(Ledger::unsaved);
        let unsaved = self.budgets.unsaved().max(units.unwrap_or_default());
        self.metrics.state_unsaved.set(unsaved.as_secs_f64());
    }

    /// Returns the number of its URLs whose breaker is open.
    pub fn open_breakers(&self) -> usize {
        self.addresses.open()
    }

    /// Counts on from what was taken of the budgets of `before`, whose place this takes, if there is
    /// that; then tells other replicas of the budgets that they keep together.
    pub fn start(&self, before: Option<&Self>) {
        self.budgets.start(before.map(|before| &*before.budgets));
        if let Some(ledger) = &self.ledger {
            ledger.start(before.and_then(|before| before.ledger.as_ref()));
        }
    }

    /// Counts the `units` that a query that was answered would have cost without a cache, if the
    /// upstream bills any.
    pub fn requested(&self, units: u32) {
        if let Some(ledger) = &self.ledger {
            ledger.requested(units);
        }
    }

    /// Returns whether a call can be made that nobody waits for: no other call waits, and it leaves
    /// half of the limits unused.
    pub fn has_spare(&self) -> bool {
        let budgets = self.budgets_at(self.clock.now());
        self.limiter.has_spare()
            && budgets
                .iter()
                .all(|budget| budget.left > budget.allowed / 2)
    }

    /// Returns the time between calls that nobody waits for, so that they use at most half of the
    /// limits.
    pub fn spare_spacing(&self) -> Duration {
        self.limiter.spare_spacing()
    }

    /// Takes a call that is billed as `units` out of the budgets, or nothing. Returns whether it did; if
    /// not, it lacks a lease that may be granted soon.
    pub(super) fn spend(&self, units: u32) -> Result<bool, Error> {
        let now = self.clock.now();
        match self.budgets.take(1, now) {
            Ok(()) => {}
            Err(Lacking::Lease) => return Ok(false),
            Err(Lacking::Until(wait)) => return Err(self.lacks_calls(wait)),
        }
        let Some(ledger) = &self.ledger else {
            return Ok(true);
        };
        let taken = ledger.take(units, now);
        if taken.is_err() {
            self.budgets.give_back(1, now);
        }
        match taken {
            Ok(()) => Ok(true),
            Err(Lacking::Lease) => Ok(false),
            Err(Lacking::Until(wait)) => Err(self.lacks_units(wait)),
        }
    }

    /// Waits, `until` then at most, as long as a call that is billed as `units` lacks a lease.
    pub(super) async fn leased(&self, units: u32, until: Instant) -> Result<(), Error> {
        let clock = self.clock.as_ref();
        let calls = self.budgets.leased(1, clock, until).await;
        calls.map_err(|wait| self.lacks_calls(wait))?;
        let Some(ledger) = &self.ledger else {
            return Ok(());
        };
        let leased = ledger.leased(units, clock, until).await;
        leased.map_err(|wait| self.lacks_units(wait))
    }

    fn lacks_calls(&self, wait: Duration) -> Error {
        self.metrics.rejected("budget");
        overspent(wait)
    }

    fn lacks_units(&self, wait: Duration) -> Error {
        self.metrics.rejected("units");
        units_overspent(wait)
    }

    /// Returns the error for the budget that is spent now, if one is.
    pub(super) fn spent(&self) -> Option<Error> {
        let now = self.clock.now();
        let units = self.ledger.as_ref().and_then(|ledger| ledger.spent(now));
        let calls = self.budgets.spent(now).map(overspent);
        calls.or_else(|| units.map(units_overspent))
    }

    /// Returns the units that the budget with the least of them has left, and when it is renewed; `None`
    /// where there is none.
    pub(super) fn units_left(&self) -> Option<(u32, Duration)> {
        let ledger = self.ledger.as_ref()?;
        let budgets = ledger.budgets(self.clock.now()).into_iter();
        let least = budgets.min_by_key(|b| b.left)?;
        let renewed = Duration::try_from_secs_f64(least.renewed_seconds).unwrap_or_default();
        Some((least.left, renewed))
    }

    /// Returns the state of each budget at the wall time `now`.
    pub(super) fn budgets_at(&self, now: Millis) -> Vec<BudgetState> {
        let units = self.ledger.iter().flat_map(|ledger| ledger.budgets(now));
        self.budgets.state(now).into_iter().chain(units).collect()
    }
}
