//! `GetMetricData`: its queries, and the calls that they are put into.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::answer::{Pages, is_bad_token, page};
use super::names::Metric;
use crate::adapters::{Exchange, FetchResult, Next, Request, Response};
use crate::model::{Error, NanInterpretation, Step, TimeRange};

/// Most points of a call.
pub(super) const MOST_POINTS: u64 = 100_800;

/// Most bytes of the queries of a shared call, about; AWS documents no bound.
const MOST_BYTES: usize = 1 << 20;

/// Most pages that are read for one call; the rest counts as unavailable.
const MOST_PAGES: u32 = 64;

/// The statistics of a summary, in their order.
pub(super) const SUMMARY: [&str; 4] = ["Sum", "SampleCount", "Minimum", "Maximum"];

/// Some statistics of some metrics, of each period in a range. Several queries that fit each other
/// can share one call.
#[derive(Clone, Debug, PartialEq)]
pub struct StatisticsQuery {
    /// The metrics.
    pub(super) metrics: Vec<Metric>,
    /// The statistics of each of them, by CloudWatch's names.
    pub(super) statistics: Vec<String>,
    /// The period.
    pub(super) period: Step,
    /// The range, on the grid of the period.
    pub(super) range: TimeRange,
    /// The treatment of NaN.
    pub(super) nan: NanInterpretation,
    /// Its age: it decides the limits of calls and the rounding of times.
    pub(super) age: usize,
    /// Statistics of a metric that are billed as one.
    pub(super) billed: u32,
}

impl StatisticsQuery {
    /// Returns the number of queries of CloudWatch that it makes.
    fn queries(&self) -> usize {
        self.metrics.len() * self.statistics.len()
    }

    /// Returns the most points that an answer for `range` has.
    fn points_in(&self, range: &TimeRange) -> u64 {
        let cells = (range.end() - range.start()) / self.period.millis();
        let cells = u64::try_from(cells).unwrap_or(0);
        cells.saturating_mul(self.queries() as u64)
    }

    /// Returns the bytes that it adds to the body of a call, about.
    fn bytes(&self) -> usize {
        let metrics = self.metrics.iter().map(Metric::bytes).sum::<usize>();
        metrics * self.statistics.len() + 200 * self.queries()
    }

    /// Returns a hash of what it asks for, whatever the time.
    pub fn subject(&self) -> u64 {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        hasher.hash_one((&self.metrics, &self.statistics, self.period.millis()))
    }

    /// Returns the units that are billed for it.
    pub fn units(&self) -> u32 {
        let metrics = u32::try_from(self.metrics.len()).unwrap_or(u32::MAX);
        metrics.saturating_mul(billed(self.statistics.len(), self.billed))
    }

    /// Cuts it into queries of one call each, in order of time.
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

    /// Returns whether it can be asked for in one call of at most `most` queries of CloudWatch
    /// together with `others`, which fit each other, at a price in points that is worth it.
    pub fn fits<'a>(&'a self, others: impl Iterator<Item = &'a Self> + Clone, most: usize) -> bool {
        let all = others.chain([self]);
        let Some(window) = window(all.clone()) else {
            return false;
        };
        let coarsest = all.clone().map(|q| q.period.millis()).max().unwrap_or(1);
        let alike = |q: &Self| q.age == self.age && coarsest % q.period.millis() == 0;
        let (mut queries, mut bytes, mut own, mut common) = (0, 0, 0_u64, 0_u64);
        for query in all.clone() {
            queries += query.queries();
            bytes += query.bytes();
            own = own.saturating_add(query.points_in(&query.range));
            common = common.saturating_add(query.points_in(&window));
        }
        queries <= most
            && bytes <= MOST_BYTES
            && common <= MOST_POINTS.min(2 * own + 1000)
            && all.clone().all(alike)
    }

    /// Returns the call for `queries`, which fit each other; it brings what came of each of them.
    pub fn call(queries: Vec<Self>) -> Exchange<Vec<Result<FetchResult, Error>>> {
        let call = MetricDataCall::new(queries);
        let none = Pages::new(call.written.len());
        Arc::new(call).page(None, none)
    }
}

/// Returns the units that are billed for so many `statistics` of a metric, where `at_once` are
/// billed as one.
fn billed(statistics: usize, at_once: u32) -> u32 {
    let statistics = u32::try_from(statistics).unwrap_or(u32::MAX);
    statistics.div_ceil(at_once.max(1))
}

/// Returns the time range of a call for `queries`. Periods are counted from its start, so it lies
/// on the grid of the largest of them.
fn window<'a>(queries: impl Iterator<Item = &'a StatisticsQuery> + Clone) -> Option<TimeRange> {
    let hull = queries.clone().map(|q| q.range).reduce(|a, b| a.hull(&b))?;
    let coarsest = queries.map(|q| q.period).max_by_key(Step::millis)?;
    Some(hull.aligned(coarsest))
}

