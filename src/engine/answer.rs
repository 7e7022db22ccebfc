//! Answers to queries for metric values.

use std::future::ready;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use smallvec::{SmallVec, smallvec};

use super::chunk::Chunk;
use super::explain::Explanation;
use super::fetch::{Source, View};
use super::lane::Lane;
use super::outcome::{CacheOutcome, Timing, both, outcome};
use super::prepared::PreparedQuery;
use super::render::BLOCK;
use super::summaries::routed;
use super::{Engine, LevelWait, RequestContext, planned};
use crate::model::{
    Aggregate, Bucket, Details, Error, IncompleteBuckets, Kind, Layout, MetricQuery, Millis,
    RangeSet, TimeRange, stop,
};
use crate::telemetry::trace::Span;
use crate::upstream::Upstream;
use crate::wire::encoding::{Encoding, Text};
use crate::wire::number::write_span;

/// Answers of fewer points are not encoded: they would hardly get smaller.
const WORTH_ENCODING: usize = 3 * BLOCK;

/// Answers that cost more than rendering this many points, about a millisecond, leave the threads
/// that serve connections.
const BLOCKING: usize = 20_000;

/// Most stretches of `raw_points_max` intervals that one raw query reads.
const MAX_SUB_RANGES: u64 = 16;

/// The answer to a query for metric values.
#[derive(Debug)]
pub struct Answer {
    /// The points as JSON, in parts that follow one another, commas included.
    pub points: SmallVec<[Text; 2]>,
    /// The encoding of the slices: the one the client asked for, or none where compression is not
    /// worth it.
    pub encoding: Encoding,
    /// Set if they are buckets.
    pub aggregated: bool,
    /// Set if the answer was cut short, by a limit or by the upstream.
    pub partial: bool,
    /// The part that the cache had in the answer.
    pub cache: CacheOutcome,
    /// The phases of its time.
    pub timing: Timing,
}

/// The points that an answer shows, gathered from its sub-ranges.
struct AnswerBuilder {
    slices: Slices,
    off_grid: Option<Arc<Vec<Bucket>>>,
    left: usize,
    partial: bool,
    from_cache: usize,
    from_upstream: usize,
    outcome: Option<CacheOutcome>,
}

/// As a rule an answer is of one chunk or two.
type Slices = SmallVec<[Slice; 2]>;

/// Points of one chunk.
struct Slice {
    index: i64,
    chunk: Arc<Chunk>,
    at: Range<usize>,
}

/// An answer in the making.
struct Making<'a> {
    query: &'a PreparedQuery,
    source: Source,
    context: &'a RequestContext,
    builder: AnswerBuilder,
    begun: Duration,
}

