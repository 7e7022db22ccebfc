//! Requests of the mirror API, written and read.

use serde_json::{Map, Value, json};

use super::details::details;
use super::field::{FieldDescriptor, field_type};
pub use super::metric_body::{conditions_json, write_metric};
use super::usual;
use crate::model::{
    Condition, Details, Error, Field, FieldNamesQuery, FieldValuesQuery, Layout, MAX_TIME,
    MetricQuery, Number, Scalar, Scope, Selector, Statistic, Step, Test, TimeRange,
};
use crate::wire::json::{Json, MemberBounds, Node, parse_within};

/// The largest `limit` and `offset` of the protocol.
const MAX_COUNT: i64 = i32::MAX as i64;

/// The protocol's names of aggregation methods, each with its statistic. The first name of a
/// statistic is the one that Heliostat sends.
const METHODS: [(&str, Statistic); 15] = [
    ("MEAN", Statistic::Mean),
    ("PERCENTILE_25", Statistic::P25),
    ("PERCENTILE_50", Statistic::P50),
    ("PERCENTILE_75", Statistic::P75),
    ("PERCENTILE_90", Statistic::P90),
    ("PERCENTILE_95", Statistic::P95),
    ("PERCENTILE_98", Statistic::P98),
    ("PERCENTILE_99", Statistic::P99),
    ("MAX", Statistic::Max),
    ("MIN", Statistic::Min),
    ("SUM", Statistic::Sum),
    ("EVENT_COUNT", Statistic::Count),
    ("SUM_NO_ZEROS", Statistic::Sum),
    ("EVENT_COUNT_NO_ZEROS", Statistic::Count),
    ("COUNT_NO_ZEROS", Statistic::Count),
];

/// Returns the protocol's name of `statistic`.
pub fn method_name(statistic: Statistic) -> &'static str {
    let found = METHODS.iter().find(|(_, s)| *s == statistic);
    found.map_or("MEAN", |(name, _)| name)
}

/// Returns the statistic for the name of a method, in any case.
pub fn method(name: &str) -> Option<Statistic> {
    let found = METHODS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, statistic)| *statistic)
}

/// Returns the names of all methods, for error messages.
pub fn method_names() -> String {
    METHODS.map(|(name, _)| name).join(", ")
}

/// The limits on the contents of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBounds {
    /// Most bytes of the names and texts in `connectionDetails`; one value is allowed for each 32
    /// of them.
    pub details: usize,
    /// Most bytes of a name or a text in the query.
    pub value: usize,
}

/// The names and texts of a query may have as many times the bytes of one.
const MOST_VALUES: usize = 8;

impl Default for RequestBounds {
    /// Returns the defaults of `server.max_details` and `server.max_value`.
    fn default() -> Self {
        Self {
            details: 16 << 10,
            value: 8 << 10,
        }
    }
}

impl RequestBounds {
    /// Returns the most bytes of names and texts in a query, which is a part of keys: 64 KiB by default.
    fn query(&self) -> usize {
        self.value.saturating_mul(MOST_VALUES)
    }

    /// Returns the most values in `connectionDetails`: 512 by default.
    pub(super) fn details_values(&self) -> usize {
        (self.details / 32).max(16)
    }
}

/// A request of the mirror API.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<Q> {
    /// The upstream that it is for.
    pub details: Details,
    /// The query.
    pub query: Q,
}

/// Reads the body of `/api/connection`.
pub fn read_connection(body: &[u8], bounds: RequestBounds) -> Result<Request<()>, Error> {
    read(body, bounds, |_| Ok(()))
}

/// Reads the body of `/api/field/name`.
pub fn read_field_names(
    body: &[u8],
    bounds: RequestBounds,
) -> Result<Request<FieldNamesQuery>, Error> {
    read(body, bounds, |root| {
        let query = query(root)?;
        let scope = scope(&query)?;
        Ok(FieldNamesQuery { scope })
    })
}

/// Reads the body of `/api/field/value`.
pub fn read_field_values(
    body: &[u8],
    bounds: RequestBounds,
) -> Result<Request<FieldValuesQuery>, Error> {
    read(body, bounds, |root| {
        let query = query(root)?;
        let offset = query.member("offset").optional_integer(0, MAX_COUNT)?;
        Ok(FieldValuesQuery {
            scope: scope(&query)?,
            field: field(&query.member("field"))?,
            prefix: query
                .member("fieldValuePrefix")
                .optional_string()?
                .unwrap_or_default()
                .to_owned(),
            offset: count(offset).unwrap_or(0),
        })
    })
}

