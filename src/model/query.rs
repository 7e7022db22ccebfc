//! Queries: metric values, field names, field values, and the upstream they go to.

use std::fmt;
use std::time::Duration;

use super::fields::Field;
use super::selector::Selector;
use super::statistic::Statistic;
use super::target::TargetUrl;
use super::time::{Millis, Step, TimeRange};

/// The layout of the points of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Raw points.
    Raw,
    /// One value per bucket of the epoch grid.
    Buckets {
        /// The statistic of a bucket.
        statistic: Statistic,
        /// The size of a bucket.
        size: Step,
    },
}

/// A query for metric values.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricQuery {
    /// The series.
    pub selector: Selector,
    /// The field with the value, for stores with several.
    pub metric_field: Option<String>,
    /// The requested range.
    pub range: TimeRange,
    /// Most points in the answer; at least 1.
    pub limit: Option<u32>,
    /// Raw points or buckets.
    pub layout: Layout,
}

/// The common part of queries for field names and field values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Only fields of matching series.
    pub selector: Selector,
    /// Only fields of series with points at or after it.
    pub start: Option<Millis>,
    /// Only fields of series with points before it.
    pub end: Option<Millis>,
    /// Most entries in the answer; at least 1.
    pub limit: Option<u32>,
    /// Whether the most recently seen come first.
    pub latest_first: bool,
}

/// A query for the names of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldNamesQuery {
    /// The series and the range to search.
    pub scope: Scope,
}

/// A query for the values of one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldValuesQuery {
    /// The series and the range to search.
    pub scope: Scope,
    /// The field.
    pub field: Field,
    /// Only values with this prefix.
    pub prefix: String,
    /// The number of values to skip.
    pub offset: u32,
}

/// The treatment of NaN in a store's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NanInterpretation {
    /// It is left out.
    #[default]
    Omit,
    /// It counts as 0.
    Zero,
}

/// The `connectionDetails` of a request, as far as they concern Heliostat.
#[derive(Clone, Default, PartialEq)]
pub struct Details {
    /// The upstream by its configured name.
    pub upstream: Option<String>,
    /// The upstream by its address.
    pub url: Option<TargetUrl>,
    /// The client's own limit for the request.
    pub timeout: Option<Duration>,
    /// The treatment of NaN.
    pub nan: NanInterpretation,
    /// The rest, without what selected the upstream, as the client sent it.
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl Details {
    /// The keys of `connectionDetails` that have a meaning here.
    pub const KEYS: [&'static str; 7] = [
        "upstream",
        "url",
        "host",
        "port",
        "requestTimeout",
        "request_timeout_seconds",
        "nan_interpretation",
    ];
}

impl fmt::Debug for Details {
    /// Omits the details, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Details")
            .field("upstream", &self.upstream)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
