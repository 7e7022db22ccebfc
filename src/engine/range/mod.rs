//! Answers to range queries of PromQL: whole series, from chunks that hold the upstream's own text.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};

use super::aligning::is_off_grid;
use super::cache::Chunks;
use super::chunk::{Piece, Segment};
use super::encoded::CachedResponse;
use super::explain::Explanation;
use super::fetch::{Source, View};
use super::lane::{Lane, Subject};
use super::outcome::outcome;
use super::passthrough::PassthroughRequest;
use super::whole::{WholeIdentity, WholeQuery};
use super::{CacheOutcome, Engine, RequestContext, Timing, planned};
use crate::adapters::{Annotations, Data, LabeledSeries, not_promql};
use crate::model::{Error, Expression, Kind, Millis, StepAlignment, TimeRange};
use crate::telemetry::trace::Span;
use crate::upstream::Upstream;
use crate::wire::encoding::{Encoding, Text};
use crate::wire::prometheus::{Extras, RangeQuery, Series, thin, unpacked_bytes, write_matrix};

/// Shorter answers are not encoded.
const WORTH_ENCODING: usize = 8 << 10;

/// Answers that need more bytes than this packed, which takes some milliseconds, leave the threads
/// that serve connections.
const BLOCKING: usize = 128 << 10;

/// The most chunks of a lane of finer steps that a range may meet for that lane to be read instead
/// of the upstream. The steps are the client's, so their ratio has no other bound.
const MAX_FINER_CHUNKS: u64 = 256;

/// A range query whose values may be cached by evaluation time.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    /// The query.
    pub query: RangeQuery,
    /// Milliseconds between an evaluation time and the newest sample that its value may depend on.
    pub lag: Millis,
    /// Headers of the client that are sent to the upstream; they set answers apart.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl RangeRequest {
    /// Returns the same as a request that is passed on as it is.
    pub(super) fn passed(self) -> PassthroughRequest {
        PassthroughRequest {
            path: "/api/v1/query_range".to_owned(),
            params: Arc::new(self.query.pairs(self.query.start, self.query.end)),
            body: Bytes::new(),
            headers: self.headers,
            json: true,
        }
    }
}

impl Engine {
    /// Answers `request` for `upstream`.
    pub async fn query_range(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        request: RangeRequest,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        if !upstream.adapter.speaks_promql() {
            return Err(not_promql());
        }
        if self.aligned_by(upstream, &request).is_some() {
            return self.pass_aligned(upstream, request, context).await;
        }
        let off_grid = is_off_grid(upstream, &request).then(|| request.clone());
        let answer = self.out_of_chunks(upstream, request, context).await;
        match (answer, off_grid) {
            (Err(error), Some(request)) if error.kind == Kind::TimesAligned => {
                self.saw_aligned(upstream);
                self.pass_aligned(upstream, request, context).await
            }
            (answer, _) => answer,
        }
    }

    /// Answers `request` out of the chunks of its lane, after what they lack has been fetched.
    async fn out_of_chunks(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        request: RangeRequest,
        context: &RequestContext,
    ) -> Result<CachedResponse, Error> {
        let begun = self.clock.monotonic();
        let (expression, range) = asked(request, upstream.reading.step_alignment);
        let lane = Lane::of_expression(upstream.clone(), expression);
        let mut fetching = Duration::ZERO;
        let mut waited = None;
        self.look_again(&lane, &range, Source::Upstream, context);
        let planning = context.span("plan");
        let fresh = self.fresh(&lane, &range, context);
        let left = fresh.as_ref().map(|view| view.ttl);
        self.lane_polled(&lane, range, Source::Upstream, left, context);
        let view = match fresh {
            Some(view) => {
                planned(planning, view.lookup, 0);
                view
            }
            None => {
                let began = self.clock.monotonic();
                let (counting, wait) = context.counting();
                let view = self.fetched_or_remembered(&lane, range, &counting, planning);
                let view = Box::pin(view).await?;
                waited = Some(wait);
                fetching = self.clock.monotonic().saturating_sub(began);
                view
            }
        };
        let known = view.degraded.as_ref().map_or(range.end(), |d| d.edge);
        let shown = TimeRange::clamped(range.start(), range.end().min(known));
        let gathered_at = self.clock.monotonic();
        let rendering = context.span("render");
        let mut body = body(&view.chunks, &shown, Encoding::Identity);
        let bytes = length(&body);
        let most = upstream.reading.max_response;
        if bytes > most {
            let message =
                format!("the answer has {bytes} bytes; at most {most} are allowed (max_response)");
            return Err(Error::new(Kind::AnswerTooLarge, message));
        }
        let encoding = match bytes {
            ..WORTH_ENCODING => Encoding::Identity,
            _ => context.encoding,
        };
        if encoding != Encoding::Identity {
            body = self
                .encoded(&lane, view.chunks.clone(), shown, encoding)
                .await?;
        }
        rendering.end();
        let mut cache = outcome(&view, upstream.freshness.refresh);
        count(&view, &shown, &cache, upstream);
        let mut timing = Timing {
            plan: gathered_at.saturating_sub(begun).saturating_sub(fetching),
            fetch: fetching,
            second: Duration::ZERO,
            render: self.clock.monotonic().saturating_sub(gathered_at),
            filled: false,
        };
        if let Some(wait) = waited {
            wait.show(&mut cache, &mut timing);
        }
        let json = HeaderValue::from_static("application/json");
        Ok(CachedResponse {
            status: StatusCode::OK,
            headers: vec![(CONTENT_TYPE, json)],
            body,
            encoding,
            cache,
            timing,
        })
    }

