//! Amazon CloudWatch as a backend.
//!
//! - `names`: from conditions to metrics
//! - `ages`: what CloudWatch keeps, the older the coarser
//! - `call`, `answer`: `GetMetricData`
//! - `expression`: `GetMetricData` of an expression (`~`); `window`: expressions that are refused
//! - `lists`: `ListMetrics`; `catalogue`: names and values of what it lists

mod ages;
mod answer;
mod call;
mod catalogue;
mod expression;
mod lists;
mod names;
mod window;

use std::sync::Arc;

use self::ages::{Aged, age, aged, is_period, period};
use self::answer::page;
pub use self::call::StatisticsQuery;
use self::call::{MOST_POINTS, MetricDataCall, SUMMARY, exchange};
pub use self::catalogue::{Catalogue, CatalogueScope};
use self::expression::{EXPRESSION, Expression, ExpressionCall};
use self::lists::STATISTICS;
use self::names::{Listed, Metric, Named, basic};
use super::{Adapter, Exchange, Fetch, Forwarded, Kept, Next, Part, PartCall, Route};
use crate::clock::Clock;
use crate::model::{
    Condition, Error, Field, FieldNames, FieldNamesQuery, FieldValues, FieldValuesQuery, Kind,
    Layout, MetricPace, MetricQuery, NamespaceRule, NanInterpretation, Scope, Selector, Statistic,
    Step, TimeRange,
};

/// Speaks `GetMetricData` and `ListMetrics` to a region of CloudWatch.
pub struct CloudWatch {
    /// Its region.
    pub region: String,
    /// The pace of its metrics.
    pub pace: MetricPace,
    /// Set if several series of an expression are an error.
    pub single_series: bool,
    /// Rules for namespaces; the first that fits holds.
    pub rules: Vec<NamespaceRule>,
    /// Statistics of a metric that are billed as one.
    pub statistics: u32,
    /// The clock for ages of data.
    pub clock: Arc<dyn Clock>,
}

impl Adapter for CloudWatch {
    fn health(&self, _: &Forwarded) -> Exchange<()> {
        // Both permissions are needed, and neither shows without a call.
        let five = Step::SECOND.times(300);
        let end = five.floor(self.clock.now());
        let range = TimeRange::clamped(end - five.times(12).millis(), end);
        let sum = vec!["Sum".to_owned()];
        let (usage, nan) = (vec![names::usage()], NanInterpretation::default());
        let query = self.query(usage, sum, five, range, nan);
        lists::allowed(move || {
            let call = MetricDataCall::new(vec![query.clone()]);
            let (body, units) = (call.body(None), call.units);
            exchange("GetMetricData", &body, units, |response| {
                page(response)?;
                Ok(Next::Done(()))
            })
        })
    }

    fn canonical(&self, query: MetricQuery) -> Result<MetricQuery, Error> {
        if let Some(expression) = self.expression(&query.selector)? {
            return Ok(MetricQuery {
                selector: expression.canonical(),
                metric_field: None,
                ..query
            });
        }
        let named = self.named(&query.selector, query.metric_field.as_deref())?;
        if let Layout::Buckets { statistic, size } = query.layout
            && named.statistic.is_none()
            && statistic.quantile().is_some()
        {
            if !is_period(size) {
                let message = format!(
                    "CloudWatch has percentiles of periods of 1, 5, 10, 20 and 30 s and of whole minutes only, not of {} ms",
                    size.millis()
                );
                let mut error = Error::new(Kind::InvalidRequest, message);
                error.field = Some("query.aggregation.bucketSizeMillis".to_owned());
                return Err(error);
            }
            if named.metrics().len() > 1 {
                let message = "CloudWatch cannot compute a percentile over several metrics: query each of them";
                return Err(Error::new(Kind::MetricNotFound, message));
            }
        }
        let (selector, name) = named.canonical();
        Ok(MetricQuery {
            selector,
            metric_field: Some(name),
            ..query
        })
    }

    fn route(&self, selector: &Selector, layout: Layout) -> Option<Route> {
        if is_expression(selector) {
            return Some(match layout {
                Layout::Raw => Route::Upstream,
                Layout::Buckets { .. } => Route::RawPoints,
            });
        }
        let statistic = statistic(selector);
        let value = match &statistic {
            None => Some(Statistic::Mean),
            Some(name) => basic(name),
        };
        Some(match (layout, statistic) {
            (Layout::Buckets { .. }, Some(_)) => Route::RawPoints,
            (Layout::Buckets { statistic, .. }, None) if statistic.quantile().is_some() => {
                Route::Upstream
            }
            _ => match value {
                Some(value) => Route::Summaries {
                    selector: samples(selector),
                    value,
                },
                None => Route::Upstream,
            },
        })
    }