impl Engine {
    /// Answers `query` for `range`. As a rule the answer of a hit is there at once; the state of all else is
    /// boxed.
    pub fn metric<'a>(
        self: &'a Arc<Self>,
        query: &'a PreparedQuery,
        range: &TimeRange,
        context: &'a RequestContext,
    ) -> impl Future<Output = Result<Answer, Error>> + use<'a> {
        let begun = self.clock.monotonic();
        let lane = &query.lane;
        let mut sub_ranges = match self.sub_ranges(lane, range) {
            Ok(sub_ranges) => sub_ranges,
            Err(error) => return Either::Left(ready(Err(error))),
        };
        let mut making = Making {
            query,
            source: source(lane, range),
            context,
            builder: AnswerBuilder::new(query.limit),
            begun,
        };
        let mut planning = None;
        if let [polled] = sub_ranges[..] {
            self.look_again(lane, &polled, making.source, context);
            let span = context.span("plan");
            let fresh = self.fresh(lane, &polled, context);
            let left = fresh.as_ref().map(|view| view.ttl);
            self.lane_polled(lane, polled, making.source, left, context);
            match fresh {
                None => planning = Some(span),
                Some(view) => {
                    planned(span, view.lookup, 0);
                    making.builder.add(view, lane, &polled, context);
                    if making.rendering_cost() == 0 {
                        return Either::Left(ready(Ok(self.ready_answer(making))));
                    }
                    sub_ranges.clear();
                }
            }
        }
        Either::Right(Box::pin(self.finish(making, sub_ranges, planning)))
    }

    /// Returns the answer of a hit whose text is there; its time has one phase.
    fn ready_answer(&self, mut making: Making<'_>) -> Answer {
        let rendering = making.context.span("render");
        let (slices, encoding) = making.slices();
        let points = self.render(&making.query.lane, slices, encoding);
        rendering.end();
        let timing = Timing {
            plan: self.clock.monotonic().saturating_sub(making.begun),
            ..Timing::default()
        };
        making.answer(points, encoding, timing)
    }

    /// Adds what is to be shown of `sub_ranges`, fetched where that is needed, and renders the answer.
    async fn finish(
        self: &Arc<Self>,
        mut making: Making<'_>,
        sub_ranges: SmallVec<[TimeRange; 1]>,
        mut planning: Option<Span>,
    ) -> Result<Answer, Error> {
        let (lane, context) = (&making.query.lane, making.context);
        let mut fetching = Duration::ZERO;
        // Only what is no hit counts what it waits for.
        let mut counting: Option<(RequestContext, Arc<LevelWait>)> = None;
        let end = sub_ranges.last().map_or(0, TimeRange::end);
        for sub_range in sub_ranges {
            let planning = planning.take().unwrap_or_else(|| context.span("plan"));
            let view = match self.fresh(lane, &sub_range, context) {
                Some(view) => {
                    planned(planning, view.lookup, 0);
                    view
                }
                None => {
                    let asked = self.clock.monotonic();
                    let (counting, _) = &*counting.get_or_insert_with(|| context.counting());
                    let view = self.not_fresh(lane, sub_range, making.source, counting, planning);
                    let view = Box::pin(view).await?;
                    fetching += self.clock.monotonic().saturating_sub(asked);
                    view
                }
            };
            // Where expired data ends before its sub-range does, later ones would show a hole.
            let edge = view.degraded.as_ref().map(|degraded| degraded.edge);
            let builder = &mut making.builder;
            builder.partial |= sub_range.end() < end && edge.is_some_and(|t| t < sub_range.end());
            builder.add(view, lane, &sub_range, context);
            if builder.partial {
                break;
            }
        }
        let gathered_at = self.clock.monotonic();
        let rendering = context.span("render");
        let cost = making.rendering_cost();
        let (slices, encoding) = making.slices();
        let builder = &mut making.builder;
        let points = match &builder.off_grid {
            Some(buckets) => render_as_labelled(buckets, &mut builder.left, &mut builder.partial),
            None if cost < BLOCKING => self.render(lane, slices, encoding),
            None => self.rendered_elsewhere(lane, slices, encoding).await?,
        };
        rendering.end();
        let rendered = self.clock.monotonic();
        let timing = Timing {
            plan: gathered_at.saturating_sub(making.begun + fetching),
            fetch: fetching,
            second: Duration::ZERO,
            render: rendered.saturating_sub(gathered_at),
            filled: false,
        };
        let mut answer = making.answer(points, encoding, timing);
        if let Some((_, wait)) = counting {
            wait.show(&mut answer.cache, &mut answer.timing);
        }
        Ok(answer)
    }

    /// Explains how `query` would be answered.
    pub async fn explain_metric(
        &self,
        details: &Details,
        query: MetricQuery,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        let upstream = self.registry.pick(details)?;
        let query = upstream.adapter.canonical(query)?;
        let range = query.range;
        let lane = Lane::of(upstream.clone(), details, query);
        let sub_ranges = self.sub_ranges(&lane, &range)?;
        let source = source(&lane, &range);
        let mut explained = Vec::new();
        for sub_range in sub_ranges {
            explained.push(self.explain(&lane, sub_range, source, context).await?);
        }
        Ok(Explanation::new(&upstream, explained, None, context))
    }

    /// Returns the ranges of `lane` to make known, one after the other: the buckets that meet `range`,
    /// or that range in sub-ranges that can be read raw. None for an empty range.
    fn sub_ranges(
        &self,
        lane: &Lane,
        range: &TimeRange,
    ) -> Result<SmallVec<[TimeRange; 1]>, Error> {
        if range.is_empty() {
            return Ok(SmallVec::new());
        }
        let (upstream, interval) = (&lane.upstream, lane.interval());
        if let Layout::Buckets { size, .. } = lane.layout() {
            let aligned = range.aligned(size);
            let buckets = (aligned.millis() / size.millis()).unsigned_abs();
            if buckets > u64::from(self.max_points) {
                let message = format!(
                    "the range has {buckets} buckets of {} ms; at most {} are allowed (server.max_points)",
                    size.millis(),
                    self.max_points
                );
                return Err(too_many("query.aggregation.bucketSizeMillis", message));
            }
            let raw = || interval.cells_in(&aligned);
            let most = u64::from(upstream.reading.raw_points_max) * MAX_SUB_RANGES;
            if upstream.reading.aggregate == Aggregate::Local && raw() > most {
                let raw = raw();
                let message = format!(
                    "the buckets span {raw} points at the upstream's interval of {} ms; at most {most} can be aggregated in one query; ask for a shorter range, or set aggregate to \"auto\" or \"upstream\"",
                    interval.millis(),
                );
                return Err(too_many("query.endTime", message));
            }
            return Ok(smallvec![aligned]);
        }
        let points = u64::from(upstream.reading.raw_points_max);
        let cells = interval.cells_in(range);
        if cells > points * MAX_SUB_RANGES {
            let message = format!(
                "the range spans {cells} points at the upstream's interval of {} ms; at most {} can be read raw in one query; ask for a shorter range or an aggregation",
                interval.millis(),
                points * MAX_SUB_RANGES,
            );
            return Err(too_many("query.endTime", message));
        }
        let sub_range = interval.times(upstream.reading.raw_points_max).millis();
        let (start, end) = (range.start(), range.end());
        let next = |from: &Millis| Some(from + sub_range).filter(|from| *from < end);
        let from = std::iter::successors(Some(start), next);
        Ok(from
            .map(|from| TimeRange::clamped(from, end.min(from + sub_range)))
            .collect())
    }

    async fn rendered_elsewhere(
        self: &Arc<Self>,
        lane: &Lane,
        slices: Slices,
        encoding: Encoding,
    ) -> Result<SmallVec<[Text; 2]>, Error> {
        let (engine, lane) = (self.clone(), lane.clone());
        let task = move || engine.render(&lane, slices, encoding);
        let rendered = crate::work::elsewhere(task).await;
        rendered.map_err(|e| Error::new(Kind::Internal, format!("rendering failed: {e}")))
    }

    fn render(&self, lane: &Lane, slices: Slices, encoding: Encoding) -> SmallVec<[Text; 2]> {
        let last = slices.len().saturating_sub(1);
        let mut parts = SmallVec::new();
        for (i, Slice { index, chunk, at }) in slices.into_iter().enumerate() {
            if stop::is_due() {
                break;
            }
            let grows = chunk.rendering_cost(&at, i == last, encoding) > 0;
            if let Some(text) = chunk.rendered(lane.layout()) {
                text.add_to(&mut parts, at, i == last, encoding);
            }
            if grows {
                self.memory.cache.weigh_again(lane, index, &chunk);
            }
        }
        parts
    }
}

