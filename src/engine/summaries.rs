//! Points and buckets of stores that return summaries of samples instead of the samples themselves.

use std::sync::Arc;

use super::cache::Chunks;
use super::chunk::{Piece, Segment, derived};
use super::fetch::{Round, Source, View, Wanted};
use super::lane::{Lane, Subject};
use super::{Engine, RequestContext};
use crate::adapters::{Data, Kept, Route};
use crate::aggregate::{combine, each};
use crate::model::{
    Error, Kind, Layout, Millis, Points, Selector, Statistic, Step, TimeRange, stop,
};

/// More points of summaries than these, about a millisecond's work, are combined off the threads
/// that serve connections.
const BLOCKING: usize = if cfg!(test) { 300 } else { 50_000 };

/// Returns where the adapter of `lane` says that its points come from, if it says so.
pub(super) fn routed(lane: &Lane) -> Option<Source> {
    match lane.subject() {
        Subject::Metric {
            selector, layout, ..
        } => Some(match lane.upstream.adapter.route(selector, *layout)? {
            Route::Upstream => Source::Upstream,
            Route::RawPoints => Source::RawPoints,
            Route::Summaries { .. } => Source::Summaries,
        }),
        Subject::Summaries { .. } | Subject::Expression(_) => None,
    }
}

/// Returns the selector of the summaries that the points of `lane` are made of, and the value of
/// each.
fn summarized(lane: &Lane) -> Option<(Selector, Statistic)> {
    let Subject::Metric {
        selector, layout, ..
    } = lane.subject()
    else {
        return None;
    };
    match lane.upstream.adapter.route(selector, *layout)? {
        Route::Summaries { selector, value } => Some((selector, value)),
        Route::Upstream | Route::RawPoints => None,
    }
}

/// Returns the parts of `range`, each with the lane of the summaries that it is made of; where
/// there is none, the store keeps nothing.
pub(super) fn made_of(lane: &Lane, range: &TimeRange) -> Vec<(TimeRange, Option<(Lane, Step)>)> {
    let Some((selector, _)) = summarized(lane) else {
        return Vec::new();
    };
    let adapter = &lane.upstream.adapter;
    let kept = adapter.kept(range, lane.layout(), lane.interval());
    let part = |Kept { range, period }| {
        let summaries = period.and_then(|p| Some((lane.summaries(&selector, p)?, p)));
        (range, summaries)
    };
    kept.into_iter().map(part).collect()
}

/// Returns the part of `range`, on the grid of `period`, that is fetched for `lane`, and the rest
/// of it: the future is not fetched, as a bucket that has just begun has nothing more in it.
pub(super) fn until_now(
    lane: &Lane,
    range: &TimeRange,
    period: Step,
    context: &RequestContext,
) -> (TimeRange, Segment) {
    let ahead = lane.freshness().refresh.as_millis();
    let to = context
        .wall
        .saturating_add(Millis::try_from(ahead).unwrap_or(0));
    let end = range.end().min(period.ceil(to));
    let asked = TimeRange::clamped(range.start(), end).aligned(period);
    let to_come = Segment {
        range: TimeRange::clamped(asked.end(), range.end()),
        fetched: context.arrived,
        settled: false,
    };
    (asked, to_come)
}

impl Engine {
    /// Makes the points of `missing`, of what is `wanted`, out of summaries.
    pub(super) async fn from_summaries(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        missing: &[TimeRange],
        context: &RequestContext,
    ) -> Round {
        let lane = wanted.lane;
        let mut round = Round::default();
        for range in missing {
            for (part, summaries) in made_of(lane, range) {
                if self.is_decided(wanted, &round, context) {
                    return round;
                }
                match self
                    .from_part(lane, part, summaries, context, &mut round)
                    .await
                {
                    Ok(true) => round.brought.insert(part),
                    Ok(false) => {}
                    Err(error) => round.errors.push(error),
                }
            }
        }
        round
    }

    /// Makes the points of `part` out of `summaries`. Returns whether they are known as well as
    /// they can be.
    async fn from_part(
        self: &Arc<Self>,
        lane: &Lane,
        part: TimeRange,
        summaries: Option<(Lane, Step)>,
        context: &RequestContext,
        round: &mut Round,
    ) -> Result<bool, Error> {
        let since = self.memory.generation();
        let grid = lane.grid();
        let Some((summaries, period)) = summaries else {
            // Nothing this old is kept, and that does not change.
            let fetched = self.clock.monotonic();
            let piece = Piece::fetched(lane.nothing(), part, fetched, part.end(), grid);
            let landed = self
                .land(lane, piece, since, true, None, Source::Summaries)
                .await?;
            round.fetched.push(landed);
            return Ok(true);
        };
        let (asked, to_come) = until_now(lane, &part, period, context);
        let planning = context.span("plan");
        let view = self.view(
            &summaries,
            asked,
            asked,
            Source::Upstream,
            context,
            planning,
        );
        // Boxed, as this is a view within a view.
        let View {
            chunks,
            complete,
            collapsed,
            degraded,
            ..
        } = Box::pin(view).await?;
        let mut coverage = chunks.coverage();
        coverage.push(to_come);
        let piece = Piece {
            data: Data::Points(points(&chunks, lane, part).await?),
            segments: derived(&coverage, grid, &part),
        };
        let landed = self
            .land(lane, piece, since, complete, None, Source::Summaries)
            .await?;
        round.fetched.push(landed);
        round.collapsed |= collapsed;
        match degraded {
            None => Ok(true),
            Some(degraded) => {
                let unnamed = || Error::new(Kind::UpstreamFailed, degraded.reason);
                round.errors.push(degraded.error.unwrap_or_else(unnamed));
                Ok(false)
            }
        }
    }
}

/// Returns the points of `lane` in `range` made of the summaries in `chunks`.
async fn points(chunks: &Chunks, lane: &Lane, range: TimeRange) -> Result<Points, Error> {
    let value = summarized(lane).map_or(Statistic::Mean, |(_, value)| value);
    let total: usize = chunks.iter().map(|(_, chunk)| chunk.len()).sum();
    let (chunks, layout) = (chunks.clone(), lane.layout());
    let make = move || {
        let mut summaries = Points::new();
        for (_, chunk) in chunks.iter() {
            if stop::is_due() {
                break;
            }
            let all = chunk.points();
            summaries.extend(&all, all.within(&range));
        }
        match layout {
            Layout::Raw => each(&summaries, value),
            Layout::Buckets { statistic, size } => combine(&summaries, statistic, size, &range),
        }
    };
    if total <= BLOCKING {
        return Ok(make());
    }
    let made = crate::work::elsewhere(make).await;
    made.map_err(|e| {
        Error::new(
            Kind::Internal,
            format!("summaries could not be combined: {e}"),
        )
    })
}
