//! The units that an upstream bills: those asked for, those that a cache avoided, budgets of them,
//! and money.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::budget::{Budgets, Lacking};
use super::budget_file::BudgetPath;
use super::period::Period;
use super::searches::Searches;
use super::state::{BudgetState, UnitsState};
use crate::clock::Clock;
use crate::model::{Millis, Units};
use crate::store::joint::JointLimit;
use crate::telemetry::metrics::UnitMetrics;

/// The units of one upstream.
pub(super) struct Ledger {
    units: Units,
    budgets: Budgets,
    metrics: UnitMetrics,
    pub(super) searches: Searches,
}

impl Ledger {
    /// Returns the ledger of the upstream `name`, with what `file` says of its budgets, which are those
    /// of all replicas that share `joint`, if there is that.
    pub(super) fn new(
        name: &str,
        units: Units,
        file: Option<BudgetPath>,
        joint: Option<&Arc<JointLimit>>,
        clock: &Arc<dyn Clock>,
    ) -> Self {
        let windows = [
            (Period::Hour, units.per_hour),
            (Period::Day, units.per_day),
            (Period::Month, units.per_month),
        ];
        Self {
            metrics: UnitMetrics::new(name, &units.currency),
            budgets: Budgets::new(&windows, "units", file, joint, clock),
            searches: Searches::default(),
            units,
        }
    }

    /// Starts its budgets, in the place of those of `before`, if there is that; counts on from that.
    pub(super) fn start(&self, before: Option<&Self>) {
        self.budgets.start(before.map(|before| &before.budgets));
        if let Some(before) = before {
            let (asked, requested) = before.metrics.totals();
            self.metrics.continue_from(asked, requested);
        }
    }

    /// Takes `units` out of each budget at the wall time `now`, and counts them.
    pub(super) fn take(&self, units: u32, now: Millis) -> Result<(), Lacking> {
        if units > 0 {
            self.budgets.take(units, now)?;
            self.count(units);
        }
        Ok(())
    }

    /// Waits, `until` then at most, as long as `units` cannot be taken for lack of a lease. Fails with
    /// the time until it is worth trying again.
    pub(super) async fn leased(
        &self,
        units: u32,
        clock: &dyn Clock,
        until: Instant,
    ) -> Result<(), Duration> {
        match units {
            0 => Ok(()),
            _ => self.budgets.leased(units, clock, until).await,
        }
    }

    /// Counts `units` that turned out to be billed at the wall time `now`, whether the budgets have so
    /// many left or not.
    pub(super) fn add(&self, units: u32, now: Millis) {
        if units > 0 {
            self.budgets.add(units, now);
            self.count(units);
        }
    }

    fn count(&self, units: u32) {
        let price = f64::from(units) * self.units.price;
        self.metrics.asked(units, price);
    }

    /// Returns for how long there has been something that the file of its budgets does not say.
    pub(super) fn unsaved(&self) -> Duration {
        self.budgets.unsaved()
    }

    /// Returns when the budget that is spent at the wall time `now` is renewed, if one is.
    pub(super) fn spent(&self, now: Millis) -> Option<Duration> {
        self.budgets.spent(now)
    }

    /// Counts the units that a query would have cost without a cache.
    pub(super) fn requested(&self, units: u32) {
        self.metrics.requested(units);
    }

    /// Returns what has been counted, while `waiting` queries wait for their calls.
    pub(super) fn state(&self, waiting: usize) -> UnitsState {
        let (asked, requested) = self.metrics.totals();
        let avoided = requested.saturating_sub(asked);
        // To a billionth: what lies below is only how numbers are stored.
        let money = |units: u64| (units as f64 * self.units.price * 1e9).round() / 1e9;
        UnitsState {
            waiting,
            asked,
            requested,
            avoided,
            cost: money(asked),
            cost_avoided: money(avoided),
            currency: self.units.currency.clone(),
        }
    }

    /// Returns the state of each budget at the wall time `now`.
    pub(super) fn budgets(&self, now: Millis) -> Vec<BudgetState> {
        self.budgets.state(now)
    }
}