    fn pace(&self, selector: &Selector, metric_field: Option<&str>) -> Option<MetricPace> {
        if is_expression(selector) {
            // One that is wrong has no lane: it has no canonical form.
            let named = self.expression(selector).ok()??.period;
            let interval = named.unwrap_or(self.pace.interval);
            let usual = self.pace;
            return Some(filling(MetricPace { interval, ..usual }));
        }
        let namespace = value_of(selector, "Namespace")?;
        let rule = self.rules.iter().find(|rule| {
            let named = |name: &str| rule.metrics.iter().any(|m| m == name);
            rule.namespace == namespace
                && (rule.metrics.is_empty() || metric_field.is_some_and(named))
        });
        let pace = rule.map(|rule| rule.pace);
        match statistic(selector) {
            Some(name) if basic(&name).is_none() => Some(filling(pace.unwrap_or(self.pace))),
            _ => pace,
        }
    }

    fn kept(&self, range: &TimeRange, layout: Layout, interval: Step) -> Vec<Kept> {
        let grid = match layout {
            Layout::Raw => Step::MILLI,
            Layout::Buckets { size, .. } => size,
        };
        let now = self.clock.now();
        let part = |Aged { range, finest }| {
            let period = finest.map(|finest| period(interval, finest));
            // Buckets smaller than the interval hold the summaries whose time lies in them; buckets
            // that are too small only for their age hold nothing, as in CloudWatch.
            let fits =
                |p: &Step| layout == Layout::Raw || *p == interval || p.millis() <= grid.millis();
            Kept {
                range,
                period: period.filter(fits),
            }
        };
        let parts = aged(range, grid, interval, now).into_iter();
        parts.map(part).collect()
    }

    fn summaries(&self, fetch: &Fetch, period: Step) -> Result<Vec<Part>, Error> {
        let named = self.named(&fetch.selector, fetch.metric_field.as_deref())?;
        let statistics = SUMMARY.map(str::to_owned).to_vec();
        Ok(self.parts(&named, statistics, period, fetch.range, fetch.nan))
    }

    fn series(&self, fetch: &Fetch) -> Result<Vec<Part>, Error> {
        if let Some(expression) = self.expression(&fetch.selector)? {
            return Ok(self.evaluated(&expression, fetch));
        }
        let named = self.named(&fetch.selector, fetch.metric_field.as_deref())?;
        let now = self.clock.now();
        let pace = self.pace(&fetch.selector, fetch.metric_field.as_deref());
        let interval = pace.unwrap_or(self.pace).interval;
        match (fetch.layout, &named.statistic) {
            (Layout::Buckets { statistic, size }, None) => {
                let Some(quantile) = statistic.quantile() else {
                    return Err(Error::new(
                        Kind::Internal,
                        "such buckets are made of summaries",
                    ));
                };
                let statistic = format!("p{}", (quantile * 100.0).round());
                // Of the size of the buckets, whatever the interval of summaries is.
                let kept = aged(&fetch.range, size, size, now).into_iter();
                let has = |a: &Aged| a.finest.is_some_and(|f| size.millis() % f.millis() == 0);
                let parts = kept.filter(has).flat_map(|aged| {
                    self.parts(&named, vec![statistic.clone()], size, aged.range, fetch.nan)
                });
                Ok(parts.collect())
            }
            (_, Some(statistic)) => {
                let kept = aged(&fetch.range, Step::MILLI, interval, now).into_iter();
                let parts = kept.filter_map(|aged| {
                    let period = period(interval, aged.finest?);
                    let range = aged.range.aligned(period);
                    Some(self.parts(&named, vec![statistic.clone()], period, range, fetch.nan))
                });
                Ok(parts.flatten().collect())
            }
            (Layout::Raw, None) => Err(Error::new(Kind::Internal, "samples are made of summaries")),
        }
    }

    fn units(&self, query: &MetricQuery) -> u32 {
        if is_expression(&query.selector) {
            return 1;
        }
        let named = self.named(&query.selector, query.metric_field.as_deref());
        named.map_or(0, |n| u32::try_from(n.metrics().len()).unwrap_or(u32::MAX))
    }

    fn is_metered(&self) -> bool {
        true
    }

    fn bills_by_answer(&self, selector: &Selector) -> bool {
        is_expression(selector)
    }

    fn catalogue_scopes(&self, scope: &Scope) -> Result<Vec<CatalogueScope>, Error> {
        let listed = Listed::read(&scope.selector, &self.region)?;
        let recent = lists::is_recent(scope, self.clock.now());
        Ok(listed.scope(recent).widened())
    }

    fn catalogue(&self, scope: &CatalogueScope) -> Result<Exchange<Catalogue>, Error> {
        Ok(lists::catalogue(Arc::new(scope.clone())))
    }

