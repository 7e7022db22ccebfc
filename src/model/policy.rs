//! Policies for an upstream: freshness of its data, the way it is read, limits on its load.

use std::time::Duration;

use serde::Deserialize;

use super::time::{Millis, Step};

/// When cached data is fetched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Data older than this, in milliseconds, no longer changes.
    pub settle: Millis,
    /// Time for which data that may still change is served.
    pub refresh: Duration,
    /// Time after settling at which data is fetched once more, for points that came late; 0 for
    /// never.
    pub recheck: Duration,
    /// Time for which expired data is served while the upstream fails.
    pub max_stale: Duration,
    /// Time for which expired data is served at once while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// Time for which settled data is cached.
    pub history_ttl: Duration,
    /// Time for which field names and values are cached.
    pub metadata_ttl: Duration,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            settle: 120_000,
            refresh: Duration::from_secs(10),
            recheck: Duration::from_secs(3600),
            max_stale: Duration::from_secs(3600),
            stale_while_revalidate: Duration::ZERO,
            history_ttl: Duration::from_secs(7 * 86_400),
            metadata_ttl: Duration::from_secs(60),
        }
    }
}

/// The way an upstream is queried and its data is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The native distance of points.
    pub interval: Step,
    /// Where aggregation happens.
    pub aggregate: Aggregate,
    /// Most points, by range and interval, that a query may read raw.
    pub raw_points_max: u32,
    /// The treatment of several matching series.
    pub multi_series: MultiSeries,
    /// Whether the newest bucket is included while it fills.
    pub incomplete_buckets: IncompleteBuckets,
    /// Most bytes of one response, after decompression.
    pub max_response: usize,
    /// Bounds of one range query.
    pub range_limits: RangeLimits,
    /// The evaluation times of a range query.
    pub step_alignment: StepAlignment,
    /// Names of further parameters that clients may pass on to a Prometheus upstream.
    pub parameters: Vec<String>,
    /// At which times instant queries of the newest data are evaluated.
    pub instant_alignment: InstantAlignment,
    /// Whether what is polled at a steady pace is refreshed before it is asked for again.
    pub refresh_ahead: bool,
    /// The relation of the addresses of a Prometheus upstream to each other.
    pub replicas: Replicas,
    /// Labels that tell replicas apart, if gaps are filled.
    pub replica_labels: Vec<String>,
    /// The HTTP method of queries.
    pub method: QueryMethod,
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
            parameters: Vec::new(),
            instant_alignment: InstantAlignment::default(),
            refresh_ahead: true,
            replicas: Replicas::default(),
            replica_labels: Vec::new(),
            method: QueryMethod::default(),
        }
    }
}

/// The pace of some metrics of an upstream, where it is not the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricPace {
    /// The native distance of their points.
    pub interval: Step,
    /// Data older than this, in milliseconds, no longer changes.
    pub settle: Millis,
    /// Time for which data that may still change is served.
    pub refresh: Duration,
}

/// A rule for the metrics of a namespace of CloudWatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceRule {
    /// The namespace.
    pub namespace: String,
    /// Names of metrics; none stands for all.
    pub metrics: Vec<String>,
    /// Their pace.
    pub pace: MetricPace,
}

impl NamespaceRule {
    /// Returns the rules that hold where the configuration has none for the metrics: those that AWS
    /// itself puts a few times a day.
    pub fn built_in() -> [Self; 2] {
        let hours = |n: u64| Duration::from_secs(3600 * n);
        let rule = |namespace: &str, metrics: &[&str], interval: u64, settle: u64| Self {
            namespace: namespace.to_owned(),
            metrics: metrics.iter().map(|m| (*m).to_owned()).collect(),
            pace: MetricPace {
                interval: Step::SECOND.times(u32::try_from(3600 * interval).unwrap_or(1)),
                settle: Millis::try_from(hours(settle).as_millis()).unwrap_or(0),
                refresh: hours(1),
            },
        };
        [
            rule("AWS/S3", &["BucketSizeBytes", "NumberOfObjects"], 24, 72),
            rule("AWS/Billing", &[], 6, 24),
        ]
    }
}

