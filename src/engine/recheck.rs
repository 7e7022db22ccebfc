//! A second look at data that has just settled: points that came later than `settle` are found,
//! counted and cached.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use tokio::time::Instant;
use tracing::debug;

use super::cache::Chunks;
use super::fetch::Source;
use super::lane::{Lane, LaneKey};
use super::parts::fetch_one;
use super::{Engine, RequestContext};
use crate::model::{Millis, RangeSet, TimeRange};
use crate::telemetry::trace::Trace;
use crate::upstream::CallContext;

/// Most lanes for which the progress is remembered.
const MOST: u64 = 20_000;

/// A part of `recheck`: the delay after settling until data is looked at again, and the span of each look.
const PART: Millis = 10;

/// The longest that a second look may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The second looks at each lane, by its number: the key of a lane can be large. Two lanes of one number
/// share their looks.
pub(super) struct Rechecked(Cache<u64, Arc<Looks>>);

/// The second looks at a lane.
struct Looks {
    /// The time up to which it has been looked at again.
    up_to: AtomicI64,
    /// The number of looks that found late points.
    found: AtomicU64,
}

impl Rechecked {
    /// Returns the looks at `lane`; if there was none, it counts as looked at `up_to` then.
    fn looks(&self, lane: &Lane, up_to: Millis) -> Arc<Looks> {
        let new = || {
            Arc::new(Looks {
                up_to: AtomicI64::new(up_to),
                found: AtomicU64::new(0),
            })
        };
        self.0.get_with(lane.key.number(), new)
    }

    /// Returns the number of looks at `lane` that found late points.
    pub(super) fn found(&self, lane: &Lane) -> u64 {
        let looks = self.0.get(&lane.key.number());
        looks.map_or(0, |looks| looks.found.load(Ordering::SeqCst))
    }
}

impl Default for Rechecked {
    fn default() -> Self {
        Self(Cache::new(MOST))
    }
}

impl Engine {
    /// Fetches data of `lane` that settled within the last `recheck` once more in the background, a
    /// tenth of that after it settled. `range` is the requested range, whose points come from
    /// `source`.
    pub(super) fn look_again(
        self: &Arc<Self>,
        lane: &Lane,
        range: &TimeRange,
        source: Source,
        context: &RequestContext,
    ) {
        let freshness = lane.freshness();
        let recheck = Millis::try_from(freshness.recheck.as_millis()).unwrap_or(0);
        let settled = context.wall.saturating_sub(freshness.settle);
        // A request for old data has no use for points that come late.
        if recheck == 0 || range.end() <= settled.saturating_sub(recheck) {
            return;
        }
        let raw = match source {
            Source::Upstream => Some(lane.clone()),
            Source::RawPoints => lane.raw(),
            Source::Summaries => None,
        };
        let Some(lane) = raw else {
            return;
        };
        let pause = recheck / PART;
        let start = settled.saturating_sub(recheck);
        let to = lane.grid().floor(settled.saturating_sub(pause));
        // Data that settled long before it was first requested was fetched late enough.
        let looks = self.memory.rechecked.looks(&lane, to);
        let done = &looks.up_to;
        let from = done.load(Ordering::Relaxed);
        let range = TimeRange::clamped(from.max(start), to.max(start)).aligned(lane.grid());
        if to.saturating_sub(from) < pause || !lane.upstream.client.has_spare() {
            return;
        }
        // Only one task looks at it.
        let mine = done.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        if mine.is_err() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move { engine.recheck(&lane, range).await });
    }

    pub(super) async fn recheck(self: &Arc<Self>, lane: &Lane, range: TimeRange) {
        let before = self.memory.cache.look_up(lane, &range);
        let settled = before.segments().filter(|segment| segment.settled);
        let settled: RangeSet = settled
            .filter_map(|segment| segment.range.intersection(&range))
            .collect();
        let Some(hull) = settled.iter().copied().reduce(|a, b| a.hull(&b)) else {
            return;
        };
        let now = self.clock.monotonic();
        let deadline = Instant::now() + PATIENCE;
        let context = RequestContext {
            arrived: now,
            wall: self.clock.now(),
            deadline,
            call: CallContext::new(None, deadline, Trace::default()),
            encoding: crate::wire::encoding::Encoding::Identity,
            max_age: None,
            level_wait: None,
        };
        let trace = Trace::default();
        let flights = &self.memory.flights;
        let joined = flights.join_or_start(&lane.key, &[hull], &hull, &trace, |range, waiters| {
            let mut context = context.clone();
            context.call.waiters = waiters;
            fetch_one(self.clone(), lane.clone(), range, context)
        });
        for flight in &joined.flights {
            let outcome = tokio::time::timeout_at(deadline, flight.outcome()).await;
            if !matches!(outcome, Ok(Ok(_))) {
                debug!(upstream = lane.upstream.name(), "a second look failed");
                return;
            }
        }
        let after = self.memory.cache.look_up(lane, &range);
        let late = points(&after, &settled).saturating_sub(points(&before, &settled));
        if late == 0 {
            return;
        }
        lane.upstream.metrics.late_points(late as u64);
        // Buckets that are being made of fewer points are dropped once they are there, see `derive`.
        let looks = self.memory.rechecked.looks(lane, range.end());
        looks.found.fetch_add(1, Ordering::SeqCst);
        self.drop_made_of(lane, hull).await;
    }

    /// Drops the buckets that are made of the raw points of `lane` in `range`, to be made again of all
    /// points there are now.
    pub(super) async fn drop_made_of(self: &Arc<Self>, lane: &Lane, range: TimeRange) {
        let (engine, lane) = (self.clone(), lane.clone());
        let drop_made = move || {
            let made = |of: &LaneKey| of.is_made_of(&lane.key);
            let cache = &engine.memory.cache;
            cache.invalidate_range(&lane.upstream, &range, made);
        };
        let _ = tokio::task::spawn_blocking(drop_made).await;
    }
}

/// Returns the number of points or samples that `chunks` have in `ranges`.
fn points(chunks: &Chunks, ranges: &RangeSet) -> usize {
    let within = |range: &TimeRange| -> usize {
        let points: usize = chunks
            .iter()
            .map(|(_, chunk)| chunk.within(range).len())
            .sum();
        let series = chunks.iter().filter_map(|(_, chunk)| chunk.matrix());
        let tracks = series.flat_map(|m| &m.series);
        let tracks = tracks.flat_map(|s| [&s.values, &s.histograms]);
        points + tracks.map(|track| track.within(range).len()).sum::<usize>()
    };
    ranges.iter().map(within).sum()
}
