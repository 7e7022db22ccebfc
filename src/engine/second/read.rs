//! Reads what a level has: values become pieces, which are merged into the cache in memory.

use std::sync::Arc;
use std::time::Duration;

use super::{Named, READ_INLINE, SLACK, Tier, content, grain, known, pages};
use crate::engine::Engine;
use crate::engine::cache::Chunks;
use crate::engine::chunk::{Piece, Segment};
use crate::engine::lane::Lane;
use crate::model::{Error, RangeSet, Step, TimeRange};
use crate::store::LevelState;
use crate::store::key::{Slot, ValueKey};
use crate::store::page::{self, Block, KnownSpan, ValueId};
use crate::telemetry::metrics;

impl Tier {
    /// The value that `bytes` in `slot` are, whose cell is `cell`, and what of it has been
    /// invalidated since. What cannot be read is counted.
    pub(super) fn value(
        &self,
        named: &Named,
        state: &LevelState,
        (slot, cell): (Slot, Step),
        bytes: &[u8],
    ) -> Option<(Block, RangeSet)> {
        let id = ValueId {
            lane: &named.lane,
            slot,
            cell,
        };
        let latest = state.clock.latest(self.clock.monotonic());
        let value = match page::decode(id, bytes, latest.saturating_add(SLACK)) {
            Ok(value) => value,
            Err(reason) => {
                self.unreadable(reason.label());
                return None;
            }
        };
        let unknown = state.invalidations.unknown(value.stamp, named.upstream);
        if unknown.is_none() {
            self.unreadable("epoch");
        }
        Some((value, unknown?))
    }

    pub(super) fn unreadable(&self, reason: &'static str) {
        metrics::unreadable(self.level.name(), reason);
    }

    /// When `part` was fetched, by the monotonic clock: no later than `lifetime` ago if it may
    /// still change and its age is not known well enough to say that it is fresh.
    pub(super) fn fetched(
        &self,
        state: &LevelState,
        part: &KnownSpan,
        lifetime: Duration,
    ) -> Option<Duration> {
        let now = self.clock.monotonic();
        let fetched = state.clock.fetched(part.fetched)?.min(now);
        match part.settled || state.clock.trusted {
            true => Some(fetched),
            false => Some(fetched.min(now.checked_sub(lifetime)?)),
        }
    }

    /// The piece that the value `bytes` of `slot` of `lane` is.
    pub(super) fn piece(
        &self,
        lane: &Lane,
        named: &Named,
        state: &LevelState,
        slot: Slot,
        bytes: &[u8],
    ) -> Option<Piece> {
        let (value, unknown) = self.value(named, state, (slot, lane.cell()), bytes)?;
        let data = match content::data(lane, value.content, &value.parts) {
            Ok(data) => data,
            Err(reason) => {
                self.unreadable(reason.label());
                return None;
            }
        };
        let segment = |part: &KnownSpan| {
            Some(Segment {
                range: part.range,
                fetched: self.fetched(state, part, lane.freshness().refresh)?,
                settled: part.settled,
            })
        };
        let piece = Piece {
            data,
            segments: value.parts.iter().filter_map(segment).collect(),
        };
        let piece = known(lane, piece, &unknown);
        (!piece.segments.is_empty()).then_some(piece)
    }

    /// Reads `range` of `lane` from the level.
    pub(super) async fn read(self: &Arc<Self>, lane: &Lane, range: &TimeRange) -> Option<Piece> {
        let state = self.level.state()?;
        let named = self.named(lane)?;
        let mut slots: Vec<Slot> = pages(lane, range).map(Slot::Page).collect();
        slots.push(Slot::Tail);
        let key = |slot: &Slot| ValueKey::new(&named.lane, *slot);
        let found = self.level.read(slots.iter().map(key).collect()).await?;
        let bytes = found.into_iter().map(|found| found?.bytes);
        let values: Vec<(Slot, Vec<u8>)> = slots
            .into_iter()
            .zip(bytes)
            .filter_map(|(slot, bytes)| Some((slot, bytes?)))
            .collect();
        let large = values.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > READ_INLINE;
        let (tier, lane) = (self.clone(), lane.clone());
        let read = move || {
            let read =
                |(slot, bytes): &(Slot, Vec<u8>)| tier.piece(&lane, &named, &state, *slot, bytes);
            let pieces = values.iter().filter_map(read);
            pieces.reduce(|all, piece| all.joined(&piece, grain(&lane)))
        };
        match large {
            true => crate::work::elsewhere(read).await.ok()?,
            false => read(),
        }
    }
}

/// Reads `range` of `lane` from the levels into the cache, and returns the chunks that hold it.
pub(super) async fn read(
    engine: Arc<Engine>,
    lane: Lane,
    range: TimeRange,
) -> Result<Option<Chunks>, Error> {
    let Some(second) = &engine.memory.second else {
        return Ok(None);
    };
    let since = engine.memory.generation();
    let Some(piece) = second.gather(&lane, range).await else {
        return Ok(None);
    };
    let large = piece.data.len() * size_of::<f64>() > READ_INLINE;
    let store = move || {
        let store = || engine.memory.cache.store(&lane, &piece);
        engine.memory.if_current(since, store)
    };
    Ok(match large {
        true => crate::work::elsewhere(store).await.ok().flatten(),
        false => store(),
    })
}
