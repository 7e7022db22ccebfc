//! Prometheus' HTTP API as a backend: Prometheus 2 and 3, and what is compatible with it.
//!
//! Sources: Prometheus' documentation of its HTTP API and of the functions `*_over_time`,
//! `irate`. Each call carries `nocache=1`, without which VictoriaMetrics moves start and end.

mod answer;
mod pass;
mod promql;
mod pushdown;
mod range;
mod replicas;
mod steps;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};

use super::samples::Samples;
use super::{
    Adapter, Data, Dropped, Exchange, Fetch, FetchResult, Forwarded, Next, Part, PartCall, Passed,
    Request, Response,
};
use crate::model::{
    Error, Expression, Field, FieldNames, FieldNamesQuery, FieldType, FieldValue, FieldValues,
    FieldValuesQuery, Kind, Layout, Millis, NanInterpretation, Points, RangeLimits, Scope,
    Selector, Step, TimeRange,
};
use crate::promql::{Reads, read};
use answer::{Labels, SampleMatrix, SampleSeries};
use promql::{COUNTER, EXPRESSION, GAUGE, Meaning, check_window};
pub use replicas::ReplicaLabels;
use replicas::{Asking, Spacing, ask};
use steps::{MAX_STEPS, Steps, check_calls, steps};

/// The first and the largest distance before a range at which the sample before it is looked for.
/// Samples of a counter that lie further apart have no rate between them.
const LOOKBACK: Millis = 5 * 60_000;
const LONGEST_LOOKBACK: Millis = 3_600_000;

/// Speaks Prometheus' HTTP API to a backend.
#[derive(Clone, Debug)]
pub struct Prometheus {
    /// The distance of samples: the step of range queries and subqueries.
    pub interval: Step,
    /// Set if several matching series are an error.
    pub single_series: bool,
    /// Most series of an answer.
    pub max_series: usize,
    /// Labels that tell replicas apart, if gaps of one are filled from others.
    pub fill: Option<ReplicaLabels>,
    /// Set if a range selector leaves its left edge out, as Prometheus does from version 3 on.
    /// Every pushed down answer tells, and corrects this.
    left_open: Arc<AtomicBool>,
}

impl Prometheus {
    /// Returns an adapter for samples `interval` apart, of answers of at most `max_series` series.
    pub fn new(interval: Step, single_series: bool, max_series: usize) -> Self {
        Self {
            interval,
            single_series,
            max_series,
            fill: None,
            left_open: Arc::default(),
        }
    }

    fn lookback(&self) -> Millis {
        LOOKBACK.max(self.interval.times(5).millis())
    }

    fn longest_lookback(&self) -> Millis {
        LONGEST_LOOKBACK.max(self.interval.times(20).millis())
    }

    /// Returns the samples of a gauge as they are stored.
    fn gauge(&self, selector: &str, fetch: &Fetch) -> Exchange<FetchResult> {
        let (range, nan, single) = (fetch.range, fetch.nan, self.single_series);
        self.samples(selector, range, move |matrix| {
            finish(matrix, &range, nan, single).map(Next::Done)
        })
    }

