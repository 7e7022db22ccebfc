//! The functions and aggregations of PromQL.

use super::tree::Type;
use super::tree::Type::{Matrix as M, Scalar as S, String as T, Vector as V};

/// A function of Prometheus.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    /// The types of its arguments; the last one applies to all further ones.
    pub(super) arguments: &'static [Type],
    /// The least and the greatest number of arguments.
    pub(super) count: (usize, usize),
    pub(super) result: Type,
    /// The inputs that its value depends on.
    pub(super) depends: Depends,
}

/// The inputs that the value of a function at a time depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depends {
    /// Its arguments at that time, or the samples of a range that ends there.
    Time,
    /// The range and the step of the query.
    Window,
}

const fn plain(name: &'static str, arguments: &'static [Type], result: Type) -> Function {
    ranged(name, arguments, (arguments.len(), arguments.len()), result)
}

const fn ranged(
    name: &'static str,
    arguments: &'static [Type],
    count: (usize, usize),
    result: Type,
) -> Function {
    Function {
        name,
        arguments,
        count,
        result,
        depends: Depends::Time,
    }
}

const fn of_window(name: &'static str) -> Function {
    Function {
        depends: Depends::Window,
        ..plain(name, &[], S)
    }
}

/// Any number of arguments.
const ANY: usize = usize::MAX;

/// The functions by name: all of Prometheus 2.42, and those added since that are as simple.
///
/// `time`, `timestamp`, `hour` and the like are functions of the evaluation time. A subquery is
/// evaluated at multiples of its step since the epoch, independently of the window ("Subquery",
/// Prometheus documentation); without a step, at the origin's own evaluation interval. `sort` and
/// its variants order the results of instant queries only; the result of a range query is ordered
/// by labels. `absent` and `scalar` have a value at each time. `label_replace` and `label_join` may
/// merge two series into one; Prometheus from 2.5x on refuses a window that contains both, although
/// no single evaluation time does (prometheus/prometheus#15114). In that case Heliostat answers
/// with the values that it has cached one by one. `info` is left out: it is experimental, and it
/// looks series up by the window.
static FUNCTIONS: &[Function] = &[
    plain("abs", &[V], V),
    plain("absent", &[V], V),
    plain("absent_over_time", &[M], V),
    plain("acos", &[V], V),
    plain("acosh", &[V], V),
    plain("asin", &[V], V),
    plain("asinh", &[V], V),
    plain("atan", &[V], V),
    plain("atanh", &[V], V),
    plain("avg_over_time", &[M], V),
    plain("ceil", &[V], V),
    plain("changes", &[M], V),
    plain("clamp", &[V, S, S], V),
    plain("clamp_max", &[V, S], V),
    plain("clamp_min", &[V, S], V),
    plain("cos", &[V], V),
    plain("cosh", &[V], V),
    plain("count_over_time", &[M], V),
    ranged("day_of_month", &[V], (0, 1), V),
    ranged("day_of_week", &[V], (0, 1), V),
    ranged("day_of_year", &[V], (0, 1), V),
    ranged("days_in_month", &[V], (0, 1), V),
    plain("deg", &[V], V),
    plain("delta", &[M], V),
    plain("deriv", &[M], V),
    plain("double_exponential_smoothing", &[M, S, S], V),
    of_window("end"),
    plain("exp", &[V], V),
    plain("first_over_time", &[M], V),
    plain("floor", &[V], V),
    plain("histogram_avg", &[V], V),
    plain("histogram_count", &[V], V),
    plain("histogram_fraction", &[S, S, V], V),
    plain("histogram_quantile", &[S, V], V),
    ranged("histogram_quantiles", &[V, T, S], (3, 12), V),
    plain("histogram_stddev", &[V], V),
    plain("histogram_stdvar", &[V], V),
    plain("histogram_sum", &[V], V),
    plain("holt_winters", &[M, S, S], V),
    ranged("hour", &[V], (0, 1), V),
    plain("idelta", &[M], V),
    plain("increase", &[M], V),
    plain("irate", &[M], V),
    ranged("label_join", &[V, T, T, T], (3, ANY), V),
    plain("label_replace", &[V, T, T, T, T], V),
    plain("last_over_time", &[M], V),
    plain("ln", &[V], V),
    plain("log10", &[V], V),
    plain("log2", &[V], V),
    plain("mad_over_time", &[M], V),
    plain("max_over_time", &[M], V),
    plain("min_over_time", &[M], V),
    ranged("minute", &[V], (0, 1), V),
    ranged("month", &[V], (0, 1), V),
    plain("pi", &[], S),
    plain("predict_linear", &[M, S], V),
    plain("present_over_time", &[M], V),
    plain("quantile_over_time", &[S, M], V),
    plain("rad", &[V], V),
    of_window("range"),
    plain("rate", &[M], V),
    plain("resets", &[M], V),
    ranged("round", &[V, S], (1, 2), V),
    plain("scalar", &[V], S),
    plain("sgn", &[V], V),
    plain("sin", &[V], V),
    plain("sinh", &[V], V),
    plain("sort", &[V], V),
    ranged("sort_by_label", &[V, T], (1, ANY), V),
    ranged("sort_by_label_desc", &[V, T], (1, ANY), V),
    plain("sort_desc", &[V], V),
    plain("sqrt", &[V], V),
    of_window("start"),
    plain("stddev_over_time", &[M], V),
    plain("stdvar_over_time", &[M], V),
    of_window("step"),
    plain("sum_over_time", &[M], V),
    plain("tan", &[V], V),
    plain("tanh", &[V], V),
    plain("time", &[], S),
    plain("timestamp", &[V], V),
    plain("ts_of_first_over_time", &[M], V),
    plain("ts_of_last_over_time", &[M], V),
    plain("ts_of_max_over_time", &[M], V),
    plain("ts_of_min_over_time", &[M], V),
    plain("vector", &[S], V),
    ranged("year", &[V], (0, 1), V),
];

/// Returns the function `name`, which is case-sensitive.
pub(super) fn function(name: &str) -> Option<&'static Function> {
    let found = FUNCTIONS.binary_search_by(|f| f.name.cmp(name)).ok()?;
    FUNCTIONS.get(found)
}

/// An aggregation: its name, and the type of its parameter if it has one.
#[derive(Debug)]
pub(super) struct Aggregation {
    pub(super) name: &'static str,
    pub(super) parameter: Option<Type>,
}

static AGGREGATIONS: &[Aggregation] = &[
    aggregation("avg", None),
    aggregation("bottomk", Some(S)),
    aggregation("count", None),
    aggregation("count_values", Some(T)),
    aggregation("group", None),
    aggregation("limit_ratio", Some(S)),
    aggregation("limitk", Some(S)),
    aggregation("max", None),
    aggregation("min", None),
    aggregation("quantile", Some(S)),
    aggregation("stddev", None),
    aggregation("stdvar", None),
    aggregation("sum", None),
    aggregation("topk", Some(S)),
];

const fn aggregation(name: &'static str, parameter: Option<Type>) -> Aggregation {
    Aggregation { name, parameter }
}

/// Returns the aggregation `name`, which is case-insensitive.
pub(super) fn aggregation_named(name: &str) -> Option<&'static Aggregation> {
    AGGREGATIONS
        .iter()
        .find(|a| a.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_sorted_by_name() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.name < b.name));
        assert!(FUNCTIONS.iter().all(|f| function(f.name).is_some()));
    }
}
