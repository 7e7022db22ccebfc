//! The metrics of what an upstream bills.

use metrics::{Gauge, counter, gauge};

use super::metrics::{COST, UNITS, UNITS_REQUESTED};
use super::upstream_metrics::Count;

/// Handles to the metrics of what one upstream bills.
#[derive(Clone, Debug)]
pub struct UnitMetrics {
    asked: Count,
    requested: Count,
    /// Counters are whole numbers, so money is a gauge that only grows.
    cost: Gauge,
}

impl UnitMetrics {
    /// Returns the handles for the upstream `name`, which bills in `currency`.
    pub fn new(name: &str, currency: &str) -> Self {
        let upstream = || name.to_owned();
        let cost = gauge!(COST, "upstream" => upstream(), "currency" => currency.to_owned());
        cost.increment(0.0);
        Self {
            asked: Count::of(counter!(UNITS, "upstream" => upstream())),
            requested: Count::of(counter!(UNITS_REQUESTED, "upstream" => upstream())),
            cost,
        }
    }

    /// Counts `units` that are asked for, at `price` in all.
    pub fn asked(&self, units: u32, price: f64) {
        self.asked.increment(u64::from(units));
        self.cost.increment(price);
    }

    /// Counts `units` that a query would have asked for.
    pub fn requested(&self, units: u32) {
        self.requested.increment(u64::from(units));
    }

    /// Returns the units asked for and requested.
    pub fn totals(&self) -> (u64, u64) {
        (self.asked.total(), self.requested.total())
    }

    /// Counts on from `asked` and `requested`, which are in the metrics already.
    pub fn continue_from(&self, asked: u64, requested: u64) {
        self.asked.continue_from(asked);
        self.requested.continue_from(requested);
    }
}
