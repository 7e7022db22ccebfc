//! How an upstream is treated: what is kept for how long, how it is read, what it may be burdened
//! with.

use std::time::Duration;

use serde::Deserialize;

use super::time::{Millis, Step};

/// When cached data is fetched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Data older than this, in milliseconds, no longer changes.
    pub settle: Millis,
    /// For how long data that may still change is served.
    pub refresh: Duration,
    /// For how long expired data is served while the upstream fails.
    pub max_stale: Duration,
    /// For how long after its refresh expired data is served at once, and fetched meanwhile.
    pub stale_while_revalidate: Duration,
    /// For how long settled data is kept.
    pub history_ttl: Duration,
    /// For how long field names and values are kept.
    pub metadata_ttl: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            settle: 120_000,
            refresh: Duration::from_secs(10),
            max_stale: Duration::from_secs(3600),
            stale_while_revalidate: Duration::ZERO,
            history_ttl: Duration::from_secs(7 * 86_400),
            metadata_ttl: Duration::from_secs(60),
        }
    }
}

/// How an upstream is asked, and how its data is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The native distance of points.
    pub interval: Step,
    /// Where aggregation happens.
    pub aggregate: Aggregate,
    /// Most points, by range and interval, that a query may read raw.
    pub raw_points_max: u32,
    /// What several matching series become.
    pub multi_series: MultiSeries,
    /// Whether the newest bucket is shown while it fills.
    pub incomplete_buckets: IncompleteBuckets,
    /// Most bytes of one response, after decompression.
    pub max_response: usize,
    /// Bounds of one range query.
    pub range_limits: RangeLimits,
    /// Which times of a range query are answered.
    pub step_alignment: StepAlignment,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            interval: Step::SECOND.times(15),
            aggregate: Aggregate::default(),
            raw_points_max: 100_000,
            multi_series: MultiSeries::default(),
            incomplete_buckets: IncompleteBuckets::default(),
            max_response: 64 << 20,
            range_limits: RangeLimits::default(),
            step_alignment: StepAlignment::default(),
        }
    }
}

/// Bounds of one range query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Most series of an answer.
    pub series: usize,
    /// Longest range of a call in milliseconds; 0 for any.
    pub span: Millis,
}

impl Default for RangeLimits {
    fn default() -> Self {
        Self {
            series: 20_000,
            span: 0,
        }
    }
}

/// Which of the times of a range query are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepAlignment {
    /// Those that were asked for.
    #[default]
    Exact,
    /// Start and end are taken down to multiples of the step.
    Align,
}

/// Which clients are answered compressed, of those that ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Those on other machines.
    #[default]
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

/// Where aggregation happens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Here while the range is short enough to be read raw, else in the upstream.
    #[default]
    Auto,
    /// Always here, out of raw points.
    Local,
    /// Always in the upstream.
    Upstream,
}

/// What becomes of a selector that matches several series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiSeries {
    /// The union of their points.
    #[default]
    Merge,
    /// An error that names the labels that differ.
    Error,
}

/// Whether the newest bucket is shown while it fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncompleteBuckets {
    /// It is.
    #[default]
    Include,
    /// It is left out.
    Omit,
}

/// What an upstream may be burdened with, and what is done when it fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most time of one attempt.
    pub timeout: Duration,
    /// Attempts on top of the first.
    pub retries: u32,
    /// Mean calls a second.
    pub per_second: f64,
    /// Calls that may come at once.
    pub burst: u32,
    /// Calls in each hour of UTC.
    pub per_hour: Option<u32>,
    /// Calls in each day of UTC.
    pub per_day: Option<u32>,
    /// Calls under way at once.
    pub max_concurrency: usize,
    /// Whether fewer calls run at once while the upstream shows that it cannot cope.
    pub adaptive_concurrency: bool,
    /// When an attempt is slow, so that another is made beside it; never, if `None`.
    pub hedge_after: Option<Duration>,
    /// Calls that may wait.
    pub queue: usize,
    /// Failures in a row after which a URL is left alone.
    pub breaker_failures: u32,
    /// For how long it is left alone.
    pub breaker_open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            retries: 2,
            per_second: 50.0,
            burst: 50,
            per_hour: None,
            per_day: None,
            max_concurrency: 16,
            adaptive_concurrency: false,
            hedge_after: None,
            queue: 1024,
            breaker_failures: 5,
            breaker_open: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
impl Limits {
    /// Limits that do not bite, for tests to change.
    pub(crate) fn for_tests() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            retries: 0,
            per_second: 1e6,
            burst: 1_000_000,
            per_hour: None,
            per_day: None,
            max_concurrency: 64,
            adaptive_concurrency: false,
            hedge_after: None,
            queue: 10_000,
            breaker_failures: u32::MAX,
            breaker_open: Duration::from_secs(10),
        }
    }
}