    /// Explains how `request` would be answered.
    pub async fn explain_range(
        &self,
        upstream: &Arc<Upstream>,
        request: RangeRequest,
        context: &RequestContext,
    ) -> Result<Explanation, Error> {
        let aligned = self.aligned_by(upstream, &request);
        let (expression, range) = asked(request, upstream.reading.step_alignment);
        let lane = Lane::of_expression(upstream.clone(), expression);
        // As an answer would: what a lane of finer steps has counts as cached.
        self.thinned(&lane, &range, context);
        let stretch = self
            .explain(&lane, range, Source::Upstream, context)
            .await?;
        let mut explained = Explanation::new(upstream, vec![stretch], None, context);
        explained.bypass = aligned;
        Ok(explained)
    }

    /// Returns the packed answer with the part of `chunks` that lies in `shown`. If much of it has
    /// to be packed first, that is done off the threads that serve connections.
    async fn encoded(
        self: &Arc<Self>,
        lane: &Lane,
        chunks: Chunks,
        shown: TimeRange,
        encoding: Encoding,
    ) -> Result<Vec<Text>, Error> {
        let unpacked = matrices(&chunks).map(|m| unpacked_bytes(&m.series, encoding));
        match unpacked.sum() {
            0 => Ok(body(&chunks, &shown, encoding)),
            1..BLOCKING => Ok(self.packed(lane, &chunks, &shown, encoding)),
            _ => {
                let (engine, lane) = (self.clone(), lane.clone());
                let pack = move || engine.packed(&lane, &chunks, &shown, encoding);
                let packed = crate::work::elsewhere(pack).await;
                packed.map_err(|e| Error::new(Kind::Internal, format!("packing failed: {e}")))
            }
        }
    }

    fn packed(
        &self,
        lane: &Lane,
        chunks: &Chunks,
        shown: &TimeRange,
        encoding: Encoding,
    ) -> Vec<Text> {
        let body = body(chunks, shown, encoding);
        for (index, chunk) in chunks.iter() {
            self.memory.cache.weigh_again(lane, index, chunk);
        }
        body
    }

    /// Returns `range` of `lane`, or the error about the query that the upstream has now or had a
    /// moment ago.
    async fn fetched_or_remembered(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        context: &RequestContext,
        planning: Span,
    ) -> Result<View, Error> {
        let query = WholeQuery::Range(lane.key.clone(), range);
        let key = WholeIdentity::new(&lane.upstream, query);
        if let Some(error) = self.remembered(&lane.upstream, &key, context) {
            return Err(error);
        }
        let since = self.memory.generation();
        let began = self.clock.monotonic();
        let fetched = self.fetched_or_thinned(lane, range, context, planning);
        fetched
            .await
            .inspect_err(|error| self.remember(since, began, &key, error))
    }

    /// Returns `range` of `lane`: from a lane of finer steps that has all of it fresh, else
    /// fetched.
    async fn fetched_or_thinned(
        self: &Arc<Self>,
        lane: &Lane,
        range: TimeRange,
        context: &RequestContext,
        planning: Span,
    ) -> Result<View, Error> {
        if self.thinned(lane, &range, context)
            && let Some(view) = self.fresh(lane, &range, context)
        {
            planned(planning, view.lookup, 0);
            return Ok(view);
        }
        let view = self
            .not_fresh(lane, range, Source::Upstream, context, planning)
            .await?;
        if let Subject::Expression(expression) = lane.subject() {
            self.memory.known_steps.add(lane, expression);
        }
        Ok(view)
    }

