//! The second level: asked before an upstream, and told what the upstream returned.
//!
//! A lane is stored as pages, which hold the settled data of a fixed span, and a tail, which holds
//! the data after the last line: what has settled since, and what may still change. A hit never
//! comes here. Data from a level is merged into the cache and planned like anything else in it, so
//! ages are judged in one place.

mod content;
mod invalidate;
mod levels;
pub(super) mod once;
pub(super) mod peek;
mod queue;
mod read;
mod wait;
mod whole;
mod write;

pub use levels::LevelReport;
pub use wait::LevelWait;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::cache::Chunks;
use super::chunk::{Piece, Segment};
use super::lane::{Lane, LaneKey, Subject};
use super::whole::WholeKey;
use super::{Engine, RequestContext};
use crate::clock::Clock;
use crate::model::{Millis, RangeSet, Step, TimeRange};
use crate::store::key::{Canonical, LaneName, UpstreamName};
use crate::store::page::{self, Stamp};
use crate::store::{CacheLevel, Guarded, LevelClock, LevelState};
use crate::telemetry::metrics;
use crate::upstream::Flights;

/// Cells of a page; an eighth of a chunk.
const PAGE_CELLS: u32 = if cfg!(test) { 32 } else { 1024 };

/// The same of the series of an expression; a quarter of their chunk.
const MATRIX_CELLS: u32 = if cfg!(test) { 16 } else { 128 };

/// Lines in a page. A tail begins at one, so a page is written again so many times.
const LINES: u32 = 8;

/// Most pages in which one range is looked up.
const MOST_PAGES: u64 = 256;

/// Values of more bytes are read off the threads that serve connections.
const READ_INLINE: usize = 8 << 10;

/// The tolerance for a fetch that seems to lie in the future: clocks of one machine are read one
/// after the other.
const SLACK: Millis = 1000;

/// The levels beyond the cache in memory.
pub(super) struct SecondLevel {
    tiers: Vec<Arc<Tier>>,
    reading: Flights<LaneKey, Option<Chunks>>,
    reading_whole: Flights<WholeKey, ()>,
    /// Held during an invalidation.
    pub(super) invalidating: tokio::sync::Mutex<()>,
}

/// One of the levels, and its queue of writes.
pub(super) struct Tier {
    level: Guarded,
    /// Most time of a read.
    deadline: Duration,
    clock: Arc<dyn Clock>,
    queue: Arc<queue::WriteQueue>,
    /// The invalidations that the cache in memory takes into account.
    applied: Mutex<Option<Stamp>>,
}

impl Drop for Tier {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// A level, and the longest that a request waits for it.
pub struct LevelSetup {
    /// The level.
    pub level: Arc<dyn CacheLevel>,
    /// Most time of a read.
    pub deadline: Duration,
}

impl SecondLevel {
    /// Returns `levels` in the order in which they are asked. Within a runtime.
    pub(super) fn new(levels: Vec<LevelSetup>, clock: &Arc<dyn Clock>) -> Self {
        let has_own = levels.iter().any(|setup| !setup.level.is_shared());
        let tier = |setup: LevelSetup| {
            let level = Guarded::new(setup.level, setup.deadline);
            // The cache is empty, so it takes all of them into account; what is on disk may not.
            let behind = has_own && level.is_shared();
            let applied = level.state().filter(|_| !behind);
            let applied = applied.map(|state| state.invalidations.stamp());
            if let Some(applied) = applied {
                level.applied(applied);
            }
            let tier = Arc::new(Tier {
                level,
                deadline: setup.deadline,
                clock: clock.clone(),
                queue: Arc::default(),
                applied: Mutex::new(applied),
            });
            write::start(&tier);
            tier
        };
        Self {
            tiers: levels.into_iter().map(tier).collect(),
            reading: Flights::default(),
            reading_whole: Flights::default(),
            invalidating: tokio::sync::Mutex::default(),
        }
    }

    /// Queues what was fetched of `lane`, to be written to each level. Called while nothing can be
    /// invalidated in memory.
    pub(super) fn put(&self, lane: &Lane, piece: &Arc<Piece>) {
        if lane.upstream.stored_as.is_none() {
            return;
        }
        for tier in &self.tiers {
            match tier.applied() {
                Some(stamp) => tier.put(lane, piece, stamp),
                // The invalidations that it takes into account are not known before the first
                // heartbeat.
                None => tier.level.metrics().dropped("resting", 1),
            }
        }
    }

    /// Waits until everything queued has been written, or could not be.
    pub(super) async fn drained(&self) {
        for tier in &self.tiers {
            tier.queue.drained().await;
        }
    }