    /// Returns the exchange for the stored samples of `range`, which `done` makes something of. Where
    /// gaps are filled it brings some more at both ends, so that each gap is seen whole.
    fn samples<T: 'static>(
        &self,
        selector: &str,
        range: TimeRange,
        done: impl Fn(SampleMatrix) -> Result<Next<T>, Error> + Send + Sync + 'static,
    ) -> Exchange<T> {
        let spacing = Spacing::samples(range, self.interval);
        let asked = match (&self.fill, spacing) {
            (Some(_), Spacing::Samples { view, .. }) => view,
            _ => range,
        };
        let most = self.max_series;
        ask(Asking {
            request: samples_of(selector, &asked),
            read: Box::new(move |response| SampleMatrix::read(response, most)),
            done: Box::new(done),
            spacing,
            labels: self.fill.clone(),
        })
    }

    /// Returns the rate of a counter between each two consecutive samples, at the time of the later
    /// one.
    fn counter(&self, selector: &str, fetch: &Fetch) -> Exchange<FetchResult> {
        let range = fetch.range;
        let looked = TimeRange::clamped(range.start() - self.lookback(), range.end());
        let before = TimeRange::clamped(range.start() - self.longest_lookback(), looked.start());
        let (single, longest) = (self.single_series, self.longest_lookback());
        let of_rates = move |mut matrix: SampleMatrix| {
            for series in &mut matrix.series {
                series.samples = rates(&series.samples, longest);
            }
            finish(matrix, &range, NanInterpretation::Omit, single).map(Next::Done)
        };
        let (this, selector_before) = (self.clone(), selector.to_owned());
        self.samples(selector, looked, move |matrix| {
            let first_in_range = |s: &SampleSeries| {
                let first = s.samples.iter().find(|(_, v)| v.is_finite());
                first.is_some_and(|(t, _)| range.holds(t))
            };
            if !matrix.series.iter().any(first_in_range) {
                return of_rates(matrix);
            }
            // Some series has no sample shortly before the range: it begins there, or had a gap.
            let earlier = this.samples(&selector_before, before, move |mut all| {
                all.append(&matrix);
                of_rates(all)
            });
            Ok(Next::More(earlier))
        })
    }

    /// Returns the values of an expression on the grid of the interval.
    fn expression(&self, expression: &str, fetch: &Fetch) -> Vec<Part> {
        let (nan, single, interval) = (fetch.nan, self.single_series, self.interval);
        let most = self.max_series;
        steps(&fetch.range, interval, 0, MAX_STEPS)
            .map(|part| {
                let request = range_query(expression, &part, interval);
                let range = part.range;
                let exchange = ask(Asking {
                    request,
                    read: Box::new(move |response| {
                        let matrix = SampleMatrix::read(response, most)?;
                        on_grid(&matrix, interval, 0)?;
                        Ok(matrix)
                    }),
                    done: Box::new(move |matrix| {
                        finish(matrix, &range, nan, single).map(Next::Done)
                    }),
                    spacing: Spacing::steps(part.first, part.last, interval),
                    labels: self.fill.clone(),
                });
                let start = range.start();
                let call = PartCall::Alone(exchange);
                Part { start, call }
            })
            .collect()
    }
}

impl Adapter for Prometheus {
    fn health(&self, _: &Forwarded) -> Exchange<()> {
        let request = form("/api/v1/query", [("query", "vector(1)")]);
        exchange(request, |response| {
            answer::check(response)?;
            Ok(Next::Done(()))
        })
    }

    fn series(&self, fetch: &Fetch) -> Result<Vec<Part>, Error> {
        let meaning = Meaning::of(&fetch.selector)?;
        if let Meaning::Expression(text) = &meaning {
            check_window(text)?;
        }
        let whole = |exchange| {
            let start = fetch.range.start();
            let call = PartCall::Alone(exchange);
            vec![Part { start, call }]
        };
        Ok(match (fetch.layout, &meaning) {
            (Layout::Buckets { statistic, size }, _) => {
                self.pushed_down(&meaning, statistic, size, fetch)?
            }
            (Layout::Raw, Meaning::Gauge(selector)) => whole(self.gauge(selector, fetch)),
            (Layout::Raw, Meaning::Counter(selector)) => whole(self.counter(selector, fetch)),
            (Layout::Raw, Meaning::Expression(text)) => self.expression(text, fetch),
        })
    }

    fn reads(&self, selector: &Selector) -> Option<Reads> {
        match Meaning::of(selector) {
            // What cannot be read may hold an `offset -1d` or an `@`, too.
            Ok(Meaning::Expression(text)) => Some(read(&text).reads.unwrap_or(Reads::ANY)),
            _ => None,
        }
    }

    fn field_names(
        &self,
        _: &Forwarded,
        query: &FieldNamesQuery,
    ) -> Result<Exchange<FieldNames>, Error> {
        let request = form("/api/v1/labels", as_refs(&scope(&query.scope)?));
        Ok(exchange(request, |response| {
            let (labels, complete) = answer::strings(response)?;
            let names = [GAUGE, COUNTER, EXPRESSION].map(str::to_owned);
            let fields = names.into_iter().chain(labels).map(Field::text).collect();
            let partial = !complete;
            Ok(Next::Done(FieldNames { fields, partial }))
        }))
    }