/// Reads the body of `/api/metric`.
pub fn read_metric(body: &[u8], bounds: RequestBounds) -> Result<Request<MetricQuery>, Error> {
    usual::read_metric(body, bounds).map_or_else(|| read_metric_tree(body, bounds), Ok)
}

/// Reads the body of `/api/metric` through a tree: accepts any form, and produces the errors.
pub(super) fn read_metric_tree(
    body: &[u8],
    bounds: RequestBounds,
) -> Result<Request<MetricQuery>, Error> {
    read(body, bounds, |root| {
        let query = query(root)?;
        let start = query.member("startTime");
        let end = query.member("endTime");
        let (from, to) = (start.integer(0, MAX_TIME)?, end.integer(0, MAX_TIME)?);
        let range = TimeRange::new(from, to).ok_or_else(|| reversed(&start, from, to))?;
        Ok(MetricQuery {
            selector: selector(&query)?,
            metric_field: query
                .member("metricField")
                .optional_string()?
                .filter(|f| !f.is_empty())
                .map(str::to_owned),
            range,
            limit: limit(&query)?,
            layout: layout(&query.member("aggregation"))?,
        })
    })
}

pub(in crate::wire) fn reversed(start: &Node<'_>, from: i64, to: i64) -> Error {
    Error::invalid(
        start.path(),
        format!("startTime ({from}) must not be after endTime ({to})"),
    )
}

fn read<Q>(
    body: &[u8],
    bounds: RequestBounds,
    read_query: impl FnOnce(&Node<'_>) -> Result<Q, Error>,
) -> Result<Request<Q>, Error> {
    let details_bounds = MemberBounds {
        name: "connectionDetails",
        values: bounds.details_values(),
        text: bounds.details,
    };
    let value = parse_within(body, Some(details_bounds))?;
    let root = Node::root(&value);
    root.object()?;
    // A shorter body cannot contain a longer value.
    if body.len() > bounds.value {
        let query = root.member("query");
        query.check_lengths(bounds.value, "server.max_value")?;
        let (text, most) = (query.value().map_or(0, Json::text_bytes), bounds.query());
        if text > most {
            let message = format!(
                "has {text} bytes of names and texts; at most {most} are allowed ({MOST_VALUES} times server.max_value)"
            );
            return Err(Error::invalid("query", message));
        }
    }
    Ok(Request {
        details: details(&root.member("connectionDetails"))?,
        query: read_query(&root)?,
    })
}

fn query<'a>(root: &'a Node<'a>) -> Result<Node<'a>, Error> {
    let query = root.member("query");
    query.object()?;
    Ok(query)
}

fn scope(query: &Node<'_>) -> Result<Scope, Error> {
    let start = query.member("startTime").optional_integer(0, MAX_TIME)?;
    let end = query.member("endTime").optional_integer(0, MAX_TIME)?;
    if let (Some(from), Some(to)) = (start, end)
        && from > to
    {
        return Err(reversed(&query.member("startTime"), from, to));
    }
    let latest_first = query.member("latestFirst").optional_bool()?;
    Ok(Scope {
        selector: selector(query)?,
        start,
        end,
        limit: limit(query)?,
        latest_first: latest_first.unwrap_or(false),
    })
}

fn limit(query: &Node<'_>) -> Result<Option<u32>, Error> {
    Ok(count(query.member("limit").optional_integer(1, MAX_COUNT)?))
}

fn count(number: Option<i64>) -> Option<u32> {
    number.and_then(|n| u32::try_from(n).ok())
}

fn field(node: &Node<'_>) -> Result<Field, Error> {
    node.object()?;
    let classified = node.member("classified").optional_bool()?;
    let name = node.member("fieldName");
    Ok(Field {
        name: Some(name.string()?)
            .filter(|n| !n.is_empty())
            .ok_or_else(|| name.expected("the name of a field"))?
            .to_owned(),
        kind: field_type(&node.member("fieldType"))?,
        classified: classified.unwrap_or(false),
    })
}

pub(in crate::wire) fn selector(query: &Node<'_>) -> Result<Selector, Error> {
    let conditions = query.member("conditions");
    if !conditions.is_present() {
        return Ok(Selector::default());
    }
    let conditions: Result<_, _> = conditions.elements()?.map(|c| condition(&c)).collect();
    Ok(Selector::new(conditions?))
}

fn condition(node: &Node<'_>) -> Result<Condition, Error> {
    node.object()?;
    tagged(node, &["EqualityCondition"])?;
    let key = node.member("key");
    let name = Some(key.string()?).filter(|k| !k.is_empty());
    let name = name.ok_or_else(|| key.expected("the name of a field"))?;
    let typed = node.member("value");
    let test = if typed.is_object() {
        test(&typed.member("value"), &typed.member("_type"))?
    } else {
        // A bare value determines its type.
        test(&typed, &typed.member("_type"))?
    };
    Ok(Condition {
        key: name.to_owned(),
        test,
    })
}

fn test(value: &Node<'_>, tag: &Node<'_>) -> Result<Test, Error> {
    match tag.optional_string()? {
        None if value.is_array() => set(value),
        None => scalar(value).map(Test::Is),
        Some("InSetValue") => set(value),
        Some("StringValue") => value
            .string()
            .map(|s| Test::Is(Scalar::String(s.to_owned()))),
        Some("DoubleValue") => number(value).map(Test::Is),
        Some("BooleanValue") => match value.optional_bool()? {
            Some(b) => Ok(Test::Is(Scalar::Bool(b))),
            None => Err(value.expected("true or false")),
        },
        Some(_) => Err(tag.expected("StringValue, DoubleValue, BooleanValue or InSetValue")),
    }
}

fn set(value: &Node<'_>) -> Result<Test, Error> {
    let element = |node: Node<'_>| {
        if node.is_object() {
            match test(&node.member("value"), &node.member("_type"))? {
                Test::Is(scalar) => Ok(scalar),
                Test::In(_) => Err(node.expected("a single value")),
            }
        } else {
            scalar(&node)
        }
    };
    let values: Result<Vec<_>, _> = value.elements()?.map(element).collect();
    values.map(Test::In)
}

