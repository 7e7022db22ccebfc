//! A single fetch: its parts, how they are requested, and how they are stored.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};

use super::cache::Chunks;
use super::chunk::Piece;
use super::fetch::{Fetched, Source};
use super::invalidate::Generation;
use super::lane::{Lane, Subject};
use super::passthrough::LONG;
use super::{Engine, LevelWait, RequestContext};
use crate::adapters::{Fetch, FetchResult, Part, PartCall};
use crate::model::{Error, Kind, Layout, Millis, Step, TimeRange};
use crate::upstream::{Answered, CallContext, Upstream};

/// Calls of one fetch that run at once; the upstream's own limits come on top.
const CALLS_AT_ONCE: usize = 4;

/// Carries out one fetch: asks the upstream, counts, and stores.
pub(super) async fn fetch_one(
    engine: Arc<Engine>,
    lane: Lane,
    range: TimeRange,
    context: RequestContext,
) -> Result<Fetched, Error> {
    let since = engine.memory.generation();
    let parts = match lane.subject() {
        // Its form takes about a millisecond to write.
        Subject::Expression(expression) if expression.query.len() > LONG => {
            let of = lane.clone();
            let written = crate::work::elsewhere(move || parts(&of, range)).await;
            written.map_err(|e| {
                Error::new(Kind::Internal, format!("writing the request failed: {e}"))
            })??
        }
        _ => parts(&lane, range)?,
    };
    if parts.is_empty() {
        // There can be no points, and there never will be.
        let now = engine.clock.monotonic();
        let piece = Piece::fetched(lane.nothing(), range, now, range.end(), Step::MILLI);
        let landed = engine.land(&lane, piece, since, true, None, Source::Upstream);
        return landed.await;
    }
    let fetching = Arc::new(Fetching {
        call: CallContext {
            lane: lane.key.number(),
            ..context.call
        },
        engine,
        lane,
        since,
        wait: context.level_wait,
    });
    // A set of futures is woken once more for each time that it is polled, so one is not put into any.
    match parts.len() {
        1 => fetching.alone(parts, range).await,
        _ => fetching.together(parts, range).await,
    }
}

/// The state that the parts of one fetch share.
struct Fetching {
    engine: Arc<Engine>,
    lane: Lane,
    call: CallContext,
    since: Generation,
    /// The wait of the request that it is for.
    wait: Option<Arc<LevelWait>>,
}

impl Fetching {
    /// Fetches the only one of `parts`, which stands for `range`.
    async fn alone(&self, parts: Vec<Part>, range: TimeRange) -> Result<Fetched, Error> {
        let none = || Error::new(Kind::Internal, "a fetch has no parts");
        let part = parts.into_iter().next().ok_or_else(none)?;
        // Boxed: the task of the fetch is moved several times before it runs.
        Box::pin(self.part(part, range)).await
    }

    /// Fetches `parts`, which together stand for `range`, some at once.
    async fn together(
        self: &Arc<Self>,
        parts: Vec<Part>,
        range: TimeRange,
    ) -> Result<Fetched, Error> {
        let later: Vec<Millis> = parts.iter().skip(1).map(|part| part.start).collect();
        // The first part stands for all before its first time, too.
        let starts = [range.start()].into_iter().chain(later.clone());
        let ends = later.into_iter().chain([range.end()]);
        let parts = parts.into_iter().zip(starts.zip(ends));
        let parts = parts.map(|(part, (start, end))| {
            let fetching = self.clone();
            async move {
                let range = TimeRange::clamped(start, end);
                // A task of its own: if another part fails, what has been sent is stored all the same.
                let task = tokio::spawn(async move { fetching.part(part, range).await });
                task.await.unwrap_or_else(|e| {
                    let message = format!("a part of a fetch failed: {e}");
                    Err(Error::new(Kind::Internal, message))
                })
            }
        });
        let mut fetched = Fetched {
            chunks: Chunks::new(&self.lane, &range),
            complete: true,
            off_grid: None,
        };
        let mut parts = stream::iter(parts).buffered(CALLS_AT_ONCE);
        while let Some(part) = parts.next().await {
            // Parts that came before the one that failed are in the cache already.
            let part = part?;
            fetched.chunks.update(&self.lane, &part.chunks);
            fetched.complete &= part.complete;
            fetched.off_grid = fetched.off_grid.or(part.off_grid);
        }
        Ok(fetched)
    }

