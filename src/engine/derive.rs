//! Makes buckets of raw points; for long ranges in several threads.

use std::sync::Arc;
use std::thread::available_parallelism;

use futures_util::future::try_join_all;

use super::cache::Chunks;
use super::chunk::{Piece, derived};
use super::fetch::{Round, Source, Wanted};
use super::summaries::{routed, until_now};
use super::{Engine, RequestContext};
use crate::adapters::Data;
use crate::aggregate::{aggregate, split};
use crate::model::{Error, Kind, Layout, Points, Statistic, Step, TimeRange, stop};

/// With more raw points than these, about a millisecond's work, buckets are made off the threads
/// that serve connections. A low limit in tests.
const BLOCKING: usize = if cfg!(test) { 300 } else { 100_000 };

/// Most threads that one query takes.
const MOST_PARTS: usize = 4;

impl Engine {
    /// Makes the buckets of `missing`, of what is `wanted`, out of raw points.
    pub(super) async fn derive(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        missing: &[TimeRange],
        context: &RequestContext,
    ) -> Round {
        let lane = wanted.lane;
        let Layout::Buckets { statistic, size } = lane.layout() else {
            return Round::default();
        };
        let Some(raw) = lane.raw() else {
            return Round::default();
        };
        let mut round = Round::default();
        let since = self.memory.generation();
        let metered = lane.upstream.adapter.is_metered();
        for range in missing {
            if self.is_decided(wanted, &round, context) {
                break;
            }
            let (asked, to_come) = match metered {
                true => {
                    let (asked, to_come) = until_now(lane, range, Step::MILLI, context);
                    (asked, Some(to_come))
                }
                false => (*range, None),
            };
            let found = self.memory.rechecked.found(&raw);
            let needed = asked.intersection(&wanted.range).unwrap_or(asked);
            // Boxed, as this is a view within a view.
            let view = self.view(
                &raw,
                needed,
                asked,
                routed(&raw).unwrap_or(Source::Upstream),
                context,
                context.span("plan"),
            );
            let view = Box::pin(view);
            let view = match view.await {
                Ok(view) => view,
                Err(error) => {
                    round.errors.push(error);
                    continue;
                }
            };
            let points = match buckets(&view.chunks, statistic, size, range).await {
                Ok(points) => points,
                Err(error) => {
                    round.errors.push(error);
                    continue;
                }
            };
            let mut coverage = view.chunks.coverage();
            coverage.extend(to_come);
            let piece = Piece {
                data: Data::Points(points),
                segments: derived(&coverage, size, range),
            };
            let landed = self.land(lane, piece, since, view.complete, None, Source::RawPoints);
            let landed = landed.await;
            if self.memory.rechecked.found(&raw) != found {
                // A second look has stored late points meanwhile, and dropped what was there of them then.
                self.drop_made_of(&raw, *range).await;
            }
            match landed {
                Ok(fetched) => round.fetched.push(fetched),
                Err(error) => {
                    round.errors.push(error);
                    continue;
                }
            }
            round.collapsed |= view.collapsed;
            match view.degraded {
                Some(degraded) => {
                    let unnamed = || Error::new(Kind::UpstreamFailed, degraded.reason);
                    round.errors.push(degraded.error.unwrap_or_else(unnamed));
                }
                None => round
                    .brought
                    .insert(range.intersection(&wanted.range).unwrap_or(*range)),
            }
        }
        round
    }
}

/// Returns the buckets of `size` in `range`, which lies on their grid, of the raw points in
/// `chunks`, which hold all of it.
async fn buckets(
    chunks: &Chunks,
    statistic: Statistic,
    size: Step,
    range: &TimeRange,
) -> Result<Points, Error> {
    let raw: usize = chunks.iter().map(|(_, chunk)| chunk.len()).sum();
    if raw <= BLOCKING {
        return Ok(part(chunks, statistic, size, range));
    }
    let threads = available_parallelism().map_or(1, |n| n.get().min(MOST_PARTS));
    let parts = split(range, size, threads as u32);
    let parts = parts.into_iter().map(|range| {
        let chunks = chunks.clone();
        crate::work::elsewhere(move || part(&chunks, statistic, size, &range))
    });
    let parts = try_join_all(parts).await.map_err(|e| {
        let message = format!("points could not be aggregated: {e}");
        Error::new(Kind::Internal, message)
    })?;
    let mut buckets = Points::with_capacity(parts.iter().map(Points::len).sum());
    for part in &parts {
        buckets.extend(part, 0..part.len());
    }
    Ok(buckets)
}

/// Makes [`buckets`] in this thread.
fn part(chunks: &Chunks, statistic: Statistic, size: Step, range: &TimeRange) -> Points {
    let mut points = Points::new();
    for (_, chunk) in chunks.iter() {
        if stop::is_due() {
            break;
        }
        let mut known = chunk.coverage().iter();
        // Chunks of other parts are not unpacked.
        if known.any(|s| s.range.intersection(range).is_some()) {
            let all = chunk.points();
            points.extend(&all, all.within(range));
        }
    }
    aggregate(&points, statistic, size, range)
}

#[cfg(test)]
mod tests {
    use super::super::chunk::Piece;
    use super::*;
    use crate::adapters::Data;

    /// Chunks of raw points, packed ones and one that is not, with gaps.
    fn chunks(n: i64) -> Chunks {
        let lane = crate::engine::tests::lane();
        let cell = lane.cell().millis();
        let range = TimeRange::new(0, n * cell).unwrap();
        let point = |i: i64| (i * cell, (i * 7919 % 1000) as f64 / 7.0);
        let kept = (0..n).filter(|i| i % 97 != 0).map(point);
        let piece = Piece::fetched(
            Data::Points(Points::from_unsorted(kept.collect())),
            range,
            std::time::Duration::ZERO,
            range.end() - 50 * cell,
            Step::MILLI,
        );
        Chunks::beside(&lane, &piece)
    }

    #[tokio::test]
    async fn many_points_make_the_buckets_that_they_make_at_once() {
        let chunks = chunks(5 * BLOCKING as i64);
        for statistic in Statistic::ALL {
            for (size, start, end) in [(7_000, 0, 1_000_000), (333_000, 333_000, 999_000)] {
                let size = Step::new(size).unwrap();
                let range = TimeRange::clamped(start, end).aligned(size);
                let whole = part(&chunks, statistic, size, &range);
                assert!(!whole.is_empty());
                let buckets = buckets(&chunks, statistic, size, &range).await.unwrap();
                assert_eq!(buckets.times(), whole.times());
                let bits = |p: &Points| p.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&buckets), bits(&whole));
            }
        }
    }
}
