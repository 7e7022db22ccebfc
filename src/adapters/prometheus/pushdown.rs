//! Aggregation in the Prometheus server.
//!
//! A bucket `[kB, (k+1)B)` is asked for at its last millisecond `(k+1)B - 1`, over a range that
//! covers it exactly. Which range that is depends on whether the server counts a range's left
//! edge in (up to Prometheus 2) or not (from 3 on), so each answer carries a probe that tells,
//! and a query that assumed the wrong one is made again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::answer::Matrix;
use super::promql::Meaning;
use super::{Prometheus, Steps, exchange, finish, range_query, steps};
use crate::adapters::{Exchange, Fetch, Next, Series};
use crate::model::{Error, Kind, Millis, NanInterpretation, Statistic, Step};

/// The label of the probe.
const PROBE: &str = "heliostat_probe";

/// One row of buckets that are asked for in one call.
#[derive(Clone)]
struct Row {
    expression: Expression,
    size: Step,
    steps: Arc<Steps>,
    nan: NanInterpretation,
    /// Whether the answer must be of one series: it cannot be merged, or may not be.
    single: Single,
    left_open: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Single {
    No,
    Configured,
    Percentile,
}

/// An expression with a place for the length of its range in milliseconds.
#[derive(Clone)]
struct Expression {
    head: String,
    /// What stands around each range; the range stands between them.
    ranges: Vec<(String, String)>,
}

impl Expression {
    fn over(&self, millis: Millis) -> String {
        let mut text = self.head.clone();
        for (before, after) in &self.ranges {
            text.push_str(&format!("{before}{millis}ms{after}"));
        }
        text
    }
}

impl Prometheus {
    /// The buckets of `fetch`, aggregated by the server.
    pub(super) fn pushed_down(
        &self,
        meaning: &Meaning,
        statistic: Statistic,
        size: Step,
        fetch: &Fetch,
    ) -> Vec<Exchange<Series>> {
        let single = match (statistic.quantile(), self.single_series) {
            (_, true) => Single::Configured,
            (Some(_), false) => Single::Percentile,
            (None, false) => Single::No,
        };
        // Rates are read at grid points that see samples up to the millisecond before them, so
        // the grid points of a bucket are those after its start, its end included.
        let shift = match meaning {
            Meaning::Counter(_) => size.millis(),
            Meaning::Gauge(_) | Meaning::Expression(_) => size.millis() - 1,
        };
        let expression = self.statistic(meaning, statistic, single);
        steps(&fetch.range, size, shift)
            .map(|steps| {
                let row = Row {
                    expression: expression.clone(),
                    size,
                    steps: Arc::new(steps),
                    nan: fetch.nan,
                    single,
                    left_open: self.left_open.clone(),
                };
                row.exchange(self.left_open.load(Ordering::Relaxed))
            })
            .collect()
    }

    fn statistic(&self, meaning: &Meaning, statistic: Statistic, single: Single) -> Expression {
        let interval = self.interval.millis();
        // What a range is taken of, up to and after the length of the range.
        let (open, close) = match meaning {
            Meaning::Gauge(selector) => (format!("{selector}["), "]".to_owned()),
            Meaning::Counter(selector) => {
                let longest = self.longest_lookback();
                // A grid point with no new sample must not repeat the rate of the one before.
                let new = interval.saturating_sub(1).max(1);
                let rates = format!(
                    "(irate({selector}[{longest}ms] offset 1ms) and count_over_time({selector}[{new}ms] offset 1ms))["
                );
                (rates, format!(":{interval}ms]"))
            }
            Meaning::Expression(text) => {
                // A comment in the expression ends with its line.
                (format!("({text}\n)["), format!(":{interval}ms]"))
            }
        };
        let call = |function: &str| (format!("{function}({open}"), format!("{close})"));
        let wrapped = |outer: &str, function: &str| {
            let (before, after) = call(function);
            if single == Single::No {
                (format!("{outer}({before}"), format!("{after})"))
            } else {
                (before, after)
            }
        };
        let ranges = match (statistic, statistic.quantile()) {
            (_, Some(q)) => vec![(
                format!("quantile_over_time({q},{open}"),
                format!("{close})"),
            )],
            (Statistic::Max, _) => vec![wrapped("max", "max_over_time")],
            (Statistic::Min, _) => vec![wrapped("min", "min_over_time")],
            (Statistic::Sum, _) => vec![wrapped("sum", "sum_over_time")],
            (Statistic::Count, _) => vec![wrapped("sum", "count_over_time")],
            _ if single == Single::No => {
                let (before, after) = wrapped("sum", "sum_over_time");
                vec![
                    (before, format!("{after}/")),
                    wrapped("sum", "count_over_time"),
                ]
            }
            _ => vec![call("avg_over_time")],
        };
        Expression {
            head: String::new(),
            ranges,
        }
    }
}

impl Row {
    fn exchange(self, left_open: bool) -> Exchange<Series> {
        let size = self.size.millis();
        let range = if left_open { size } else { (size - 1).max(1) };
        // Three grid points where the left edge counts in, two where it does not.
        let query = format!(
            "{} or label_replace(count_over_time(vector(1)[2ms:1ms]),\"{PROBE}\",\"1\",\"\",\"\")",
            self.expression.over(range)
        );
        let request = range_query(&query, &self.steps, self.size);
        exchange(request, move |response| {
            let mut matrix = Matrix::read(response)?;
            let probe = matrix.take(PROBE);
            let found = probe
                .and_then(|p| p.samples.first().map(|(_, count)| *count < 2.5))
                .unwrap_or(left_open);
            if found != left_open {
                self.left_open.store(found, Ordering::Relaxed);
                return Ok(Next::More(self.clone().exchange(found)));
            }
            self.buckets(matrix).map(Next::Done)
        })
    }

    fn buckets(&self, mut matrix: Matrix) -> Result<Series, Error> {
        let from_label = self.steps.first - self.steps.range.start();
        for series in &mut matrix.series {
            for (t, _) in &mut series.samples {
                *t -= from_label;
                if self.size.floor(*t) != *t {
                    let message = "the upstream answered at times that were not asked for";
                    return Err(Error::new(Kind::UpstreamFailed, message));
                }
            }
        }
        let several = self.single == Single::Percentile
            && matrix
                .series
                .iter()
                .filter(|s| !s.samples.is_empty())
                .count()
                > 1;
        if several {
            let message = format!(
                "the range is too long to read raw, and a percentile over the {} matching series cannot be asked of the upstream; add conditions, or ask for a shorter range",
                matrix.series.len()
            );
            return Err(Error::new(Kind::TooManyPoints, message));
        }
        let single = self.single == Single::Configured;
        finish(&matrix, &self.steps.range, self.nan, single, |s| {
            s.samples.clone()
        })
    }
}