impl Making<'_> {
    /// Returns the encoding of the answer.
    fn encoding(&self) -> Encoding {
        let builder = &self.builder;
        let points = builder.from_cache + builder.from_upstream;
        match builder.off_grid {
            None if points >= WORTH_ENCODING => self.context.encoding,
            _ => Encoding::Identity,
        }
    }

    /// Returns the work left before the slices can be an answer, measured in points that are rendered.
    fn rendering_cost(&self) -> usize {
        let (slices, encoding) = (&self.builder.slices, self.encoding());
        let last = slices.len().saturating_sub(1);
        let cost = |(i, s): (usize, &Slice)| s.chunk.rendering_cost(&s.at, i == last, encoding);
        slices.iter().enumerate().map(cost).sum()
    }

    /// Takes the slices out, and returns them with the encoding of the answer.
    fn slices(&mut self) -> (Slices, Encoding) {
        (std::mem::take(&mut self.builder.slices), self.encoding())
    }

    /// Returns the answer of `points`, and counts it.
    fn answer(self, points: SmallVec<[Text; 2]>, encoding: Encoding, timing: Timing) -> Answer {
        let PreparedQuery { lane, units, .. } = self.query;
        self.builder.count(&lane.upstream);
        let client = &lane.upstream.client;
        client.requested(match lane.billed_by_answer() {
            Some(selector) => client.last_units(selector),
            None => *units,
        });
        let outcome = self.builder.outcome;
        Answer {
            points,
            encoding,
            aggregated: lane.layout() != Layout::Raw,
            partial: self.builder.partial,
            cache: outcome.unwrap_or_else(CacheOutcome::nothing_asked),
            timing,
        }
    }
}

impl AnswerBuilder {
    fn new(limit: usize) -> Self {
        Self {
            slices: Slices::new(),
            off_grid: None,
            left: limit,
            partial: false,
            from_cache: 0,
            from_upstream: 0,
            outcome: None,
        }
    }

