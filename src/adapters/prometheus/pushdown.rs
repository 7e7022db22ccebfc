//! Aggregation in the Prometheus server.
//!
//! A bucket `[kB, (k+1)B)` is evaluated at its end `(k+1)B`, over a range that ends a millisecond
//! before and covers it exactly: some stores round the times of a query down to multiples of its
//! step, so these must be such. Which range that is depends on whether the server counts a range's left
//! edge in (up to Prometheus 2) or not (from 3 on, and VictoriaMetrics), so each answer carries a
//! probe that tells, and a query that assumed the wrong one is made again.
//!
//! Where the result differs from what is computed here from raw points:
//! - A range function takes in samples that are NaN: the count includes them, a sum, mean or
//!   percentile is NaN and its bucket left out.
//! - Rates of a counter are taken on a grid that divides the bucket, at least two points an
//!   interval. Of samples that lie closer together than that grid, only the last counts.
//!
//! VictoriaMetrics differs further (measured with 1.79.5): a counter's drop of less than an
//! eighth is no reset to it, the rate is 0; it may keep no more than 11 digits of a value; in steps
//! under a minute, those of `~` included, it repeats one value for the last 30 s before now
//! (`-search.latencyOffset`). A bucket of more than some 30,000 inner points is too large for it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::answer::SampleMatrix;
use super::promql::Meaning;
use super::replicas::{ReplicaLabels, Spacing, ask_or_go_on};
use super::{
    MAX_STEPS, Prometheus, Steps, check_calls, duration, finish, on_grid, range_query, steps,
};
use crate::adapters::{Exchange, Fetch, FetchResult, Next, Part, PartCall, Response};
use crate::model::{Error, Kind, Millis, NanInterpretation, Statistic, Step};

/// The label of the probe.
const PROBE: &str = "heliostat_probe";

/// Most points of a subquery in one call: a server works all of them out at once, and
/// VictoriaMetrics refuses more than 30,000, of which it takes some for itself.
const MAX_INNER: Millis = 25_000;

/// Most grids that are tried for the rates of a counter: all there can be for an interval of up to two
/// minutes.
const MOST_TRIALS: usize = 1 << 16;

/// Prometheus' error for a subquery of an expression without labels, such as `1 + 1`.
const SCALAR: &str = "only allowed on instant vector, got scalar";

/// One row of buckets that one call requests.
#[derive(Clone)]
struct Row {
    /// The query, given whether a range leaves out its left edge.
    query: Arc<dyn Fn(bool) -> String + Send + Sync>,
    /// The query if the expression turns out to be a scalar.
    of_scalar: Option<Arc<dyn Fn(bool) -> String + Send + Sync>>,
    size: Step,
    steps: Arc<Steps>,
    nan: NanInterpretation,
    /// Set if the answer must be of one series: it cannot be merged, or may not be.
    single: Single,
    /// Most series of an answer.
    most: usize,
    labels: Option<ReplicaLabels>,
    left_open: Arc<AtomicBool>,
}

#[derive(Clone, Copy, PartialEq)]
enum Single {
    No,
    Configured,
    Percentile,
}

/// Returns a range of `millis` that ends with the millisecond it is evaluated at.
fn span(millis: Millis, left_open: bool) -> String {
    let edge = Millis::from(!left_open);
    duration(millis - edge)
}

impl Prometheus {
    /// Returns the buckets of `fetch`, aggregated by the server.
    pub(super) fn pushed_down(
        &self,
        meaning: &Meaning,
        statistic: Statistic,
        size: Step,
        fetch: &Fetch,
    ) -> Result<Vec<Part>, Error> {
        let single = match (statistic.quantile(), self.single_series) {
            (_, true) => Single::Configured,
            (Some(_), false) => Single::Percentile,
            (None, false) => Single::No,
        };
        if size.millis() < 2 {
            // A range that leaves out its left edge and includes the other cannot be written.
            let message = "the upstream cannot compute buckets of 1 ms; request larger ones";
            return Err(Error::new(Kind::TooManyPoints, message));
        }
        let inner = match meaning {
            Meaning::Gauge(_) => size.millis(),
            Meaning::Counter(_) => self.rate_grid(size),
            Meaning::Expression(_) => self.interval.millis(),
        };
        let per_call = (MAX_INNER.saturating_mul(inner) / size.millis()).max(1);
        let per_call = u32::try_from(per_call).unwrap_or(MAX_STEPS).min(MAX_STEPS);
        let lookback = self.longest_lookback();
        let query = |meaning: &Meaning| -> Arc<dyn Fn(bool) -> String + Send + Sync> {
            let meaning = meaning.clone();
            Arc::new(move |left_open| {
                let over = over(&meaning, size, inner, lookback, left_open);
                reduced(&over, statistic, single)
            })
        };
        let of_scalar = match meaning {
            Meaning::Expression(text) => {
                Some(query(&Meaning::Expression(format!("vector({text}\n)"))))
            }
            Meaning::Gauge(_) | Meaning::Counter(_) => None,
        };
        let query = query(meaning);
        let length = query(true).len();
        check_calls(&fetch.range, size, per_call, length, "query.endTime")?;
        let rows = steps(&fetch.range, size, size.millis(), per_call).map(|steps| {
            let row = Row {
                query: query.clone(),
                of_scalar: of_scalar.clone(),
                size,
                steps: Arc::new(steps),
                nan: fetch.nan,
                single,
                most: self.max_series,
                labels: self.fill.clone(),
                left_open: self.left_open.clone(),
            };
            let start = row.steps.range.start();
            let exchange = row.exchange(self.left_open.load(Ordering::Relaxed), true);
            let call = PartCall::Alone(exchange);
            Part { start, call }
        });
        Ok(rows.collect())
    }

