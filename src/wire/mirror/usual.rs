//! The usual form of a request for metric values, read in one pass and without a tree.
//!
//! Only what StackState itself writes is read here: known members, each at most once, strings
//! without escapes, short bodies. Everything else is left to the complete reader, which also words
//! the errors; what is accepted here means the same there.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::details::details;
use super::request::{Request, RequestBounds, method};
use crate::model::{
    Condition, Details, Layout, MAX_TIME, MetricQuery, Scalar, Selector, Step, Test, TimeRange,
};
use crate::wire::json::{Json, Node};

/// The longest body that is read here, in bytes. The usual request has some hundred; longer ones
/// are few, and their reader bounds what they hold.
const LONGEST: usize = 4096;

/// Defines an object whose members are known, may be absent or null, and stand in any order.
macro_rules! object {
    ($name:ident { $($key:literal => $member:ident: $type:ty,)* }) => {
        struct $name<'a> {
            $($member: Option<$type>,)*
            _text: std::marker::PhantomData<&'a str>,
        }

        impl<'de: 'a, 'a> Deserialize<'de> for $name<'a> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Members<'a>(std::marker::PhantomData<&'a str>);
                impl<'de: 'a, 'a> Visitor<'de> for Members<'a> {
                    type Value = $name<'a>;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }
                    fn visit_map<A: MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> Result<Self::Value, A::Error> {
                        let mut object = $name {
                            $($member: None,)*
                            _text: std::marker::PhantomData,
                        };
                        while let Some(key) = map.next_key::<&str>()? {
                            match key {
                                $($key if object.$member.is_none() => {
                                    object.$member = map.next_value()?;
                                })*
                                _ => return Err(A::Error::custom("not the usual form")),
                            }
                        }
                        Ok(object)
                    }
                }
                // Not `deserialize_struct`, which takes an array of the members as well.
                deserializer.deserialize_map(Members(std::marker::PhantomData))
            }
        }
    };
}

object!(Body {
    "connectionDetails" => details: Json<'a>,
    "query" => query: Query<'a>,
    "_type" => tag: &'a str,
});

object!(Query {
    "conditions" => conditions: Vec<UsualCondition<'a>>,
    "startTime" => start: i64,
    "endTime" => end: i64,
    "limit" => limit: i32,
    "latestFirst" => latest_first: bool,
    "metricField" => metric_field: &'a str,
    "aggregation" => aggregation: Aggregation<'a>,
    "_type" => tag: &'a str,
});

object!(UsualCondition {
    "key" => key: &'a str,
    "value" => value: TypedString<'a>,
    "_type" => tag: &'a str,
});

object!(TypedString {
    "value" => value: &'a str,
    "_type" => tag: &'a str,
});

object!(Aggregation {
    "method" => method: &'a str,
    "bucketSizeMillis" => size: i64,
    "_type" => tag: &'a str,
});