    /// Adds the part of `view` in `range` that is shown.
    fn add(&mut self, view: View, lane: &Lane, range: &TimeRange, context: &RequestContext) {
        let outcome = outcome(&view, lane.freshness().refresh);
        self.outcome = Some(match self.outcome.take() {
            None => outcome,
            Some(before) => both(before, outcome),
        });
        self.partial |= !view.complete;
        if view.off_grid.is_some() {
            self.off_grid = view.off_grid;
            return;
        }
        let shown = shown(&view, range, &lane.upstream, context);
        for (index, chunk) in view.chunks.into_present() {
            let mut at = if shown.covers(&lane.chunk_span().cell(index)) {
                0..chunk.len()
            } else {
                chunk.within(&shown)
            };
            if at.len() > self.left {
                at.end = at.start + self.left;
                self.partial = true;
            }
            if at.is_empty() {
                continue;
            }
            self.left -= at.len();
            let fetched = fetched_in(&chunk, &at, &view.fetched);
            self.from_upstream += fetched;
            self.from_cache += at.len() - fetched;
            self.slices.push(Slice { index, chunk, at });
        }
    }

    fn count(&self, upstream: &Upstream) {
        let metrics = &upstream.metrics;
        metrics.points_from_cache.increment(self.from_cache as u64);
        let fetched = self.from_upstream + self.off_grid.as_ref().map_or(0, |b| b.len());
        metrics.points_from_upstream.increment(fetched as u64);
        if let Some(outcome) = &self.outcome {
            outcome.count(metrics);
        }
    }
}

/// Returns the source of the points of `lane` in `range`.
fn source(lane: &Lane, range: &TimeRange) -> Source {
    if let Some(source) = routed(lane) {
        return source;
    }
    let upstream = &lane.upstream;
    let Layout::Buckets { size, .. } = lane.layout() else {
        return Source::Upstream;
    };
    let raw_points = || lane.interval().cells_in(&range.aligned(size));
    let most = u64::from(upstream.reading.raw_points_max);
    match upstream.reading.aggregate {
        Aggregate::Local => Source::RawPoints,
        Aggregate::Auto if raw_points() <= most => Source::RawPoints,
        Aggregate::Auto | Aggregate::Upstream => Source::Upstream,
    }
}

/// Returns the part of `range` whose points are shown: all of it; of expired data, up to where it
/// is known well enough; and if incomplete buckets are to be left out, up to the last that was
/// complete when it was fetched.
fn shown(
    view: &View,
    range: &TimeRange,
    upstream: &Upstream,
    context: &RequestContext,
) -> TimeRange {
    let edge = view.degraded.as_ref().map_or(range.end(), |d| d.edge);
    let range = TimeRange::clamped(range.start(), range.end().min(edge));
    let omit = upstream.reading.incomplete_buckets == IncompleteBuckets::Omit;
    let Some(size) = view.bucket_size.filter(|_| omit) else {
        return range;
    };
    let coverage = view.chunks.coverage();
    let tail = coverage
        .iter()
        .filter(|s| !s.settled && s.range.intersection(&range).is_some());
    let age = tail
        .map(|s| context.arrived.saturating_sub(s.fetched))
        .max();
    let age = Millis::try_from(age.unwrap_or_default().as_millis()).unwrap_or(Millis::MAX);
    let full = size.floor(context.wall.saturating_sub(age));
    TimeRange::clamped(range.start(), range.end().min(full))
}

/// Returns the number of the points `at` of `chunk` that lie in `fetched`.
fn fetched_in(chunk: &Chunk, at: &Range<usize>, fetched: &RangeSet) -> usize {
    let overlap = |part: &TimeRange| {
        let within = chunk.within(part);
        let start = within.start.max(at.start);
        within.end.min(at.end).saturating_sub(start)
    };
    fetched.iter().map(overlap).sum()
}

/// Renders buckets with the labels that they came with.
fn render_as_labelled(
    buckets: &[Bucket],
    left: &mut usize,
    partial: &mut bool,
) -> SmallVec<[Text; 2]> {
    *partial |= buckets.len() > *left;
    let mut text = Vec::with_capacity(buckets.len() * 48);
    for bucket in buckets.iter().take(*left) {
        if !text.is_empty() {
            text.push(b',');
        }
        write_span(
            &mut text,
            bucket.range.start(),
            bucket.range.end(),
            bucket.value,
        );
    }
    smallvec![Text::Plain(Bytes::from(text))]
}

fn too_many(field: &str, message: String) -> Error {
    let mut error = Error::new(Kind::TooManyPoints, message);
    error.field = Some(field.to_owned());
    error
}
