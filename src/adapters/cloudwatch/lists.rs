//! `ListMetrics`: the metrics that there are.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{failure, is_bad_token};
use super::call::{exchange, object};
use super::catalogue::{Catalogue, CatalogueScope, ListedMetric};
use crate::adapters::{Exchange, Next, Response, garbage};
use crate::model::{Error, Scope};

/// Most pages that are read, of 500 metrics each.
const MOST_PAGES: usize = 40;

/// No further page is read once the texts of a catalogue have so many bytes.
const MOST_BYTES: usize = 8 << 20;

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
struct Dimension {
    name: String,
    value: String,
}

impl Metric {
    fn listed(&self) -> ListedMetric<'_> {
        let dimensions = self.dimensions.iter();
        ListedMetric {
            namespace: &self.namespace,
            name: &self.metric_name,
            dimensions: dimensions.map(|d| (&*d.name, &*d.value)).collect(),
        }
    }

    fn bytes(&self) -> usize {
        let dimensions = self.dimensions.iter();
        let dimensions = dimensions.map(|d| d.name.len() + d.value.len());
        self.namespace.len() + self.metric_name.len() + dimensions.sum::<usize>()
    }
}

/// Returns the request for the page of the metrics of `scope` that `token` names; the first without
/// one.
fn request(scope: &CatalogueScope, token: Option<&str>) -> Value {
    let dimensions = scope.dimensions.iter();
    let dimensions: Vec<Value> = dimensions
        .map(|(name, value)| {
            let value = value.as_ref().map(|value| json!(value));
            object([("Name", Some(json!(name))), ("Value", value)])
        })
        .collect();
    let text = |text: &Option<String>| text.as_ref().map(|t| json!(t));
    object([
        ("Namespace", text(&scope.namespace)),
        ("MetricName", text(&scope.name)),
        (
            "Dimensions",
            (!dimensions.is_empty()).then(|| json!(dimensions)),
        ),
        ("RecentlyActive", scope.recent.then(|| json!("PT3H"))),
        ("NextToken", token.map(|token| json!(token))),
    ])
}

/// The pages so far, and the bytes of their texts.
#[derive(Clone, Default)]
struct Pages {
    read: Vec<Arc<Vec<Metric>>>,
    bytes: usize,
    /// Set once they began again, as a token had expired.
    restarted: bool,
}

/// Returns the exchange for the catalogue of `scope`, page after page.
pub(super) fn catalogue(scope: Arc<CatalogueScope>) -> Exchange<Catalogue> {
    walk(scope, None, Pages::default())
}

fn walk(scope: Arc<CatalogueScope>, token: Option<&str>, before: Pages) -> Exchange<Catalogue> {
    let body = request(&scope, token);
    let later = token.is_some();
    exchange("ListMetrics", &body, 0, move |response| {
        if later && !before.restarted && is_bad_token(response) {
            let again = Pages {
                restarted: true,
                ..Pages::default()
            };
            return Ok(Next::More(walk(scope.clone(), None, again)));
        }
        let page = page(response)?;
        let mut pages = before.clone();
        pages.bytes += page.metrics.iter().map(Metric::bytes).sum::<usize>();
        pages.read.push(Arc::new(page.metrics));
        let more = pages.read.len() < MOST_PAGES && pages.bytes < MOST_BYTES;
        match page.next_token {
            Some(token) if more => Ok(Next::More(walk(scope.clone(), Some(&token), pages))),
            rest => {
                let metrics = pages.read.iter().flat_map(|page| page.iter());
                let metrics = metrics.map(Metric::listed);
                Ok(Next::Done(Catalogue::of(metrics, rest.is_some())))
            }
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