    fn field_values(
        &self,
        _: &Forwarded,
        query: &FieldValuesQuery,
    ) -> Result<Exchange<FieldValues>, Error> {
        if query.field.kind != FieldType::String {
            let name = match query.field.kind {
                FieldType::Number => "NUMBER",
                FieldType::Boolean | FieldType::String => "BOOLEAN",
            };
            let message = "labels are of type STRING";
            let mut error = Error::new(Kind::UnsupportedFieldType, message).about(name);
            error.field = Some("query.field.fieldType".into());
            return Err(error);
        }
        let label = match query.field.name.as_str() {
            GAUGE | COUNTER => "__name__",
            name => name,
        };
        let expression = label == EXPRESSION;
        let mut pairs = scope(&query.scope)?;
        if expression {
            // An expression has no values to list; one is requested so that errors are seen.
            pairs.push(("limit", "1".to_owned()));
        }
        let label = if expression { "__name__" } else { label };
        let path = format!(
            "/api/v1/label/{}/values?{}",
            promql::label_in_path(label),
            encoded(as_refs(&pairs))
        );
        let request = Request {
            method: Method::GET,
            path,
            headers: Vec::new(),
            body: Bytes::new(),
            units: 0,
        };
        Ok(exchange(request, move |response| {
            let (mut values, complete) = answer::strings(response)?;
            if expression {
                values.clear();
            }
            Ok(Next::Done(FieldValues {
                values: values.into_iter().map(FieldValue::Complete).collect(),
                partial: !complete,
            }))
        }))
    }

    fn lists_whole(&self) -> bool {
        true
    }

    fn speaks_promql(&self) -> bool {
        true
    }

    fn range(
        &self,
        expression: &Expression,
        range: &TimeRange,
        limits: RangeLimits,
    ) -> Result<Vec<Part>, Error> {
        self.query_range(expression, range, limits)
    }

    fn pass(&self, request: Request, json: bool) -> Result<Exchange<Passed>, Error> {
        Ok(self.passing(request, json))
    }
}

/// Returns the per-second rates between consecutive samples at most `longest` apart. A value below
/// the one before it is a counter that was reset to 0.
fn rates(samples: &Samples, longest: Millis) -> Samples {
    let valid = || samples.iter().filter(|(_, v)| v.is_finite());
    let pairs = valid().zip(valid().skip(1));
    pairs
        .filter(|((before, _), (t, _))| t > before && t - before <= longest)
        .map(|((before, from), (t, to))| {
            let increase = if to < from { to } else { to - from };
            (t, increase / ((t - before) as f64 / 1000.0))
        })
        .collect()
}

/// Checks that all samples lie on the grid of `step`, moved by `shift`: a server that moves start
/// and end to where it likes answers another question.
fn on_grid(matrix: &SampleMatrix, step: Step, shift: Millis) -> Result<(), Error> {
    let mut times = matrix.series.iter().flat_map(|s| s.samples.times());
    if times.all(|t| step.floor(t - shift) == t - shift) {
        return Ok(());
    }
    let message = "the upstream answered at times that were not requested";
    Err(Error::new(Kind::UpstreamFailed, message))
}

/// Returns the samples of all series that lie in `range`, in one column.
fn finish(
    matrix: SampleMatrix,
    range: &TimeRange,
    nan: NanInterpretation,
    single: bool,
) -> Result<FetchResult, Error> {
    let mut dropped = Dropped {
        histogram: matrix.histograms,
        ..Dropped::default()
    };
    let mut present = Vec::new();
    for SampleSeries { labels, samples } in matrix.series {
        let points = samples.points(range, nan, &mut dropped);
        if !points.is_empty() {
            present.push((labels, points));
        }
    }
    if single && present.len() > 1 {
        let labels: Vec<_> = present.iter().map(|(labels, _)| labels).collect();
        return Err(several(&labels));
    }
    Ok(FetchResult {
        data: Data::Points(Points::merged(
            present.into_iter().map(|(_, points)| points).collect(),
        )),
        off_grid: None,
        complete: matrix.complete,
        received: matrix.received,
        filled: matrix.filled,
        dropped,
    })
}

