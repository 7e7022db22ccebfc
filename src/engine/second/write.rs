//! Write-behind: fetched data waits here, bounded in bytes, and is joined with what a level has. No
//! request ever waits for a write.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;

use super::queue::{Batch, LaneWrite, weight};
use super::{Named, Tier, grain, known, line_span, page_span, pages, value};
use crate::adapters::Data;
use crate::engine::chunk::Piece;
use crate::engine::lane::Lane;
use crate::model::{RangeSet, TimeRange};
use crate::store::key::{Slot, ValueKey};
use crate::store::page::{self, Stamp, ValueId};
use crate::store::{Found, LevelState, Mark, Put};
use crate::wire::prometheus::Series;

/// Most values, and bytes, of one call.
const CALL_VALUES: usize = 64;
const CALL_BYTES: usize = 512 << 10;

/// Most pages that one piece is written to.
const MOST_PAGES: usize = 256;

/// Most bytes of a value.
pub(super) const MOST_VALUE: usize = 1 << 20;

/// The most attempts at a lane whose values others write at the same time.
pub(super) const ATTEMPTS: u32 = 3;

/// Starts to write what is queued for `tier`, until that is dropped.
pub(super) fn start(tier: &Arc<Tier>) {
    let (weak, queue) = (Arc::downgrade(tier), tier.queue.clone());
    tokio::spawn(async move {
        loop {
            queue.wake.notified().await;
            loop {
                let Some(tier) = weak.upgrade() else { return };
                let batch = queue.take();
                if batch.lanes.is_empty() && batch.answers.is_empty() {
                    break;
                }
                tier.write(batch).await;
            }
        }
    });
}

/// A lane that is being written.
struct Job {
    write: LaneWrite,
    named: Named,
    /// All that is to be written of it.
    piece: Piece,
    /// The contents of the level in the slots that were looked up.
    has: BTreeMap<Slot, Has>,
    /// The contents that they are to have.
    wants: Vec<(Slot, Piece)>,
    failed: Option<&'static str>,
}

/// The contents of a slot of a level.
struct Has {
    mark: Option<Mark>,
    piece: Option<Piece>,
}

impl Tier {
    /// Queues `piece` of `lane`, which takes into account what was invalidated up to `stamp`.
    pub(super) fn put(&self, lane: &Lane, piece: &Arc<Piece>, stamp: Stamp) {
        let write = LaneWrite {
            lane: lane.clone(),
            bytes: weight(piece) + lane.key.heap_bytes(),
            pieces: vec![(piece.clone(), stamp)],
            attempts: 0,
        };
        if !self.queue.add(write) {
            self.level.metrics().dropped("queue", 1);
        }
    }

    async fn write(self: &Arc<Self>, batch: Batch) {
        let Some(state) = self.level.state() else {
            let pieces: usize = batch.lanes.iter().map(|w| w.pieces.len()).sum();
            let dropped = pieces + batch.answers.len();
            self.level.metrics().dropped("resting", dropped as u64);
            return;
        };
        self.write_whole(batch.answers, &state).await;
        self.write_lanes(batch.lanes, state).await;
    }

    async fn write_lanes(self: &Arc<Self>, lanes: Vec<LaneWrite>, state: LevelState) {
        let jobs = lanes
            .into_iter()
            .filter_map(|write| self.job(write, &state));
        let mut jobs: Vec<Job> = jobs.collect();
        // Data that leaves a tail goes to pages, which takes a second round.
        for _ in 0..2 {
            self.look(&mut jobs, &state).await;
            let tier = self.clone();
            let planned = crate::work::elsewhere(move || {
                for job in &mut jobs {
                    job.plan();
                }
                // Dropping the last handle takes its time, so it happens on this thread.
                drop(tier);
                jobs
            });
            let Ok(planned) = planned.await else { return };
            jobs = planned;
        }
        for tails in [false, true] {
            self.write_slots(&mut jobs, &state, tails).await;
        }
        for mut job in jobs {
            match job.failed {
                None => {}
                Some("conflict") if job.write.attempts + 1 < ATTEMPTS => {
                    job.write.attempts += 1;
                    if !self.queue.add(job.write) {
                        self.level.metrics().dropped("queue", 1);
                    }
                }
                Some(reason) => {
                    let pieces = job.write.pieces.len() as u64;
                    self.level.metrics().dropped(reason, pieces);
                }
            }
        }
    }