    fn names_in(
        &self,
        catalogue: &Catalogue,
        query: &FieldNamesQuery,
    ) -> Result<FieldNames, Error> {
        let listed = Listed::read(&query.scope.selector, &self.region)?;
        Ok(catalogue.names(&listed))
    }

    fn values_in(
        &self,
        catalogue: &Catalogue,
        query: &FieldValuesQuery,
    ) -> Result<FieldValues, Error> {
        let listed = Listed::read(&query.scope.selector, &self.region)?;
        Ok(catalogue.values(&listed, query))
    }

    fn known_values(&self, field: &Field) -> Option<Vec<String>> {
        match &*field.name {
            "Region" => Some(vec![self.region.clone()]),
            "Statistic" => Some(STATISTICS.map(str::to_owned).to_vec()),
            "Account" | "Unit" | EXPRESSION => Some(Vec::new()),
            _ => None,
        }
    }

    fn lists_whole(&self) -> bool {
        true
    }
}

impl CloudWatch {
    fn named(&self, selector: &Selector, metric_field: Option<&str>) -> Result<Named, Error> {
        Named::read(selector, metric_field, &self.region)
    }

    fn expression(&self, selector: &Selector) -> Result<Option<Expression>, Error> {
        Expression::read(selector, &self.region)
    }

    /// Returns the calls for the values of `expression`.
    fn evaluated(&self, expression: &Expression, fetch: &Fetch) -> Vec<Part> {
        let interval = expression.period.unwrap_or(self.pace.interval);
        let cells = u32::try_from(MOST_POINTS).unwrap_or(u32::MAX);
        let mut parts = Vec::new();
        for Aged { range, finest } in aged(&fetch.range, Step::MILLI, interval, self.clock.now()) {
            let Some(finest) = finest else { continue };
            let period = period(interval, finest);
            if expression.period.is_some_and(|named| named != period) {
                // So fine a period is not kept so long, and the expression names no other.
                continue;
            }
            let longest = period.times(cells).millis();
            let mut start = range.start();
            while start < range.end() {
                let end = period.floor(start.saturating_add(longest)).min(range.end());
                let call = ExpressionCall {
                    text: expression.text.clone(),
                    period,
                    range: TimeRange::clamped(start, end),
                    nan: fetch.nan,
                    single: self.single_series,
                    bill: Arc::default(),
                };
                parts.push(Part {
                    start,
                    call: PartCall::Alone(call.exchange()),
                });
                start = end;
            }
        }
        parts
    }

    /// Returns the calls for `statistics` of the metrics that are `named`.
    fn parts(
        &self,
        named: &Named,
        statistics: Vec<String>,
        period: Step,
        range: TimeRange,
        nan: NanInterpretation,
    ) -> Vec<Part> {
        let query = self.query(named.metrics(), statistics, period, range, nan);
        if query.metrics.is_empty() {
            return Vec::new();
        }
        let part = |query: StatisticsQuery| Part {
            start: query.range.start(),
            call: PartCall::Shared(query),
        };
        query.cut().into_iter().map(part).collect()
    }

    fn query(
        &self,
        metrics: Vec<Metric>,
        statistics: Vec<String>,
        period: Step,
        range: TimeRange,
        nan: NanInterpretation,
    ) -> StatisticsQuery {
        StatisticsQuery {
            metrics,
            statistics,
            period,
            range,
            nan,
            age: age(range.start(), self.clock.now()),
            billed: self.statistics,
        }
    }
}

/// Returns `pace` for points that are values of whole periods, each at the beginning of its own: they settle
/// with the end of it.
fn filling(pace: MetricPace) -> MetricPace {
    MetricPace {
        settle: pace.settle.saturating_add(pace.interval.millis()),
        ..pace
    }
}

/// Returns whether `selector` is that of an expression.
fn is_expression(selector: &Selector) -> bool {
    selector.conditions().iter().any(|c| c.key == EXPRESSION)
}

/// Returns the statistic that a series of `selector` is.
fn statistic(selector: &Selector) -> Option<String> {
    value_of(selector, "Statistic")
}

/// Returns the value that `selector` has for `key`.
fn value_of(selector: &Selector, key: &str) -> Option<String> {
    let mut conditions = selector.conditions().iter();
    let condition = conditions.find(|c| c.key == key)?;
    condition.test.values().first().map(ToString::to_string)
}

/// Returns `selector` for the samples themselves, whatever statistic it names.
fn samples(selector: &Selector) -> Selector {
    let others = selector.conditions().iter();
    let others: Vec<Condition> = others.filter(|c| c.key != "Statistic").cloned().collect();
    Selector::new(others)
}

#[cfg(test)]
mod tests;
