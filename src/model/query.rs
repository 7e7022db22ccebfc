//! What can be asked: metric values, field names, field values, and of whom.

use std::fmt;
use std::time::Duration;

use super::fields::Field;
use super::selector::Selector;
use super::statistic::Statistic;
use super::target::TargetUrl;
use super::time::{Millis, Step, TimeRange};

/// How the points of an answer are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The points themselves.
    Raw,
    /// One value a bucket of the epoch grid.
    Buckets {
        /// What a bucket is reduced to.
        statistic: Statistic,
        /// The size of a bucket.
        size: Step,
    },
}

/// A query for metric values.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricQuery {
    /// Which series.
    pub selector: Selector,
    /// The field that holds the value, for stores with several.
    pub metric_field: Option<String>,
    /// The range asked for.
    pub range: TimeRange,
    /// Most points to answer; at least 1.
    pub limit: Option<u32>,
    /// Raw points or buckets.
    pub layout: Layout,
}

/// What queries for field names and for field values have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Only fields of series that meet it.
    pub selector: Selector,
    /// Only fields of series with points at or after it.
    pub start: Option<Millis>,
    /// Only fields of series with points before it.
    pub end: Option<Millis>,
    /// Most entries to answer; at least 1.
    pub limit: Option<u32>,
    /// Whether the most recently seen come first.
    pub latest_first: bool,
}

/// A query for the names of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldNamesQuery {
    /// Where to look.
    pub scope: Scope,
}

/// A query for the values of one field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldValuesQuery {
    /// Where to look.
    pub scope: Scope,
    /// The field.
    pub field: Field,
    /// Only values that start so.
    pub prefix: String,
    /// How many values to leave out at the start.
    pub offset: u32,
}

/// What becomes of a NaN that a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NanInterpretation {
    /// It is left out.
    #[default]
    Omit,
    /// It counts as 0.
    Zero,
}

/// A request's `connectionDetails`, read as far as they concern us.
#[derive(Clone, Default, PartialEq)]
pub struct Details {
    /// The upstream by its configured name.
    pub upstream: Option<String>,
    /// The upstream by its address.
    pub url: Option<TargetUrl>,
    /// The client's own limit for the request.
    pub timeout: Option<Duration>,
    /// What becomes of NaN.
    pub nan: NanInterpretation,
    /// Everything but what picked the upstream, as the client sent it.
    pub rest: serde_json::Map<String, serde_json::Value>,
}

impl fmt::Debug for Details {
    /// What clients send besides may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Details")
            .field("upstream", &self.upstream)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
