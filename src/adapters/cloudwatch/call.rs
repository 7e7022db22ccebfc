//! `GetMetricData`: what is asked, and in which calls.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::names::Metric;
use crate::adapters::{Exchange, Next, Request, Response};
use crate::model::{Error, Step, TimeRange};

/// Most points of a call.
pub(super) const MOST_POINTS: u64 = 100_800;

/// The statistics of a summary, in their order.
pub(super) const SUMMARY: [&str; 4] = ["Sum", "SampleCount", "Minimum", "Maximum"];

/// Some statistics of some metrics, of each period in a range.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    /// Which metrics.
    pub(super) metrics: Vec<Metric>,
    /// Which statistics of each of them, as CloudWatch names them.
    pub(super) statistics: Vec<String>,
    /// The period.
    pub(super) period: Step,
    /// From when to when, on the grid of the period.
    pub(super) range: TimeRange,
}

impl Ask {
    /// Returns the number of queries it makes.
    pub(super) fn queries(&self) -> usize {
        self.metrics.len() * self.statistics.len()
    }

    /// Cuts it into asks of one call each, in order of time.
    pub(super) fn cut(self) -> Vec<Self> {
        let queries = u64::try_from(self.queries()).unwrap_or(u64::MAX).max(1);
        let cells = u32::try_from(MOST_POINTS / queries).unwrap_or(1).max(1);
        let step = self.period.times(cells).millis();
        let mut parts = Vec::new();
        let mut start = self.range.start();
        while start < self.range.end() {
            let end = self.range.end().min(start.saturating_add(step));
            parts.push(Self {
                range: TimeRange::clamped(start, end),
                ..self.clone()
            });
            start = end;
        }
        parts
    }

    /// The units billed for it, where a metric is billed once for so many `statistics`.
    pub(super) fn units(&self, statistics: u32) -> u32 {
        let each = u32::try_from(self.statistics.len()).unwrap_or(u32::MAX);
        let each = each.div_ceil(statistics.max(1));
        let metrics = u32::try_from(self.metrics.len()).unwrap_or(u32::MAX);
        metrics.saturating_mul(each)
    }

    fn write(&self, queries: &mut Vec<Value>) {
        for metric in &self.metrics {
            let dimensions = metric.dimensions.iter();
            let dimensions =
                dimensions.map(|(name, value)| json!({ "Name": name, "Value": value }));
            let dimensions: Vec<Value> = dimensions.collect();
            for statistic in &self.statistics {
                let stat = object([
                    (
                        "Metric",
                        Some(json!({
                            "Namespace": metric.namespace,
                            "MetricName": metric.name,
                            "Dimensions": dimensions,
                        })),
                    ),
                    ("Period", Some(json!(self.period.millis() / 1000))),
                    ("Stat", Some(json!(statistic))),
                    ("Unit", metric.unit.as_ref().map(|unit| json!(unit))),
                ]);
                let query = object([
                    ("Id", Some(json!(id(queries.len())))),
                    ("MetricStat", Some(stat)),
                    ("ReturnData", Some(json!(true))),
                    ("AccountId", metric.account.as_ref().map(|id| json!(id))),
                ]);
                queries.push(query);
            }
        }
    }
}

/// The id of query `n` of a call.
pub(super) fn id(n: usize) -> String {
    format!("q{n}")
}

/// The request for the page of `asks` that `token` names; the first without one. Periods are counted
/// from the start of the call, which must lie on the grid of each.
pub(super) fn data(asks: &[Ask], token: Option<&str>) -> Value {
    let mut queries = Vec::new();
    for ask in asks {
        ask.write(&mut queries);
    }
    let hull = asks.iter().map(|ask| ask.range).reduce(|a, b| a.hull(&b));
    let hull = hull.unwrap_or(TimeRange::clamped(0, 0));
    let coarsest = asks.iter().map(|ask| ask.period).max_by_key(Step::millis);
    let hull = coarsest.map_or(hull, |step| hull.aligned(step));
    object([
        ("MetricDataQueries", Some(json!(queries))),
        ("StartTime", Some(json!(hull.start() / 1000))),
        ("EndTime", Some(json!(hull.end() / 1000))),
        ("ScanBy", Some(json!("TimestampAscending"))),
        ("MaxDatapoints", Some(json!(MOST_POINTS))),
        ("NextToken", token.map(|token| json!(token))),
    ])
}

/// An object of those of `members` that have a value.
pub(super) fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    let members = members.into_iter();
    let members = members.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(members.collect())
}

/// An exchange of `operation`.
pub(super) fn exchange<T>(
    operation: &str,
    body: &Value,
    units: u32,
    read: impl Fn(&Response) -> Result<Next<T>, Error> + Send + Sync + 'static,
) -> Exchange<T> {
    let target = format!("GraniteServiceVersion20100801.{operation}");
    let target = HeaderValue::from_str(&target).unwrap_or(HeaderValue::from_static(""));
    let json = HeaderValue::from_static("application/x-amz-json-1.0");
    Exchange {
        request: Request {
            method: Method::POST,
            path: "/".to_owned(),
            headers: vec![
                (CONTENT_TYPE, json),
                (HeaderName::from_static("x-amz-target"), target),
            ],
            body: Bytes::from(body.to_string()),
            units,
        },
        read: Arc::new(read),
    }
}