/// Reads the body of `/api/metric`; `None` if it is not of the usual form, right or wrong.
pub(super) fn read_metric(body: &[u8], bounds: RequestBounds) -> Option<Request<MetricQuery>> {
    if body.len() > LONGEST.min(bounds.value).min(bounds.details) {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    let body: Body<'_> = serde_json::from_str(text).ok()?;
    let Query {
        conditions,
        start,
        end,
        limit,
        latest_first: _,
        metric_field,
        aggregation,
        tag: _,
        _text,
    } = body.query?;
    let (start, end) = (start?, end?);
    let times = 0..=MAX_TIME;
    let range = TimeRange::new(start, end)?;
    if !times.contains(&start) || !times.contains(&end) {
        return None;
    }
    let conditions = conditions.unwrap_or_default().into_iter();
    Some(Request {
        details: usual_details(&body.details?, bounds)?,
        query: MetricQuery {
            selector: Selector::new(conditions.map(condition).collect::<Option<_>>()?),
            metric_field: metric_field.filter(|f| !f.is_empty()).map(str::to_owned),
            range,
            limit: match limit {
                None => None,
                Some(limit) => Some(u32::try_from(limit).ok().filter(|n| *n > 0)?),
            },
            layout: match aggregation {
                None => Layout::Raw,
                Some(aggregation) => layout(&aggregation)?,
            },
        },
    })
}

fn usual_details(json: &Json<'_>, bounds: RequestBounds) -> Option<Details> {
    match json {
        Json::Object(members) if members.is_empty() => Some(Details::default()),
        json if json.count() > bounds.details_values() => None,
        json => details(&Node::root(json)).ok(),
    }
}

fn condition(condition: UsualCondition<'_>) -> Option<Condition> {
    let value = condition.value?;
    let tagged = |tag: Option<&str>, name| tag.is_none_or(|tag| tag == name);
    let usual = tagged(condition.tag, "EqualityCondition") && tagged(value.tag, "StringValue");
    let key = condition.key.filter(|key| usual && !key.is_empty())?;
    Some(Condition {
        key: key.to_owned(),
        test: Test::Is(Scalar::String(value.value?.to_owned())),
    })
}

fn layout(aggregation: &Aggregation<'_>) -> Option<Layout> {
    if aggregation.tag.is_some_and(|tag| tag != "Aggregation") {
        return None;
    }
    let size = aggregation.size.filter(|size| *size <= MAX_TIME)?;
    Some(Layout::Buckets {
        statistic: method(aggregation.method?)?,
        size: Step::new(size)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::wire::mirror::request::read_metric_tree;

    const BOUNDS: RequestBounds = RequestBounds {
        details: 16 << 10,
        value: 8 << 10,
    };

    fn usual() -> Value {
        json!({
            "connectionDetails": { "upstream": "prom" },
            "query": {
                "conditions": [
                    { "key": "name", "value": { "value": "up", "_type": "StringValue" }, "_type": "EqualityCondition" },
                    { "key": "host", "value": { "value": "web-1" } },
                ],
                "startTime": 1_700_000_000_000_i64,
                "endTime": 1_700_003_600_000_i64,
                "limit": 10_000,
                "latestFirst": false,
                "metricField": "value",
                "aggregation": { "method": "MEAN", "bucketSizeMillis": 60_000, "_type": "Aggregation" },
                "_type": "MetricsQuery",
            },
            "_type": "MetricsRequest",
        })
    }

    /// The paths of all values in `value`, as JSON pointers.
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    pointers(value, &format!("{at}/{name}"), all);
                }
            }
            Value::Array(elements) => {
                for (i, value) in elements.iter().enumerate() {
                    pointers(value, &format!("{at}/{i}"), all);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn what_stackstate_sends_is_of_the_usual_form() {
        let body = usual().to_string();
        let read = read_metric(body.as_bytes(), BOUNDS).expect("it is usual");
        assert_eq!(read, read_metric_tree(body.as_bytes(), BOUNDS).unwrap());
        let empty = body.replace(r#"{"upstream":"prom"}"#, "{}");
        let read = read_metric(empty.as_bytes(), BOUNDS).expect("it is usual");
        assert_eq!(read, read_metric_tree(empty.as_bytes(), BOUNDS).unwrap());
    }

    proptest! {
        /// Any value of a usual request is replaced, taken away, written twice, or cut through.
        #[test]
        fn what_is_read_here_means_what_the_complete_reader_reads(
            place in any::<prop::sample::Index>(),
            second in any::<prop::sample::Index>(),
            instead in prop::sample::select(vec![
                json!(null), json!(0), json!(-1), json!(1.5), json!(1e12), json!(1e300), json!(i64::MAX),
                json!(u64::MAX), json!(true), json!(""), json!("x"), json!("\n\""), json!([]), json!([1]),
                json!(["a", 5]), json!({}), json!({ "value": "x" }), json!({ "value": 1, "_type": "DoubleValue" }),
                json!({ "url": "http://h:1" }), json!({ "host": "h", "port": "9" }), json!("mean"),
                json!("EqualityCondition"), json!("Aggregation"), json!("1700000000000"), json!(2_147_483_648_i64),
            ]),
            how in 0..4,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut request = usual();
            let mut all = Vec::new();
            pointers(&request, "", &mut all);
            let path = &all[place.index(all.len())];
            let mut text = match how {
                0 => {
                    let (parent, name) = path.rsplit_once('/').unwrap_or(("", ""));
                    if let Some(Value::Object(members)) = request.pointer_mut(parent) {
                        members.remove(name);
                    }
                    request.to_string()
                }
                1 => {
                    // A member of this name, again.
                    let name = path.rsplit_once('/').map_or("x", |p| p.1);
                    let parent = all[second.index(all.len())].clone();
                    let marker = "again";
                    if let Some(Value::Object(members)) = request.pointer_mut(&parent) {
                        members.insert(marker.to_owned(), instead);
                    }
                    request.to_string().replace(marker, name)
                }
                _ => {
                    *request.pointer_mut(path).unwrap() = instead;
                    request.to_string()
                }
            };
            if how == 3 {
                let mut at = cut.index(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                text.truncate(at);
            }
            if let Some(read) = read_metric(text.as_bytes(), BOUNDS) {
                prop_assert_eq!(Ok(read), read_metric_tree(text.as_bytes(), BOUNDS), "{}", text);
            }
        }
    }
}