/// The sharing of calls by several fetches, for upstreams whose protocol allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Time for which a call waits for more queries.
    pub window: Duration,
    /// Most queries of a call.
    pub queries: usize,
}

impl Default for Batching {
    /// Returns that of CloudWatch, which takes 500 queries.
    fn default() -> Self {
        Self {
            window: Duration::from_millis(10),
            queries: 500,
        }
    }
}

/// The units that an upstream bills, and the limits on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Units {
    /// Most units in an hour of UTC.
    pub per_hour: Option<u32>,
    /// Most units in a day of UTC.
    pub per_day: Option<u32>,
    /// Most units in a calendar month of UTC.
    pub per_month: Option<u32>,
    /// The price of a unit.
    pub price: f64,
    /// The currency of the price.
    pub currency: String,
    /// Statistics of a metric that are billed as one unit.
    pub statistics: u32,
}

impl Units {
    /// Returns the most units that its budgets let be asked for in a day, if there are any.
    pub fn most_per_day(&self) -> Option<u32> {
        let hours = self.per_hour.map(|n| n.saturating_mul(24));
        let budgets = [hours, self.per_day, self.per_month];
        budgets.into_iter().flatten().min()
    }
}

impl Default for Units {
    /// Returns those of CloudWatch: $0.01 for 1,000 metrics, five statistics of each.
    fn default() -> Self {
        Self {
            per_hour: None,
            per_day: None,
            per_month: None,
            price: 0.00001,
            currency: "USD".to_owned(),
            statistics: 5,
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

/// The HTTP method by which a Prometheus API is queried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryMethod {
    /// POST, and GET at a URL that refuses that (403, 405, 501).
    #[default]
    Auto,
    /// GET.
    Get,
    /// POST.
    Post,
}

/// The evaluation times of a range query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepAlignment {
    /// Those requested.
    #[default]
    Exact,
    /// Start and end are rounded down to multiples of the step.
    Align,
}

/// At which times instant queries of the newest data are evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstantAlignment {
    /// At multiples of `refresh`, so that all who ask within one share an answer.
    #[default]
    Refresh,
    /// At the times that were asked for.
    Exact,
}

/// The relation of the addresses of an upstream to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replicas {
    /// Ways to the same data: any may answer.
    #[default]
    Same,
    /// Servers that saw the same targets, each with holes of its own: gaps of one are filled from
    /// others.
    Fill,
}

/// Which of the clients that accept compression get it.
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

/// The treatment of a selector that matches several series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiSeries {
    /// The union of their points.
    #[default]
    Merge,
    /// An error that names the labels that differ.
    Error,
}

/// Whether the newest bucket is included while it fills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncompleteBuckets {
    /// It is included.
    #[default]
    Include,
    /// It is left out.
    Omit,
}

/// Limits on the load of an upstream, and what happens when it fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest time of one attempt.
    pub timeout: Duration,
    /// Attempts on top of the first.
    pub retries: u32,
    /// Mean calls a second.
    pub per_second: f64,
    /// Calls that may be made at once.
    pub burst: u32,
    /// Calls in each hour of UTC.
    pub per_hour: Option<u32>,
    /// Calls in each day of UTC.
    pub per_day: Option<u32>,
    /// Most concurrent calls.
    pub max_concurrency: usize,
    /// Whether concurrency is reduced while the upstream fails or slows down.
    pub adaptive_concurrency: bool,
    /// The time after which a second attempt is made beside a slow one; `None` for never.
    pub hedge_after: Option<Duration>,
    /// Most calls that wait.
    pub queue: usize,
    /// Failures in a row after which the breaker of a URL opens.
    pub breaker_failures: u32,
    /// For how long it stays open.
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
