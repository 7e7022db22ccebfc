//! Queries over the series.

use super::series::{self, DemoSeries};
use super::signal::INTERVAL;
use crate::aggregate::aggregate;
use crate::model::{
    Error, FieldNamesQuery, FieldValues, FieldValuesQuery, Kind, Layout, MetricQuery, Millis,
    Points, Scalar, Selector, Statistic, Step, TimeRange,
};
use crate::wire::{mirror::response, number};

/// The only field that holds values.
const VALUE: &str = "value";

/// The field that holds the name of a metric.
const NAME: &str = "name";

/// Most field values in an answer if the query has no limit.
const VALUES_DEFAULT: usize = 1000;

/// Answers a query for the names of fields.
pub(super) fn field_names(query: &FieldNamesQuery) -> Result<Vec<u8>, Error> {
    let scope = &query.scope;
    let mut fields = series::fields(&select(&scope.selector)?);
    if scope.latest_first {
        fields.reverse();
    }
    let limit = scope.limit.map_or(usize::MAX, at_most);
    let partial = fields.len() > limit;
    fields.truncate(limit);
    Ok(response::write_field_names(&fields, partial))
}

/// Answers a query for the values of a field.
pub(super) fn field_values(query: &FieldValuesQuery) -> Result<Vec<u8>, Error> {
    let scope = &query.scope;
    let every: Vec<&DemoSeries> = series::all().iter().collect();
    let known = series::fields(&every);
    if !known.iter().any(|f| f.name == query.field.name) {
        let names: Vec<_> = known.iter().map(|f| f.name.as_str()).collect();
        return Err(Error::invalid(
            "query.field.fieldName",
            format!(
                "expected one of {}, found {:?}",
                names.join(", "),
                query.field.name
            ),
        ));
    }
    let mut values: Vec<String> = Vec::new();
    for series in select(&scope.selector)? {
        if let Some(value) = series.field(&query.field.name) {
            let value = value.to_string();
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
    if scope.latest_first {
        values.reverse();
    }
    let limit = scope.limit.map_or(VALUES_DEFAULT, at_most);
    let page = FieldValues::page(&values, &query.prefix, at_most(query.offset), limit);
    Ok(response::write_field_values(&page))
}

/// Answers a query for metric values as known at `now`, from at most `cap` points.
pub(super) fn metric(query: &MetricQuery, now: Millis, cap: u64) -> Result<Vec<u8>, Error> {
    if let Some(field) = query.metric_field.as_deref().filter(|f| *f != VALUE) {
        let message = format!("expected {VALUE:?}, the only field with values, found {field:?}");
        return Err(Error::invalid("query.metricField", message));
    }
    let mut series = select(&query.selector)?;
    // Series that are in this order within one interval are in order over all intervals. The sort
    // is stable, so that points of one time keep the order of their series.
    series.sort_by_key(|s| s.phase());
    let limit = query.limit.map_or(usize::MAX, at_most);
    match query.layout {
        Layout::Raw => Ok(raw(&series, query.range, now, limit, cap)),
        Layout::Buckets { statistic, size } => {
            let points = evaluate(&series, query.range, size, now, cap)?;
            Ok(buckets(&points, query.range, statistic, size, limit))
        }
    }
}

/// Returns the series that match `selector`, in the order in which they were first seen. A metric
/// that no series has is an error.
fn select(selector: &Selector) -> Result<Vec<&'static DemoSeries>, Error> {
    let conditions = selector.conditions();
    for condition in conditions.iter().filter(|c| c.key == NAME) {
        let asked = condition.test.values();
        // An empty set names no unknown metric: it simply matches nothing.
        if !asked.is_empty() && !series::all().iter().any(|s| s.meets(condition)) {
            let names: Vec<_> = asked.iter().map(Scalar::to_string).collect();
            let error = Error::new(
                Kind::MetricNotFound,
                "no series of the demonstration has this name; to list the names, ask \
                 /api/field/value for the values of the field \"name\"",
            );
            return Err(error.about(names.join(", ")));
        }
    }
    let all = series::all().iter();
    Ok(all
        .filter(|s| conditions.iter().all(|c| s.meets(c)))
        .collect())
}

/// Returns the part of `range` that can contain points: there are none before the epoch or after
/// `now`.
fn with_points(range: TimeRange, now: Millis) -> TimeRange {
    let start = range.start().max(0);
    TimeRange::clamped(start, range.end().min(now.saturating_add(1)))
}

/// Returns the positions of all points of `series` in `range`, in order of time, including missing
/// ones.
fn places<'a>(
    series: &'a [&'static DemoSeries],
    range: TimeRange,
) -> impl Iterator<Item = (&'static DemoSeries, i64)> + 'a {
    let first = range.start().div_euclid(INTERVAL);
    // Without series nothing can be found, and no cap would end the search.
    let intervals = if series.is_empty() {
        0
    } else {
        range.end().div_euclid(INTERVAL) - first + 1
    };
    (first..first + intervals)
        .flat_map(move |k| series.iter().map(move |s| (*s, k)))
        .filter(move |(s, k)| range.holds(k * INTERVAL + s.phase()))
}

/// Returns the points themselves: at most `limit`, out of at most `cap` that are examined.
fn raw(
    series: &[&'static DemoSeries],
    range: TimeRange,
    now: Millis,
    limit: usize,
    cap: u64,
) -> Vec<u8> {
    let mut out = response::METRIC_HEAD.to_vec();
    let (mut written, mut seen) = (0, 0);
    let mut partial = false;
    for (series, k) in places(series, with_points(range, now)) {
        if seen == cap {
            partial = true;
            break;
        }
        seen += 1;
        let Some((time, value)) = series.point(k, now) else {
            continue;
        };
        if written == limit {
            partial = true;
            break;
        }
        if written > 0 {
            out.push(b',');
        }
        number::write_point(&mut out, time, value);
        written += 1;
    }
    out.extend_from_slice(response::metric_tail(false, partial));
    out
}

/// Returns all points of the buckets that `range` touches.
fn evaluate(
    series: &[&'static DemoSeries],
    range: TimeRange,
    size: Step,
    now: Millis,
    cap: u64,
) -> Result<Points, Error> {
    // Otherwise an empty range within a bucket would grow to the whole bucket.
    if range.is_empty() {
        return Ok(Points::new());
    }
    let range = with_points(range.aligned(size), now);
    let needed: u64 = series.iter().map(|s| s.points_in(&range)).sum();
    if needed > cap {
        return Err(Error::new(
            Kind::TooManyPoints,
            format!(
                "these buckets hold {needed} points of {} series, and the demonstration \
                 evaluates at most {cap} a query; ask for a shorter range or fewer series",
                series.len()
            ),
        ));
    }
    let mut points = Points::new();
    for (series, k) in places(series, range) {
        if let Some((time, value)) = series.point(k, now) {
            points.push(time, value);
        }
    }
    Ok(points)
}

fn buckets(
    points: &Points,
    range: TimeRange,
    statistic: Statistic,
    size: Step,
    limit: usize,
) -> Vec<u8> {
    let buckets = aggregate(points, statistic, size, &range);
    let mut out = response::METRIC_HEAD.to_vec();
    for (i, (start, value)) in buckets.iter().take(limit).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        number::write_bucket(&mut out, start, size, value);
    }
    let partial = buckets.len() > limit;
    out.extend_from_slice(response::metric_tail(true, partial));
    out
}

fn at_most(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