    /// Returns what is to be written of a lane; `None` if nothing is.
    fn job(&self, write: LaneWrite, state: &LevelState) -> Option<Job> {
        let named = self.named(&write.lane)?;
        let mut all: Option<Piece> = None;
        for (piece, stamp) in &write.pieces {
            let unknown = state.invalidations.unknown(*stamp, named.upstream)?;
            let piece = known(&write.lane, Piece::clone(piece), &unknown);
            all = Some(match all {
                None => piece,
                Some(all) => all.joined(&piece, grain(&write.lane)),
            });
        }
        let piece = all.filter(|piece| !piece.segments.is_empty())?;
        let mut job = Job {
            write,
            named,
            piece,
            has: BTreeMap::new(),
            wants: Vec::new(),
            failed: None,
        };
        job.plan();
        Some(job)
    }

    /// Reads what the level has in the slots that are to be written.
    async fn look(&self, jobs: &mut [Job], state: &LevelState) {
        let mut keys = Vec::new();
        for (at, job) in jobs.iter().enumerate() {
            let slots = job.wants.iter().map(|(slot, _)| *slot);
            let unseen = slots.filter(|slot| !job.has.contains_key(slot));
            keys.extend(unseen.map(|slot| (at, slot, ValueKey::new(&job.named.lane, slot))));
        }
        // Parts fail by themselves.
        let part = |(_, _, key): &(usize, Slot, ValueKey)| self.level.part(key);
        keys.sort_by_key(part);
        let calls = keys.chunk_by(|a, b| part(a) == part(b));
        let calls = calls.flat_map(|keys| keys.chunks(CALL_VALUES));
        let looks = calls.map(async |keys| {
            let wanted = keys.iter().map(|(_, _, key)| *key).collect();
            (keys, self.level.look(wanted).await)
        });
        for (keys, found) in join_all(looks).await {
            let failed = found.is_none();
            let found = found.unwrap_or_default().into_iter();
            let found = found.chain(std::iter::repeat(None));
            for ((at, slot, _), found) in keys.iter().zip(found) {
                let Some(job) = jobs.get_mut(*at) else {
                    continue;
                };
                if failed {
                    job.failed = Some("resting");
                }
                let has = self.has(job, state, *slot, found);
                job.has.insert(*slot, has);
            }
        }
    }

    fn has(&self, job: &Job, state: &LevelState, slot: Slot, found: Option<Found>) -> Has {
        let Some(Found { mark, bytes }) = found else {
            return Has {
                mark: None,
                piece: None,
            };
        };
        let piece = bytes.and_then(|bytes| {
            let lane = &job.write.lane;
            self.piece(lane, &job.named, state, slot, &bytes)
        });
        Has {
            mark: Some(mark),
            piece,
        }
    }

    /// Writes the tails, or the pages, of all `jobs` that have not failed.
    async fn write_slots(self: &Arc<Self>, jobs: &mut [Job], state: &LevelState, tails: bool) {
        let stamp = state.invalidations.stamp();
        let mut puts = Vec::new();
        for (at, job) in jobs.iter_mut().enumerate() {
            let wants = std::mem::take(&mut job.wants);
            let (now, later) = wants
                .into_iter()
                .partition(|(slot, _)| tails == (*slot == Slot::Tail));
            job.wants = later;
            if job.failed.is_some() {
                continue;
            }
            let (lane, name) = (job.write.lane.clone(), job.named.lane);
            let (cell, clock) = (lane.cell(), state.clock);
            let ttl = lane.upstream.freshness.history_ttl;
            let encode = move || {
                let now: Vec<(Slot, Piece)> = now;
                let encoded = now.into_iter().map(|(slot, piece)| {
                    let id = ValueId {
                        lane: &name,
                        slot,
                        cell,
                    };
                    (slot, page::encode(id, &value(&piece, stamp, &clock)?))
                        .1
                        .map(|bytes| (slot, bytes))
                });
                encoded.collect::<Option<Vec<_>>>()
            };
            let Ok(encoded) = crate::work::elsewhere(encode).await else {
                continue;
            };
            let Some(encoded) = encoded else {
                job.failed = Some("size");
                continue;
            };
            for (slot, bytes) in encoded {
                if bytes.len() > MOST_VALUE {
                    job.failed = Some("size");
                    continue;
                }
                let put = Put {
                    key: ValueKey::new(&name, slot),
                    replaces: job.has.get(&slot).and_then(|has| has.mark),
                    bytes,
                    ttl,
                };
                puts.push((at, put));
            }
        }
        // Parts fail by themselves.
        let mut parts: BTreeMap<usize, Vec<(usize, Put)>> = BTreeMap::new();
        for (at, put) in puts {
            let part = parts.entry(self.level.part(&put.key)).or_default();
            part.push((at, put));
        }
        let written = parts.into_values().map(|puts| self.write_part(puts));
        for (at, outcome) in join_all(written).await.into_iter().flatten() {
            if let Some(job) = jobs.get_mut(at) {
                job.failed = job.failed.or(outcome);
            }
        }
    }

