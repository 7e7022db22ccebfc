//! The body of `/api/metric`, written without a tree: each miss sends one.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::request::method_name;
use crate::model::{Layout, MetricQuery, Scalar, Selector, Test};

/// Returns the body of `/api/metric`.
pub fn write_metric(details: &Map<String, Value>, query: &MetricQuery) -> Vec<u8> {
    let aggregation = match query.layout {
        Layout::Raw => None,
        Layout::Buckets { statistic, size } => Some(AggregationBody {
            tag: "Aggregation",
            size: size.millis(),
            method: method_name(statistic),
        }),
    };
    let body = MetricsRequestBody {
        tag: "MetricsRequest",
        details,
        query: MetricsQueryBody {
            tag: "MetricsQuery",
            aggregation,
            conditions: ConditionsBody(&query.selector),
            end: query.range.end(),
            limit: query.limit,
            metric_field: query.metric_field.as_deref(),
            start: query.range.start(),
        },
    };
    // Each miss sends one, so no tree is made. Writing names and numbers into memory cannot fail.
    serde_json::to_vec(&body).unwrap_or_default()
}

/// The body of `/api/metric`. Members are in order of their names, as in the bodies that are made of
/// trees: a lane's name in a second level of the cache is a hash of it.
#[derive(Serialize)]
struct MetricsRequestBody<'a> {
    #[serde(rename = "_type")]
    tag: &'static str,
    #[serde(rename = "connectionDetails")]
    details: &'a Map<String, Value>,
    query: MetricsQueryBody<'a>,
}

#[derive(Serialize)]
struct MetricsQueryBody<'a> {
    #[serde(rename = "_type")]
    tag: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    aggregation: Option<AggregationBody>,
    conditions: ConditionsBody<'a>,
    #[serde(rename = "endTime")]
    end: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(rename = "metricField", skip_serializing_if = "Option::is_none")]
    metric_field: Option<&'a str>,
    #[serde(rename = "startTime")]
    start: i64,
}

#[derive(Serialize)]
struct AggregationBody {
    #[serde(rename = "_type")]
    tag: &'static str,
    #[serde(rename = "bucketSizeMillis")]
    size: i64,
    method: &'static str,
}

/// The conditions of a selector.
struct ConditionsBody<'a>(&'a Selector);

impl Serialize for ConditionsBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bodies = self.0.conditions().iter().map(|condition| ConditionBody {
            tag: "EqualityCondition",
            key: &condition.key,
            value: ValueBody::of(&condition.test),
        });
        serializer.collect_seq(bodies)
    }
}

#[derive(Serialize)]
struct ConditionBody<'a> {
    #[serde(rename = "_type")]
    tag: &'static str,
    key: &'a str,
    value: ValueBody<'a>,
}

#[derive(Serialize)]
struct ValueBody<'a> {
    #[serde(rename = "_type")]
    tag: &'static str,
    value: TestBody<'a>,
}

/// A value, or a set of them, without the name of its type.
#[derive(Serialize)]
#[serde(untagged)]
enum TestBody<'a> {
    String(&'a str),
    Number(f64),
    Bool(bool),
    Set(Vec<Self>),
}

impl<'a> ValueBody<'a> {
    fn of(test: &'a Test) -> Self {
        let (tag, value) = match test {
            Test::Is(scalar) => {
                let tag = match scalar {
                    Scalar::String(_) => "StringValue",
                    Scalar::Number(_) => "DoubleValue",
                    Scalar::Bool(_) => "BooleanValue",
                };
                (tag, TestBody::of(scalar))
            }
            Test::In(values) => {
                let values = values.iter().map(TestBody::of);
                ("InSetValue", TestBody::Set(values.collect()))
            }
        };
        Self { tag, value }
    }
}

impl<'a> TestBody<'a> {
    fn of(scalar: &'a Scalar) -> Self {
        match scalar {
            Scalar::String(s) => Self::String(s),
            Scalar::Number(n) => Self::Number(n.get()),
            Scalar::Bool(b) => Self::Bool(*b),
        }
    }
}

/// Returns the conditions of `selector` as in a request.
pub fn conditions_json(selector: &Selector) -> Value {
    json!(ConditionsBody(selector))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Condition, Number, Statistic, Step, TimeRange};
    use crate::wire::mirror::request::{RequestBounds, read_metric};

    #[test]
    fn bodies_are_those_of_trees_and_are_read_back() {
        let number = |n| Scalar::Number(Number::new(n).unwrap());
        let tests = [
            Test::Is(Scalar::String("a \"b\"\n\u{1}é".into())),
            Test::Is(number(-1.5e300)),
            Test::Is(Scalar::Bool(true)),
            Test::In(vec![number(3.0), Scalar::String(String::new())]),
            Test::In(Vec::new()),
        ];
        let conditions = tests.map(|test| Condition {
            key: "key".into(),
            test,
        });
        let mut query = MetricQuery {
            selector: Selector::new(conditions.into()),
            metric_field: Some("value\\".into()),
            range: TimeRange::new(0, 1_764_172_800_000).unwrap(),
            limit: Some(7),
            layout: Layout::Buckets {
                statistic: Statistic::P95,
                size: Step::new(60_000).unwrap(),
            },
        };
        let details = json!({ "b": { "z": 1, "a": null }, "a": "x" });
        let details = details.as_object().unwrap();
        for few in [false, true] {
            if few {
                query.selector = Selector::default();
                (query.metric_field, query.limit) = (None, None);
                query.layout = Layout::Raw;
            }
            let body = write_metric(details, &query);
            // A tree has its members in order of their names.
            let tree: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(String::from_utf8(body.clone()).unwrap(), tree.to_string());
            let members = tree["query"].as_object().unwrap().len();
            assert_eq!(members, if few { 4 } else { 7 });
            let read = read_metric(&body, RequestBounds::default()).unwrap();
            assert_eq!(read.query, query);
            assert_eq!(&read.details.rest, details);
        }
    }
}