    /// Fills `range` of `lane` from a lane of the same expression with finer steps that include all
    /// of its times, if there is one that has the range fresh. Returns whether it did.
    fn thinned(&self, lane: &Lane, range: &TimeRange, context: &RequestContext) -> bool {
        let Subject::Expression(coarse) = lane.subject() else {
            return false;
        };
        let since = self.memory.generation();
        let finer = self.memory.known_steps.finer_than(lane, coarse);
        let mut finer = finer
            .iter()
            .filter(|finer| finer.chunk_span().cells_in(range) <= MAX_FINER_CHUNKS);
        let Some(view) = finer.find_map(|finer| self.fresh(finer, range, context)) else {
            return false;
        };
        for (_, chunk) in view.chunks.iter() {
            let Some(matrix) = chunk.matrix() else {
                continue;
            };
            let segments = chunk.coverage().iter().filter_map(|s| {
                let range = s.range.intersection(range)?;
                Some(Segment { range, ..*s })
            });
            let piece = Piece {
                data: Data::Matrix(LabeledSeries {
                    series: thin(&matrix.series, coarse.step, coarse.phase),
                    annotations: matrix.annotations.clone(),
                }),
                segments: segments.collect(),
            };
            let store = || self.memory.cache.store(lane, &piece);
            if self.memory.if_current(since, store).is_none() {
                return false;
            }
        }
        true
    }
}

/// Returns the expression of `request` at its phase, and the range from its first evaluation time
/// to just after its last.
pub(super) fn asked(request: RangeRequest, alignment: StepAlignment) -> (Expression, TimeRange) {
    let RangeRequest {
        query,
        lag,
        headers,
    } = request;
    let RangeQuery {
        query,
        start,
        end,
        step,
        // These two bound one answer and do not change it; `stats` is passed through.
        timeout: _,
        carried,
        other: mut parameters,
    } = query;
    let (start, end) = match alignment {
        StepAlignment::Exact => (start, end),
        StepAlignment::Align => (step.floor(start), step.floor(end)),
    };
    let last = start + step.floor(end - start);
    if !carried.lookback_delta.is_empty() {
        parameters.push(("lookback_delta".to_owned(), carried.lookback_delta));
    }
    parameters.sort_by(|a, b| a.0.cmp(&b.0));
    let expression = Expression {
        query,
        step,
        phase: start - step.floor(start),
        lag,
        parameters,
        headers,
    };
    (expression, TimeRange::clamped(start, last + 1))
}

fn matrices(chunks: &Chunks) -> impl Iterator<Item = &LabeledSeries> {
    chunks.iter().filter_map(|(_, chunk)| chunk.matrix())
}

fn body(chunks: &Chunks, shown: &TimeRange, encoding: Encoding) -> Vec<Text> {
    matrix_body(|| matrices(chunks), shown, encoding)
}

/// The answer with what of `matrices`, which follow one another, lies in `shown`.
pub(super) fn matrix_body<'a, M: Iterator<Item = &'a LabeledSeries>>(
    matrices: impl Fn() -> M,
    shown: &TimeRange,
    encoding: Encoding,
) -> Vec<Text> {
    let mut annotations = Annotations::default();
    for matrix in matrices() {
        annotations.add(&matrix.annotations);
    }
    let mut extras = Extras::default();
    if annotations.partial {
        let partial = Bytes::from_static(b"true");
        extras.top.push(("isPartial".to_owned(), partial));
    }
    for (name, list) in [
        ("warnings", annotations.warnings),
        ("infos", annotations.infos),
    ] {
        if !list.is_empty() {
            let json = serde_json::Value::from(list).to_string();
            extras.top.push((name.to_owned(), Bytes::from(json)));
        }
    }
    let chunks: Vec<&[Series]> = matrices().map(|m| &m.series[..]).collect();
    write_matrix(&chunks, shown, &extras, encoding)
}

fn length(body: &[Text]) -> usize {
    let length = |text: &Text| match text {
        Text::Plain(text) => text.len(),
        Text::Packed(packed) => packed.heap_bytes(),
    };
    body.iter().map(length).sum()
}

fn count(view: &View, shown: &TimeRange, cache: &CacheOutcome, upstream: &Upstream) {
    let samples = |range: &TimeRange| -> usize {
        let series = matrices(&view.chunks).flat_map(|m| &m.series);
        let tracks = series.flat_map(|s| [&s.values, &s.histograms]);
        tracks.map(|track| track.within(range).len()).sum()
    };
    let fetched = view.fetched.iter().filter_map(|f| f.intersection(shown));
    let fetched: usize = fetched.map(|f| samples(&f)).sum();
    let metrics = &upstream.metrics;
    metrics.points_from_upstream.increment(fetched as u64);
    metrics
        .points_from_cache
        .increment(samples(shown).saturating_sub(fetched) as u64);
    cache.count(metrics);
}

#[cfg(test)]
mod tests;
