//! The state of an upstream's protection, for operators.

use serde::Serialize;

/// The state of an upstream's protection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtectionState {
    /// Rate, concurrency and queue.
    pub limiter: LimiterState,
    /// Budgets of calls and of units.
    pub budgets: Vec<BudgetState>,
    /// The units that it bills, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<UnitsState>,
    /// Its addresses and their breakers, the preferred one first.
    pub endpoints: Vec<EndpointState>,
}

/// The state of a limiter. Settings are in it too, to compare with.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimiterState {
    /// Calls per second, in the mean.
    pub per_second: f64,
    /// Calls that may be made at once.
    pub burst: u32,
    /// Calls in flight.
    pub running: usize,
    /// Calls that may be in flight now: `max_concurrency`, or less where that adapts.
    pub may_run: usize,
    /// Calls that wait.
    pub waiting: usize,
    /// Most calls that wait.
    pub queue: usize,
    /// Seconds until a pause that the upstream asked for ends.
    pub paused_seconds: Option<f64>,
    /// The part, from 0 to 1, of what all replicas may do together that this one keeps to by itself
    /// while they cannot; `None` where limits are its own.
    pub share: Option<f64>,
    /// Set while it keeps to that part.
    pub alone: bool,
    /// Seconds that calls are kept apart because the upstream said how much is left.
    pub spacing_seconds: Option<f64>,
}

/// The state of a budget.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetState {
    /// The unit of the budget: `calls` or `units`.
    pub of: &'static str,
    /// `hour`, `day` or `month`, of UTC.
    pub per: &'static str,
    /// The size of the budget.
    pub allowed: u32,
    /// The usage of the budget, by this replica.
    pub used: u32,
    /// The part of it that this replica may use before it is granted more, its usage included, if replicas
    /// keep it together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased: Option<u32>,
    /// The rest of it; of a budget that replicas keep together, by what the level said last.
    pub left: u32,
    /// Seconds until it begins anew.
    pub renewed_seconds: f64,
}

/// The units that an upstream bills, since its settings took effect.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnitsState {
    /// Queries that wait until the call is made that they share.
    pub waiting: usize,
    /// Units that were asked for.
    pub asked: u64,
    /// Units that the queries would have asked for without a cache.
    pub requested: u64,
    /// The difference.
    pub avoided: u64,
    /// The price of the units asked for.
    pub cost: f64,
    /// The same of what was avoided.
    pub cost_avoided: f64,
    /// The currency of the prices.
    pub currency: String,
}

/// The state of an address.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointState {
    /// Where it is.
    pub url: String,
    /// Its breaker: `closed`, `open` or `probing`.
    pub breaker: &'static str,
    /// Failures in a row.
    pub failures: u32,
    /// Seconds until the breaker lets a call through.
    pub open_seconds: Option<f64>,
    /// Calls in flight to it.
    pub running: usize,
}