/// Returns the error for a selector that matches several series where one is allowed.
fn several(series: &[&Labels]) -> Error {
    let labels: std::collections::BTreeSet<&str> = series
        .iter()
        .flat_map(|s| s.keys().map(String::as_str))
        .collect();
    let differs = |label: &&str| {
        let mut values = series.iter().map(|s| s.get(*label));
        let first = values.next().flatten();
        values.any(|v| v != first)
    };
    let differing: Vec<&str> = labels.into_iter().filter(differs).collect();
    let message = format!(
        "the selector matches {} series, which differ in {}; add conditions for these",
        series.len(),
        differing.join(", ")
    );
    Error::new(Kind::MetricNotFound, message)
}

/// Returns an instant query for the stored samples of `range`, and of what is lacking to whole seconds at
/// both ends, which is clipped when read: some servers read only digits. A range selector takes its left
/// edge in (Prometheus 2) or not (3), so it reaches back to before the first millisecond.
fn samples_of(selector: &str, range: &TimeRange) -> Request {
    let second = Step::SECOND;
    let last = second.ceil(range.end() - 1);
    let before = second.floor(range.start() - 1);
    let query = format!("{selector}[{}]", duration(last - before));
    let time = seconds(last);
    form(
        "/api/v1/query",
        [("query", query.as_str()), ("time", time.as_str())],
    )
}

fn range_query(expression: &str, steps: &Steps, step: Step) -> Request {
    form(
        "/api/v1/query_range",
        [
            ("query", expression),
            ("start", &seconds(steps.first)),
            ("end", &seconds(steps.last)),
            ("step", &step_width(step)),
        ],
    )
}

fn step_width(step: Step) -> String {
    // Servers truncate fractions of a millisecond, and the double next to 1.003 is a little less.
    let cut = step.millis() % 1000 != 0;
    let mut step = seconds(step.millis());
    if cut {
        step.push_str("0001");
    }
    step
}

/// Returns `millis` as a duration of PromQL. VictoriaMetrics reads each part as a double of seconds
/// and cuts what is left of a millisecond: `4007ms` would be 4006 of them, `4s7ms` is not.
fn duration(millis: Millis) -> String {
    match (millis / 1000, millis % 1000) {
        (0, millis) => format!("{millis}ms"),
        (seconds, 0) => format!("{seconds}s"),
        (seconds, millis) => format!("{seconds}s{millis}ms"),
    }
}

/// Returns `millis` as seconds, exactly.
fn seconds(millis: Millis) -> String {
    let sign = if millis < 0 { "-" } else { "" };
    let millis = millis.unsigned_abs();
    match millis % 1000 {
        // Some servers read only digits.
        0 => format!("{sign}{}", millis / 1000),
        rest => format!("{sign}{}.{rest:03}", millis / 1000),
    }
}

/// Returns the parameters that narrow a list of labels or values.
fn scope(scope: &Scope) -> Result<Vec<(&'static str, String)>, Error> {
    let mut pairs = Vec::new();
    if let Some(matcher) = promql::matcher_of(&scope.selector)? {
        pairs.push(("match[]", matcher));
    }
    if let Some(start) = scope.start {
        pairs.push(("start", seconds(start)));
    }
    if let Some(end) = scope.end {
        pairs.push(("end", seconds(end)));
    }
    Ok(pairs)
}

fn as_refs<'a>(pairs: &'a [(&'static str, String)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    pairs.iter().map(|(name, value)| (*name, value.as_str()))
}

fn encoded<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs)
        .append_pair("nocache", "1")
        .finish()
}

fn form<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Request {
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    Request {
        method: Method::POST,
        path: path.to_owned(),
        headers: vec![(CONTENT_TYPE, form)],
        body: Bytes::from(encoded(pairs)),
        units: 0,
    }
}

fn exchange<T>(
    request: Request,
    read: impl Fn(&Response) -> Result<Next<T>, Error> + Send + Sync + 'static,
) -> Exchange<T> {
    Exchange {
        request,
        read: Arc::new(read),
        bill: None,
    }
}

#[cfg(test)]
pub(super) mod tests;