/// A call of `GetMetricData`.
pub(super) struct MetricDataCall {
    queries: Vec<StatisticsQuery>,
    /// For each of these, the written query of each statistic of each of its metrics.
    columns: Vec<Vec<usize>>,
    /// The queries of CloudWatch.
    written: Vec<Value>,
    window: TimeRange,
    pub(super) units: u32,
}

impl MetricDataCall {
    /// Returns the call for `queries`, which fit each other. What several of them want is asked for
    /// once.
    pub(super) fn new(queries: Vec<StatisticsQuery>) -> Self {
        let mut known = HashMap::new();
        let mut statistics: HashMap<_, (usize, u32)> = HashMap::new();
        let mut written = Vec::new();
        let mut columns = Vec::with_capacity(queries.len());
        for query in &queries {
            let mut own = Vec::with_capacity(query.queries());
            for metric in &query.metrics {
                for statistic in &query.statistics {
                    let key = (metric, query.period.millis(), statistic);
                    let column = *known.entry(key).or_insert_with(|| {
                        let of = statistics.entry((key.0, key.1)).or_default();
                        *of = (of.0 + 1, query.billed);
                        written.push(write(metric, query.period, statistic, written.len()));
                        written.len() - 1
                    });
                    own.push(column);
                }
            }
            columns.push(own);
        }
        let units = statistics.values().map(|(n, at_once)| billed(*n, *at_once));
        let units = units.fold(0, u32::saturating_add);
        let window = window(queries.iter()).unwrap_or(TimeRange::clamped(0, 0));
        Self {
            queries,
            columns,
            written,
            window,
            units,
        }
    }

    /// Returns the body of the request for the page that `token` names; the first without one.
    pub(super) fn body(&self, token: Option<&str>) -> Value {
        body(&self.written, &self.window, token)
    }

    /// Returns the exchange for the page that `token` names, after what `before` had.
    fn page(
        self: Arc<Self>,
        token: Option<&str>,
        before: Pages,
    ) -> Exchange<Vec<Result<FetchResult, Error>>> {
        let (body, units) = (self.body(token), self.units);
        let later = token.is_some();
        exchange("GetMetricData", &body, units, move |response| {
            if later && !before.restarted && is_bad_token(response) {
                // The token has expired: start again from the first page.
                let none = Pages::restarted(self.written.len());
                return Ok(Next::More(self.clone().page(None, none)));
            }
            let page = page(response)?;
            let mut pages = before.clone();
            let next = page.next_token.clone();
            pages.add(page);
            if let Some(token) = &next
                && pages.count < MOST_PAGES
            {
                return Ok(Next::More(self.clone().page(Some(token), pages)));
            }
            let results = self.queries.iter().zip(&self.columns);
            let results = results.map(|(query, columns)| {
                let mut result = pages.result(query, columns, &self.window)?;
                result.complete &= next.is_none();
                Ok(result)
            });
            Ok(Next::Done(results.collect()))
        })
    }
}

/// Returns the body of the request for the page that `token` names, the first without one, of a call
/// for `queries` about `window`.
pub(super) fn body(queries: &[Value], window: &TimeRange, token: Option<&str>) -> Value {
    object([
        ("MetricDataQueries", Some(json!(queries))),
        ("StartTime", Some(json!(window.start() / 1000))),
        ("EndTime", Some(json!(window.end() / 1000))),
        ("ScanBy", Some(json!("TimestampAscending"))),
        ("MaxDatapoints", Some(json!(MOST_POINTS))),
        ("NextToken", token.map(|token| json!(token))),
    ])
}

/// Returns query `number` of a call.
fn write(metric: &Metric, period: Step, statistic: &str, number: usize) -> Value {
    let dimensions = metric.dimensions.iter();
    let dimensions = dimensions.map(|(name, value)| json!({ "Name": name, "Value": value }));
    let dimensions: Vec<Value> = dimensions.collect();
    let named = json!({
        "Namespace": metric.namespace,
        "MetricName": metric.name,
        "Dimensions": dimensions,
    });
    let stat = object([
        ("Metric", Some(named)),
        ("Period", Some(json!(period.millis() / 1000))),
        ("Stat", Some(json!(statistic))),
        ("Unit", metric.unit.as_ref().map(|unit| json!(unit))),
    ]);
    object([
        ("Id", Some(json!(format!("q{number}")))),
        ("MetricStat", Some(stat)),
        ("ReturnData", Some(json!(true))),
        ("AccountId", metric.account.as_ref().map(|id| json!(id))),
    ])
}

/// Returns an object of those of `members` that have a value.
pub(super) fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Value {
    let members = members.into_iter();
    let members = members.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(members.collect())
}

/// Returns an exchange of `operation`.
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
        bill: None,
    }
}