    /// Sets the gauges; called when they are read.
    pub(super) fn observe(&self) {
        for tier in &self.tiers {
            tier.level.observe();
            tier.level.metrics().queue.set(tier.queue.bytes() as f64);
            if tier.level.is_shared() {
                let state = tier.level.state();
                let live = |state: &LevelState| state.replicas.iter().filter(|r| r.live).count();
                let error = state.as_ref().map(|state| state.clock.error);
                let error = error.and_then(|e| Some(Duration::from_millis(e.try_into().ok()?)));
                metrics::shared_level(state.as_ref().map_or(0, live), error);
            }
        }
    }
}

impl Engine {
    /// Adds what the second level knows of `missing` to `chunks`. Returns whether that was
    /// anything.
    pub(super) async fn ask_second_level(
        self: &Arc<Self>,
        lane: &Lane,
        chunks: &mut Chunks,
        missing: &[TimeRange],
        context: &RequestContext,
    ) -> bool {
        let Some(second) = &self.memory.second else {
            return false;
        };
        // The request that fetches it has asked already.
        let fetching = self.memory.flights.under_way(&lane.key);
        if lane.upstream.stored_as.is_none() || missing.iter().all(|m| fetching.covers(m)) {
            return false;
        }
        let mut wanted = missing.to_vec();
        if !second.tiers.iter().any(|tier| tier.level.is_shared()) {
            // Nobody else writes to it, so it has nothing newer than the newest that is known here.
            let open = chunks.segments().filter(|s| !s.settled).last();
            let end = open.map_or(Millis::MAX, |open| open.range.start());
            wanted = wanted
                .iter()
                .map(|m| TimeRange::clamped(m.start(), m.end().min(end)))
                .filter(|m| !m.is_empty())
                .collect();
        }
        let pages = |range: &TimeRange| page_span(lane).cells_in(range);
        if wanted.is_empty() || wanted.iter().map(pages).sum::<u64>() > MOST_PAGES {
            return false;
        }
        let Some(wait) = second.wait(context) else {
            return false;
        };
        let span = context.span("second level");
        let trace = context.within(&span).call.trace;
        let joined = second.reading.join_or_start(
            &lane.key,
            &wanted,
            &TimeRange::ALL,
            &trace,
            |range, _| read::read(self.clone(), lane.clone(), range),
        );
        let mut found = false;
        for flight in &joined.flights {
            let read = tokio::time::timeout_at(wait.until, flight.outcome()).await;
            if let Ok(Ok(Some(read))) = read {
                chunks.update(lane, &read);
                found = true;
            }
        }
        wait.end(found);
        found
    }

    /// Waits until everything fetched has been written to the second level, or could not be.
    pub async fn flush(&self) {
        if let Some(second) = &self.memory.second {
            second.drained().await;
        }
    }
}

/// Returns the time that a page of `lane` spans.
fn page_span(lane: &Lane) -> Step {
    lane.cell().times(page_cells(lane))
}

fn page_cells(lane: &Lane) -> u32 {
    match lane.subject() {
        Subject::Metric { .. } | Subject::Summaries { .. } => PAGE_CELLS,
        Subject::Expression(_) => MATRIX_CELLS,
    }
}

/// Returns the distance between lines.
fn line_span(lane: &Lane) -> Step {
    lane.cell().times(page_cells(lane) / LINES)
}

/// Returns the pages of `lane` that meet `range`.
fn pages(lane: &Lane, range: &TimeRange) -> impl Iterator<Item = i64> + use<> {
    let span = page_span(lane);
    let first = span.index(range.start());
    let count = i64::try_from(span.cells_in(range)).unwrap_or(0);
    first..first.saturating_add(count)
}

/// The names of a lane and its upstream in a level.
struct Named {
    lane: LaneName,
    upstream: UpstreamName,
}

impl Named {
    fn new(tier: &Tier, upstream: &[u8], form: &Canonical) -> Self {
        let names = tier.level.names();
        Self {
            lane: names.lane(upstream, form),
            upstream: names.upstream(upstream),
        }
    }
}

impl Tier {
    fn applied(&self) -> Option<Stamp> {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the cache in memory takes the invalidations up to `stamp` into account.
    fn apply(&self, stamp: Stamp) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = Some(stamp);
        self.level.applied(stamp);
    }

    /// Returns the names of `lane`; `None` if it is stored in no second level.
    fn named(&self, lane: &Lane) -> Option<Named> {
        let upstream = lane.upstream.stored_as(lane.key.upstream())?;
        Some(Named::new(self, &upstream, &lane.canonical()))
    }
}

/// Returns `piece` without the ranges that are `unknown`, extended to whole buckets.
fn known(lane: &Lane, piece: Piece, unknown: &RangeSet) -> Piece {
    let Some(hull) = piece.hull().filter(|_| !unknown.is_empty()) else {
        return piece;
    };
    let gone: RangeSet = unknown
        .iter()
        .filter_map(|range| range.intersection(&hull))
        .map(|range| range.aligned(lane.grid()))
        .collect();
    piece.within(&gone.missing_from(hull), |_| true)
}

/// Returns the largest difference between the ages of settled neighbours that are joined into one
/// segment.
fn grain(lane: &Lane) -> Duration {
    lane.frame(0).grain
}

/// Returns `piece` as a value, in the time of a level.
fn value(piece: &Piece, stamp: Stamp, clock: &LevelClock) -> Option<page::Block> {
    let part = |segment: &Segment| page::KnownSpan {
        range: segment.range,
        fetched: clock.stamp(segment.fetched),
        settled: segment.settled,
    };
    Some(page::Block {
        stamp,
        parts: piece.segments.iter().map(part).collect(),
        content: content::content(piece)?,
    })
}

#[cfg(test)]
mod tests;