    /// Writes `puts` to one part, call by call, and says of each why it failed, if it did.
    async fn write_part(&self, puts: Vec<(usize, Put)>) -> Vec<(usize, Option<&'static str>)> {
        let mut outcomes = Vec::with_capacity(puts.len());
        let mut puts = puts.into_iter().peekable();
        while puts.peek().is_some() {
            let (mut call, mut of, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some((at, put)) = puts.next_if(|(_, put)| {
                call.is_empty()
                    || (call.len() < CALL_VALUES && bytes + put.bytes.len() <= CALL_BYTES)
            }) {
                bytes += put.bytes.len();
                of.push(at);
                call.push(put);
            }
            let written = self.level.write(call).await;
            for (i, at) in of.into_iter().enumerate() {
                let outcome = match &written {
                    None => Some("resting"),
                    Some(written) if written.get(i) == Some(&true) => None,
                    Some(_) => Some("conflict"),
                };
                outcomes.push((at, outcome));
            }
        }
        outcomes
    }
}

impl Job {
    /// Decides on the contents of the slots, given what is known of their present contents.
    fn plan(&mut self) {
        let lane = &self.write.lane;
        let mut all = self.piece.clone();
        let mut wants: BTreeMap<Slot, Piece> = BTreeMap::new();
        let mut end = None;
        if self.piece.segments.iter().any(|s| !s.settled) {
            if let Some(Has {
                piece: Some(tail), ..
            }) = self.has.get(&Slot::Tail)
            {
                all = tail.joined(&all, grain(lane));
            }
            let line = line_span(lane).floor(newest_open(&all).start());
            let rest = RangeSet::from(TimeRange::clamped(line, i64::MAX));
            let open = newest_open(&all);
            let tail = all.within(&rest, |s| s.settled || s.range.start() >= open.start());
            wants.insert(Slot::Tail, tail);
            end = Some(line);
        }
        let settled = all.segments.iter().filter(|s| s.settled).map(|s| s.range);
        let settled = settled.filter_map(|range| match end {
            None => Some(range),
            Some(line) => range.intersection(&TimeRange::clamped(range.start().min(line), line)),
        });
        let settled: RangeSet = settled.collect();
        for page in settled.iter().flat_map(|range| pages(lane, range)) {
            let slot = Slot::Page(page);
            if wants.len() > MOST_PAGES {
                self.failed = Some("size");
                break;
            }
            if wants.contains_key(&slot) {
                continue;
            }
            let span = RangeSet::from(page_span(lane).cell(page));
            let new = all.within(&span, |s| s.settled);
            let old = self.has.get(&slot).and_then(|has| has.piece.as_ref());
            let Some(old) = old else {
                wants.insert(slot, new);
                continue;
            };
            let known: RangeSet = old.segments.iter().map(|s| s.range).collect();
            let ranges: RangeSet = new.segments.iter().map(|s| s.range).collect();
            let unknown = ranges.iter().any(|range| !known.covers(range));
            // Points that came late are found in what was settled before.
            if unknown || !same(&old.within(&ranges, |_| true).data, &new.data) {
                wants.insert(slot, old.joined(&new, grain(lane)));
            }
        }
        self.wants = wants.into_iter().collect();
    }
}

/// Returns whether both hold the same points, or the same samples of the same series.
fn same(one: &Data, other: &Data) -> bool {
    let filled = |s: &&Series| s.values.len() + s.histograms.len() > 0;
    match (one, other) {
        (Data::Points(one), Data::Points(other)) => one == other,
        (Data::Matrix(one), Data::Matrix(other)) => {
            let one = one.series.iter().filter(filled);
            one.eq(other.series.iter().filter(filled))
        }
        _ => false,
    }
}

/// Returns the last sub-range of `piece` that may still change: open data before it has not been
/// requested since, and is not worth keeping.
fn newest_open(piece: &Piece) -> TimeRange {
    let mut newest = TimeRange::clamped(0, 0);
    for segment in piece.segments.iter().filter(|s| !s.settled) {
        newest = match newest.end() == segment.range.start() && !newest.is_empty() {
            true => newest.hull(&segment.range),
            false => segment.range,
        };
    }
    newest
}
