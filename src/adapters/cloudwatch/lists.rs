//! `ListMetrics`: the metrics that there are, and the lists made of them.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::failure;
use super::call::{exchange, object};
use super::names::{Listed, WORDS};
use crate::adapters::{Exchange, Next, Response, garbage};
use crate::model::{Error, Field, FieldNames, FieldType, FieldValue, FieldValues, Scope};

/// Most pages that are read, of 500 metrics each.
const MOST_PAGES: u32 = 40;

/// The statistics that are offered.
pub(super) const STATISTICS: [&str; 9] = [
    "Average",
    "Sum",
    "Minimum",
    "Maximum",
    "SampleCount",
    "p50",
    "p90",
    "p95",
    "p99",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    metrics: Vec<Metric>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metric {
    namespace: String,
    metric_name: String,
    #[serde(default)]
    dimensions: Vec<Dimension>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Dimension {
    pub(super) name: String,
    pub(super) value: String,
}

/// The requested part of the metrics.
#[derive(Clone)]
pub(super) enum Wanted {
    Namespaces,
    Metrics,
    /// The values of a dimension.
    Values(String),
}

/// Returns the request for the metrics that `listed` selects, and, if `recent`, that had data in
/// the last hours.
fn request(listed: &Listed, recent: bool, token: Option<&str>) -> Value {
    let dimensions = listed.dimensions.iter();
    let dimensions: Vec<Value> = dimensions
        .map(|(name, value)| {
            let value = value.as_ref().map(|value| json!(value));
            object([("Name", Some(json!(name))), ("Value", value)])
        })
        .collect();
    let text = |text: &Option<String>| text.as_ref().map(|t| json!(t));
    object([
        ("Namespace", text(&listed.namespace)),
        ("MetricName", text(&listed.name)),
        (
            "Dimensions",
            (!dimensions.is_empty()).then(|| json!(dimensions)),
        ),
        ("RecentlyActive", recent.then(|| json!("PT3H"))),
        ("NextToken", token.map(|token| json!(token))),
    ])
}

/// The contents of the pages so far.
#[derive(Clone, Default)]
struct Found {
    texts: BTreeSet<String>,
    names: BTreeSet<String>,
    pages: u32,
}

/// Returns the names of fields that the metrics of `listed` have.
pub(super) fn names(listed: Listed, recent: bool) -> Exchange<FieldNames> {
    walk(
        listed,
        recent,
        None,
        Found::default(),
        |found, metric| {
            let names = metric.dimensions.into_iter().map(|d| d.name);
            found
                .texts
                .extend(names.map(|name| match WORDS.contains(&&*name) {
                    true => format!(":{name}"),
                    false => name,
                }));
            found.names.insert(metric.metric_name);
        },
        |found, whole| {
            let words = WORDS.iter().filter(|w| **w != "Resource");
            let mut fields: Vec<Field> = words.map(|w| Field::text(*w)).collect();
            fields.extend(found.texts.into_iter().map(Field::text));
            // StackState offers these as the metric field.
            fields.extend(found.names.into_iter().map(|name| Field {
                name,
                kind: FieldType::Number,
                classified: false,
            }));
            FieldNames {
                fields,
                partial: !whole,
            }
        },
    )
}

/// Returns the values that are `wanted` of the metrics of `listed`.
pub(super) fn values(listed: Listed, recent: bool, wanted: Wanted) -> Exchange<FieldValues> {
    walk(
        listed,
        recent,
        None,
        Found::default(),
        move |found, metric| match &wanted {
            Wanted::Namespaces => {
                found.texts.insert(metric.namespace);
            }
            Wanted::Metrics => {
                found.texts.insert(metric.metric_name);
            }
            Wanted::Values(name) => {
                let mine = metric.dimensions.into_iter().filter(|d| d.name == *name);
                found.texts.extend(mine.map(|d| d.value));
            }
        },
        |found, whole| FieldValues {
            values: found.texts.into_iter().map(FieldValue::Complete).collect(),
            partial: !whole,
        },
    )
}

/// Reads page after page: `add` takes a metric, `end` makes what is wanted of them, and is told
/// whether these are all.
fn walk<T: 'static>(
    listed: Listed,
    recent: bool,
    token: Option<&str>,
    found: Found,
    add: impl Fn(&mut Found, Metric) + Clone + Send + Sync + 'static,
    end: impl Fn(Found, bool) -> T + Clone + Send + Sync + 'static,
) -> Exchange<T> {
    let body = request(&listed, recent, token);
    exchange("ListMetrics", &body, 0, move |response| {
        let page = page(response)?;
        let mut found = found.clone();
        found.pages += 1;
        for metric in page.metrics {
            if listed.takes(&metric.dimensions) {
                add(&mut found, metric);
            }
        }
        match page.next_token {
            Some(token) if found.pages < MOST_PAGES => Ok(Next::More(walk(
                listed.clone(),
                recent,
                Some(&token),
                found,
                add.clone(),
                end.clone(),
            ))),
            more => Ok(Next::Done(end(found, more.is_none()))),
        }
    })
}

fn page(response: &Response) -> Result<Page, Error> {
    if let Some(error) = failure(response) {
        return Err(error);
    }
    serde_json::from_slice(&response.body)
        .map_err(|e| garbage(response, &format!("not an answer of ListMetrics ({e})")))
}

/// Returns the call that shows whether metrics may be listed.
pub(super) fn allowed<T>(then: impl Fn() -> Exchange<T> + Send + Sync + 'static) -> Exchange<T> {
    let body = json!({ "Namespace": "AWS/Usage" });
    exchange("ListMetrics", &body, 0, move |response| {
        page(response)?;
        Ok(Next::More(then()))
    })
}

/// Returns whether `scope` is only about data in the 3 hours before `now`.
pub(super) fn is_recent(scope: &Scope, now: i64) -> bool {
    scope.start.is_some_and(|start| start > now - 3 * 3_600_000)
}
