//! Amazon CloudWatch as a backend.
//!
//! - `names`: from conditions to metrics
//! - `ages`: what CloudWatch keeps, the older the coarser
//! - `call`, `answer`: `GetMetricData`
//! - `lists`: `ListMetrics`

mod ages;
mod answer;
mod call;
mod lists;
mod names;

use std::sync::Arc;

use self::ages::{Aged, aged, is_period, period};
use self::answer::{Pages, page};
use self::call::{Ask, SUMMARY, data, exchange};
use self::lists::{STATISTICS, Wanted};
use self::names::{Listed, Named, basic, resource};
use super::{Adapter, Exchange, Fetch, FetchResult, Forwarded, Kept, Next, Part, Route};
use crate::clock::Clock;
use crate::model::{
    Condition, Error, Field, FieldNames, FieldNamesQuery, FieldValues, FieldValuesQuery, Kind,
    Layout, MetricQuery, NanInterpretation, Selector, Statistic, Step, TimeRange,
};

/// Most pages that are read for one call before the rest counts as not to be had.
const MOST_PAGES: u32 = 64;

/// Speaks `GetMetricData` and `ListMetrics` to a region of CloudWatch.
pub struct CloudWatch {
    /// The region that it is.
    pub region: String,
    /// The native distance of its points.
    pub interval: Step,
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
        let ask = Ask {
            metrics: vec![names::usage()],
            statistics: vec!["Sum".to_owned()],
            period: five,
            range: TimeRange::clamped(end - five.times(12).millis(), end),
        };
        let statistics = self.statistics;
        lists::allowed(move || {
            let units = ask.units(statistics);
            exchange(
                "GetMetricData",
                &data(std::slice::from_ref(&ask), None),
                units,
                |response| {
                    page(response)?;
                    Ok(Next::Done(()))
                },
            )
        })
    }

    fn canonical(&self, query: MetricQuery) -> Result<MetricQuery, Error> {
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
                let message = "a percentile of several metrics cannot be had of CloudWatch: ask for each of them";
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

    fn kept(&self, range: &TimeRange, layout: Layout) -> Vec<Kept> {
        let grid = match layout {
            Layout::Raw => Step::MILLI,
            Layout::Buckets { size, .. } => size,
        };
        let now = self.clock.now();
        let part = |Aged { range, finest }| {
            let period = finest.map(|finest| period(self.interval, finest));
            // Smaller buckets than the interval hold what is stamped in them; ones that are too
            // small only for their age hold nothing, as CloudWatch does.
            let fits = |p: &Step| {
                layout == Layout::Raw || *p == self.interval || p.millis() <= grid.millis()
            };
            Kept {
                range,
                period: period.filter(fits),
            }
        };
        let parts = aged(range, grid, self.interval, now).into_iter();
        parts.map(part).collect()
    }

    fn summaries(&self, fetch: &Fetch, period: Step) -> Result<Vec<Part>, Error> {
        let named = self.named(&fetch.selector, fetch.metric_field.as_deref())?;
        let statistics = SUMMARY.map(str::to_owned).to_vec();
        Ok(self.parts(&named, statistics, period, fetch.range, fetch.nan))
    }

    fn series(&self, fetch: &Fetch) -> Result<Vec<Part>, Error> {
        let named = self.named(&fetch.selector, fetch.metric_field.as_deref())?;
        let now = self.clock.now();
        match (fetch.layout, &named.statistic) {
            (Layout::Buckets { statistic, size }, None) => {
                let Some(quantile) = statistic.quantile() else {
                    return Err(Error::new(
                        Kind::Internal,
                        "such buckets are made of summaries",
                    ));
                };
                let statistic = format!("p{}", (quantile * 100.0).round());
                let kept = aged(&fetch.range, size, self.interval, now).into_iter();
                let has = |a: &Aged| a.finest.is_some_and(|f| size.millis() % f.millis() == 0);
                let parts = kept.filter(has).flat_map(|aged| {
                    self.parts(&named, vec![statistic.clone()], size, aged.range, fetch.nan)
                });
                Ok(parts.collect())
            }
            (_, Some(statistic)) => {
                let kept = aged(&fetch.range, Step::MILLI, self.interval, now).into_iter();
                let parts = kept.filter_map(|aged| {
                    let period = period(self.interval, aged.finest?);
                    let range = aged.range.aligned(period);
                    Some(self.parts(&named, vec![statistic.clone()], period, range, fetch.nan))
                });
                Ok(parts.flatten().collect())
            }
            (Layout::Raw, None) => Err(Error::new(Kind::Internal, "samples are made of summaries")),
        }
    }

    fn units(&self, query: &MetricQuery) -> u32 {
        let named = self.named(&query.selector, query.metric_field.as_deref());
        named.map_or(0, |n| u32::try_from(n.metrics().len()).unwrap_or(u32::MAX))
    }

    fn is_metered(&self) -> bool {
        true
    }

    fn field_names(
        &self,
        _: &Forwarded,
        query: &FieldNamesQuery,
    ) -> Result<Exchange<FieldNames>, Error> {
        let listed = Listed::read(&query.scope.selector, &self.region)?;
        let recent = lists::is_recent(&query.scope, self.clock.now());
        Ok(lists::names(listed, recent))
    }

    fn field_values(
        &self,
        _: &Forwarded,
        query: &FieldValuesQuery,
    ) -> Result<Exchange<FieldValues>, Error> {
        let listed = Listed::read(&query.scope.selector, &self.region)?;
        let namespace = listed.namespace.clone().unwrap_or_default();
        let wanted = match &*query.field.name {
            "Namespace" => Wanted::Namespaces,
            "MetricName" => Wanted::Metrics,
            "Resource" => Wanted::Values(resource(&namespace).to_owned()),
            name => Wanted::Values(name.strip_prefix(':').unwrap_or(name).to_owned()),
        };
        let recent = lists::is_recent(&query.scope, self.clock.now());
        Ok(lists::values(listed, recent, wanted))
    }

    fn known_values(&self, field: &Field) -> Option<Vec<String>> {
        match &*field.name {
            "Region" => Some(vec![self.region.clone()]),
            "Statistic" => Some(STATISTICS.map(str::to_owned).to_vec()),
            "Account" | "Unit" => Some(Vec::new()),
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

    /// Returns the exchange for `statistics` of the metrics that are `named`.
    fn parts(
        &self,
        named: &Named,
        statistics: Vec<String>,
        period: Step,
        range: TimeRange,
        nan: NanInterpretation,
    ) -> Vec<Part> {
        let ask = Ask {
            metrics: named.metrics(),
            statistics,
            period,
            range,
        };
        if ask.metrics.is_empty() {
            return Vec::new();
        }
        let part = |ask: Ask| Part {
            start: ask.range.start(),
            exchange: self.pages(Arc::new(ask), nan, None, None),
        };
        ask.cut().into_iter().map(part).collect()
    }

    /// The exchange for the page of `ask` that `token` names, after what `before` had.
    fn pages(
        &self,
        ask: Arc<Ask>,
        nan: NanInterpretation,
        token: Option<&str>,
        before: Option<Pages>,
    ) -> Exchange<FetchResult> {
        pages(ask, nan, token, before, self.statistics)
    }
}

fn pages(
    ask: Arc<Ask>,
    nan: NanInterpretation,
    token: Option<&str>,
    before: Option<Pages>,
    statistics: u32,
) -> Exchange<FetchResult> {
    let body = data(std::slice::from_ref(&*ask), token);
    let units = ask.units(statistics);
    exchange("GetMetricData", &body, units, move |response| {
        let page = page(response)?;
        let mut pages_so_far = match &before {
            Some(before) => before.clone(),
            None => Pages::new(ask.queries()),
        };
        let next = page.next_token.clone();
        pages_so_far.add(page);
        match next {
            Some(token) if pages_so_far.count < MOST_PAGES => Ok(Next::More(pages(
                ask.clone(),
                nan,
                Some(&token),
                Some(pages_so_far),
                statistics,
            ))),
            more => {
                let mut result = pages_so_far.result(&ask, 0, nan)?;
                result.complete &= more.is_none();
                Ok(Next::Done(result))
            }
        }
    })
}

/// The statistic that a series of `selector` is.
fn statistic(selector: &Selector) -> Option<String> {
    let mut conditions = selector.conditions().iter();
    let condition = conditions.find(|c| c.key == "Statistic")?;
    condition.test.values().first().map(ToString::to_string)
}

/// `selector` of the samples themselves, whatever statistic it names.
fn samples(selector: &Selector) -> Selector {
    let others = selector.conditions().iter();
    let others: Vec<Condition> = others.filter(|c| c.key != "Statistic").cloned().collect();
    Selector::new(others)
}

#[cfg(test)]
mod tests;