fn scalar(node: &Node<'_>) -> Result<Scalar, Error> {
    match node.value() {
        Some(Json::String(s)) => Ok(Scalar::String(s.clone().into_owned())),
        Some(Json::Number(_)) => number(node),
        Some(Json::Bool(b)) => Ok(Scalar::Bool(*b)),
        _ => Err(node.expected("a string, a number, true or false")),
    }
}

fn number(node: &Node<'_>) -> Result<Scalar, Error> {
    let number = node.number().and_then(Number::new);
    number
        .map(Scalar::Number)
        .ok_or_else(|| node.expected("a number"))
}

fn layout(node: &Node<'_>) -> Result<Layout, Error> {
    if !node.is_present() {
        return Ok(Layout::Raw);
    }
    node.object()?;
    tagged(node, &["Aggregation"])?;
    let name = node.member("method");
    let statistic = method(name.string()?)
        .ok_or_else(|| name.expected(format_args!("one of {}", method_names())))?;
    let size = node.member("bucketSizeMillis");
    let size = Step::new(size.integer(1, MAX_TIME)?)
        .ok_or_else(|| size.expected("a positive number of milliseconds"))?;
    Ok(Layout::Buckets { statistic, size })
}

/// Checks a `_type`: it may be absent, and otherwise has to be one of `allowed`.
fn tagged(node: &Node<'_>, allowed: &[&str]) -> Result<(), Error> {
    let tag = node.member("_type");
    match tag.optional_string()? {
        Some(name) if !allowed.contains(&name) => Err(tag.expected(allowed.join(" or "))),
        _ => Ok(()),
    }
}

/// Returns the body of `/api/connection`.
pub fn write_connection(details: &Map<String, Value>) -> Vec<u8> {
    body(&json!({ "connectionDetails": details, "_type": "TestConnectionRequest" }))
}

/// Returns the body of `/api/field/name`.
pub fn write_field_names(details: &Map<String, Value>, query: &FieldNamesQuery) -> Vec<u8> {
    let mut fields = scope_json(&query.scope);
    fields.insert("_type".into(), "FieldNamesQuery".into());
    body(&json!({ "connectionDetails": details, "query": fields, "_type": "FieldNamesRequest" }))
}

/// Returns the body of `/api/field/value`.
pub fn write_field_values(details: &Map<String, Value>, query: &FieldValuesQuery) -> Vec<u8> {
    let mut fields = scope_json(&query.scope);
    fields.insert("field".into(), json!(FieldDescriptor::of(&query.field)));
    fields.insert("fieldValuePrefix".into(), query.prefix.clone().into());
    fields.insert("offset".into(), query.offset.into());
    fields.insert("_type".into(), "FieldValuesQuery".into());
    body(&json!({ "connectionDetails": details, "query": fields, "_type": "FieldValuesRequest" }))
}

fn body(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn scope_json(scope: &Scope) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("conditions".into(), conditions_json(&scope.selector));
    if let Some(start) = scope.start {
        fields.insert("startTime".into(), start.into());
    }
    if let Some(end) = scope.end {
        fields.insert("endTime".into(), end.into());
    }
    if let Some(limit) = scope.limit {
        fields.insert("limit".into(), limit.into());
    }
    fields.insert("latestFirst".into(), scope.latest_first.into());
    fields
}
