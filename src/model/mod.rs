//! The types that all other modules share: time, points, selectors, queries and errors.
//!
//! Nothing here does I/O, and values of these types are always valid.

pub mod access;
pub mod address;
pub mod error;
pub mod expression;
pub mod fields;
pub mod heap;
pub mod points;
pub mod policy;
pub mod query;
pub mod raw_response;
pub mod region;
pub mod selector;
pub mod setting;
pub mod shared_text;
pub mod statistic;
pub mod stop;
pub mod target;
pub mod time;

pub use access::{PasswordHash, TokenHash};
pub use error::{Error, Evidence, Kind, Origin};
pub use expression::Expression;
pub use fields::{Field, FieldNames, FieldType, FieldValue, FieldValues};
pub use heap::{heap_block, heap_headers};
pub use points::{Bucket, Points};
pub use policy::{
    Aggregate, Batching, Compression, Freshness, IncompleteBuckets, InstantAlignment, Limits,
    MetricPace, MultiSeries, NamespaceRule, QueryMethod, RangeLimits, Reading, Replicas,
    StepAlignment, Units,
};
pub use query::{
    Details, FieldNamesQuery, FieldValuesQuery, Layout, MetricQuery, NanInterpretation, Scope,
};
pub use raw_response::RawResponse;
pub use region::{is_region, partition};
pub use selector::{Condition, Number, Scalar, Selector, Test};
pub use setting::{Setting, SettingOrigin};
pub use shared_text::SharedText;
pub use statistic::Statistic;
pub use stop::Checkpoints;
pub use target::{Pattern, TargetUrl};
pub use time::{MAX_TIME, Millis, RangeSet, Step, TimeRange};