    /// Fetches one part, counts it, and stores it as what is known of `range`.
    async fn part(&self, part: Part, range: TimeRange) -> Result<Fetched, Error> {
        let upstream = &self.lane.upstream;
        let call = CallContext {
            span: Some(read_for(upstream, &range)),
            ..self.call.clone()
        };
        let answered = self.answered(part.call, &range, &call).await?;
        let series = answered.value;
        count(upstream, &series);
        if let Some(wait) = &self.wait {
            wait.fill(series.filled > 0);
        }
        // Data that another address may know better is fetched again once that can be reached.
        let settled_before = match answered.provisional {
            true => Millis::MIN,
            false => settled_before(&self.lane, answered.as_of),
        };
        let grid = self.lane.grid();
        let piece = Piece::fetched(series.data, range, answered.sent, settled_before, grid);
        let (complete, off_grid) = (series.complete, series.off_grid);
        self.engine
            .land(
                &self.lane,
                piece,
                self.since,
                complete,
                off_grid,
                Source::Upstream,
            )
            .await
    }
}

impl Fetching {
    /// Makes `part`, which stands for `range`, unless it is known to be refused.
    async fn answered(
        &self,
        part: PartCall,
        range: &TimeRange,
        call: &CallContext,
    ) -> Result<Answered<FetchResult>, Error> {
        let upstream = &self.lane.upstream;
        let Some(selector) = self.lane.billed_by_answer() else {
            return upstream.fetch(part, call).await;
        };
        let client = &upstream.client;
        if let Some(error) = client.refused_before(selector, range) {
            return Err(error);
        }
        let bill = part.bill();
        let outcome = upstream.fetch(part, call).await;
        let refresh = self.lane.freshness().refresh;
        let units = bill.and_then(|bill| bill.last());
        client.remember(selector, range, units, outcome.as_ref().err(), refresh);
        outcome
    }
}

/// Returns the time before which the points of `lane` are settled that were fetched at `fetched`.
fn settled_before(lane: &Lane, fetched: Millis) -> Millis {
    let samples = fetched.saturating_sub(lane.freshness().settle);
    match lane.subject() {
        Subject::Metric { selector, .. } => {
            let reads = lane.upstream.adapter.reads(selector);
            reads.map_or(samples, |reads| reads.settled_before(samples))
        }
        Subject::Summaries { .. } => samples,
        Subject::Expression(expression) => samples.saturating_add(expression.lag),
    }
}

/// The longest that an expression is assumed to look back, beyond the time that data takes to
/// settle.
const LOOKBACK: Millis = 5 * 60_000;

/// Returns the time span of the data that is read for `range`: a store that came back from an
/// outage lacks some of it for as long as data takes to settle.
pub(super) fn read_for(upstream: &Upstream, range: &TimeRange) -> TimeRange {
    let back = upstream.freshness.settle.saturating_add(LOOKBACK);
    TimeRange::clamped(range.start().saturating_sub(back), range.end())
}

/// Returns the parts in which `range` of `lane` is requested of its upstream.
pub(super) fn parts(lane: &Lane, range: TimeRange) -> Result<Vec<Part>, Error> {
    let upstream = &lane.upstream;
    match lane.subject() {
        Subject::Metric {
            selector,
            metric_field,
            layout,
            nan,
            details,
        } => {
            let parts = upstream.adapter.series(&Fetch {
                selector: selector.clone(),
                metric_field: metric_field.clone(),
                layout: *layout,
                range,
                nan: *nan,
                details: details.clone(),
            });
            let mut parts = parts?;
            if lane.billed_by_answer().is_some() {
                // As many as last time, until the answer says more.
                let units = upstream.client.last_units(selector);
                parts.iter_mut().for_each(|part| part.call.count_as(units));
            }
            Ok(parts)
        }
        Subject::Summaries {
            selector,
            metric_field,
            period,
            nan,
            details,
        } => {
            let fetch = Fetch {
                selector: selector.clone(),
                metric_field: metric_field.clone(),
                layout: Layout::Raw,
                range,
                nan: *nan,
                details: details.clone(),
            };
            upstream.adapter.summaries(&fetch, *period)
        }
        Subject::Expression(expression) => {
            let limits = upstream.reading.range_limits;
            upstream.adapter.range(expression, &range, limits)
        }
    }
}

/// Counts the samples of `series`.
fn count(upstream: &Upstream, series: &FetchResult) {
    let metrics = &upstream.metrics;
    metrics.points.increment(series.received);
    metrics.filled_points(series.filled);
    metrics.dropped("nan", series.dropped.nan);
    metrics.dropped("inf", series.dropped.inf);
    metrics.dropped("outside_range", series.dropped.outside_range);
    metrics.dropped("histogram", series.dropped.histogram);
}