    /// Returns the grid on which a counter's rates are read to make buckets of `size`: it divides
    /// these, so that no rate is counted to a neighbour, and is at most half the interval, so that
    /// samples that come a little early or late have a grid point each.
    pub(super) fn rate_grid(&self, size: Step) -> Millis {
        let longest = (self.interval.millis() / 2).max(1);
        let least = (longest / 64).max(1);
        let size = size.millis();
        let fewest = (size + longest - 1) / longest;
        // Either way finds the coarsest first.
        let found = match size / least - fewest < longest - least {
            true => (fewest..=size / least)
                .take(MOST_TRIALS)
                .find(|parts| size % parts == 0)
                .map(|parts| size / parts),
            false => (least..=longest.min(size))
                .rev()
                .take(MOST_TRIALS)
                .find(|grid| size % grid == 0),
        };
        // No grid that is coarse enough divides a bucket. Rates near an edge may be a grid point
        // off.
        found.unwrap_or(longest)
    }
}

/// Returns what `meaning` has in a bucket of `size`, as the argument of an `_over_time` function.
fn over(meaning: &Meaning, size: Step, inner: Millis, lookback: Millis, left_open: bool) -> String {
    let range = span(size.millis(), left_open);
    let (grid, lookback) = (duration(inner), duration(lookback));
    match meaning {
        Meaning::Gauge(selector) => format!("{selector}[{range}] offset 1ms"),
        Meaning::Counter(selector) => {
            // Rates are read at grid points that see samples up to the millisecond before them, so
            // the grid points of a bucket are those after its start, its end included.
            // A grid point with no new sample must not repeat the rate of the one before.
            let new = span(inner.max(2), left_open);
            format!(
                "(irate({selector}[{lookback}] offset 1ms) and count_over_time({selector}[{new}] offset 1ms))[{range}:{grid}]"
            )
        }
        // A comment in the expression ends with its line.
        Meaning::Expression(text) => format!("({text}\n)[{range}:{grid}] offset 1ms"),
    }
}

/// Returns the statistic of `over`, as one series where several can be merged.
fn reduced(over: &str, statistic: Statistic, single: Single) -> String {
    let merged = |outer: &str, function: &str| {
        if single == Single::No {
            format!("{outer}({function}({over}))")
        } else {
            format!("{function}({over})")
        }
    };
    match (statistic, statistic.quantile()) {
        (_, Some(q)) => format!("quantile_over_time({q},{over})"),
        (Statistic::Max, _) => merged("max", "max_over_time"),
        (Statistic::Min, _) => merged("min", "min_over_time"),
        (Statistic::Sum, _) => merged("sum", "sum_over_time"),
        (Statistic::Count, _) => merged("sum", "count_over_time"),
        _ if single == Single::No => {
            format!("sum(sum_over_time({over}))/sum(count_over_time({over}))")
        }
        _ => format!("avg_over_time({over})"),
    }
}

impl Row {
    /// Returns the call, which assumes whether the left edge counts in and may change its mind
    /// once.
    fn exchange(self, left_open: bool, may_turn: bool) -> Exchange<FetchResult> {
        let size = self.size.millis();
        // Reaches back to a grid line exactly, so the answer is larger by one where the left edge
        // is included.
        let probe = 2 * size;
        let with_edge = 3.0;
        let query = format!(
            "{} or label_replace(count_over_time(vector(1)[{}:{}]),\"{PROBE}\",\"1\",\"\",\"\")",
            (self.query)(left_open),
            duration(probe),
            duration(size),
        );
        let request = range_query(&query, &self.steps, self.size);
        let spacing = Spacing::buckets(self.steps.first, self.steps.last, self.size);
        let (row, labels) = (self.clone(), self.labels.clone());
        let read = move |response: &Response| {
            let mut matrix = match (SampleMatrix::read(response, self.most), &self.of_scalar) {
                (Ok(matrix), _) => matrix,
                (Err(error), Some(query)) if error.message.contains(SCALAR) => {
                    let mut row = self.clone();
                    row.query = query.clone();
                    row.of_scalar = None;
                    return Ok(ControlFlow::Break(row.exchange(left_open, may_turn)));
                }
                (Err(error), _) => return Err(error),
            };
            let probe = matrix.take(PROBE);
            let found = probe
                .and_then(|p| {
                    p.samples
                        .iter()
                        .next()
                        .map(|(_, count)| count < with_edge - 0.5)
                })
                .unwrap_or(left_open);
            if found != left_open {
                if !may_turn {
                    let message = "the upstream includes the left edge of a range in some answers and excludes it in others";
                    return Err(Error::new(Kind::UpstreamFailed, message));
                }
                self.left_open.store(found, Ordering::Relaxed);
                return Ok(ControlFlow::Break(self.clone().exchange(found, false)));
            }
            Ok(ControlFlow::Continue(matrix))
        };
        let done = move |matrix| row.buckets(matrix).map(Next::Done);
        ask_or_go_on(request, read, done, spacing, labels)
    }

    fn buckets(&self, mut matrix: SampleMatrix) -> Result<FetchResult, Error> {
        let from_label = self.steps.first - self.steps.range.start();
        on_grid(&matrix, self.size, from_label)?;
        for series in &mut matrix.series {
            series.samples.shift(-from_label);
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
                "the range is too long to read raw, and the upstream cannot compute a percentile over the {} matching series; add conditions, or request a shorter range",
                matrix.series.len()
            );
            return Err(Error::new(Kind::TooManyPoints, message));
        }
        let single = self.single == Single::Configured;
        finish(matrix, &self.steps.range, self.nan, single)
    }
}
