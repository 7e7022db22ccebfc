//! The cache of chunks, bounded by the bytes they hold.

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::sync::Cache;
use smallvec::SmallVec;

use super::chunk::{Chunk, Piece, Segment};
use super::lane::{Lane, LaneKey};
use crate::model::TimeRange;
use crate::telemetry::cache_metrics::CacheMetrics;
use crate::upstream::Upstream;

/// Bytes of an entry besides those of key and value: moka's bookkeeping, and what the allocator
/// adds to each block (`cargo bench --bench memory`).
const ENTRY_OVERHEAD: usize = 410;

#[derive(Clone, PartialEq, Eq)]
struct ChunkKey {
    lane: LaneKey,
    index: i64,
}

impl Hash for ChunkKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The lane's number is a keyed hash already; this spreads the chunks of a lane
        // (the multiplier is that of Knuth's multiplicative hashing for 64 bits).
        let spread = (self.index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.lane.number() ^ spread).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state.write_u64(mixed ^ (mixed >> 32));
    }
}

/// Returns the weight of an entry, in bytes.
fn weigh(key: &ChunkKey, chunk: &Arc<Chunk>) -> u32 {
    let bytes = chunk.weight() + key.lane.heap_bytes() + ENTRY_OVERHEAD;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A hasher that passes on a number that is a hash already.
#[derive(Clone, Copy, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}

type Hashing = BuildHasherDefault<AsItIs>;

/// Frees what a cache has dropped on this thread. moka leaves that to the epochs of crossbeam, where it
/// would stay until some dozens of entries have followed, and an entry may be of thirty megabytes. Two
/// epochs have to pass, and one does at a flush unless another thread is in the midst of a look-up.
pub(super) fn free_dropped() {
    for _ in 0..4 {
        crossbeam_epoch::pin().flush();
    }
}

/// Returns a listener that counts what is evicted because its cache is full.
pub(super) fn count_evictions<K, V>() -> impl Fn(Arc<K>, V, RemovalCause) + Send + Sync + 'static {
    let evictions = CacheMetrics::default().evictions;
    move |_, _, cause| {
        if cause == RemovalCause::Size {
            evictions.increment(1);
        }
    }
}

/// The bytes of dropped chunks that are freed together: each refresh of a tail drops one, and to free it by
/// itself is work for all threads.
const FREED_TOGETHER: u64 = 1 << 20;

/// Chunks of all lanes.
pub struct ChunkCache {
    chunks: Cache<ChunkKey, Arc<Chunk>, Hashing>,
    /// The weight of what has been dropped since it was last freed.
    dropped: Arc<AtomicU64>,
    metrics: CacheMetrics,
}

impl ChunkCache {
    /// Returns a cache for chunks of at most `bytes` in all.
    pub fn new(bytes: u64) -> Self {
        let metrics = CacheMetrics::default();
        let dropped = Arc::new(AtomicU64::new(0));
        let (weight, count) = (dropped.clone(), count_evictions());
        let chunks = Cache::builder()
            .max_capacity(bytes)
            .weigher(weigh)
            .eviction_listener(move |key: Arc<ChunkKey>, chunk, cause| {
                weight.fetch_add(u64::from(weigh(&key, &chunk)), Ordering::Relaxed);
                count(key, chunk, cause);
            })
            .build_with_hasher(Hashing::default());
        Self {
            chunks,
            dropped,
            metrics,
        }
    }

    /// Returns the cached chunks of `lane` that meet `range`.
    pub fn look_up(&self, lane: &Lane, range: &TimeRange) -> Chunks {
        let mut found = Chunks::new(lane, range);
        for (index, place) in found.indices().zip(&mut found.chunks) {
            let key = ChunkKey {
                lane: lane.key.clone(),
                index,
            };
            *place = self.chunks.get(&key);
        }
        found
    }

    /// Adds `piece` to the chunks of `lane`, and returns these. Of two pieces that come at once
    /// none is lost: each chunk has one owner while it changes.
    pub fn store(&self, lane: &Lane, piece: &Piece) -> Chunks {
        let mut stored = Chunks::new(lane, &piece.hull().unwrap_or(TimeRange::clamped(0, 0)));
        for (index, place) in stored.indices().zip(&mut stored.chunks) {
            let key = ChunkKey {
                lane: lane.key.clone(),
                index,
            };
            let merge = |old: Option<moka::Entry<ChunkKey, Arc<Chunk>>>| {
                let old = old.map(moka::Entry::into_value);
                let merged = Chunk::merged(old.as_deref(), piece, &lane.frame(index));
                Op::Put(Arc::new(merged))
            };
            *place = self
                .chunks
                .entry(key)
                .and_compute_with(merge)
                .into_entry()
                .map(moka::Entry::into_value);
        }
        self.make_room();
        stored
    }

    /// Evicts what is over the bound now. moka by itself does that some hundred writes later,
    /// which may be a hundred chunks of half a megabyte.
    fn make_room(&self) {
        self.chunks.run_pending_tasks();
        if self.dropped.load(Ordering::Relaxed) >= FREED_TOGETHER {
            self.free();
        }
    }

    fn free(&self) {
        self.dropped.store(0, Ordering::Relaxed);
        free_dropped();
    }

    /// Evicts what is over the bound, and frees all that has been dropped.
    pub(super) fn tidy(&self) {
        self.chunks.run_pending_tasks();
        self.free();
    }

    /// Weighs `chunk` again, which has been rendered since it was stored, unless another has
    /// taken its place.
    pub(crate) fn weigh_again(&self, lane: &Lane, index: i64, chunk: &Arc<Chunk>) {
        let key = ChunkKey {
            lane: lane.key.clone(),
            index,
        };
        self.chunks.entry(key).and_compute_with(|held| match held {
            Some(held) if Arc::ptr_eq(held.value(), chunk) => Op::Put(chunk.clone()),
            _ => Op::Nop,
        });
        self.make_room();
    }

    /// Returns the weight of the chunks, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        self.chunks.weighted_size()
    }

    /// Sets the gauges, called when they are read; `others` is the weight of what is cached besides
    /// chunks.
    pub(crate) fn observe(&self, others: u64) {
        self.chunks.run_pending_tasks();
        let bytes = self.chunks.weighted_size() + others;
        self.metrics.bytes.set(bytes as f64);
        self.metrics.chunks.set(self.chunks.entry_count() as f64);
    }

    /// Drops the chunks of the lanes that `which` picks. Returns their number.
    pub(crate) fn invalidate(&self, which: impl Fn(&LaneKey) -> bool) -> usize {
        let keys = self.keys(which);
        for key in &keys {
            self.chunks.invalidate(&**key);
        }
        self.tidy();
        keys.len()
    }

    /// Drops what is known in `range`, extended to whole buckets, of the lanes of `upstream` that
    /// `which` picks. Returns the number of chunks that changed.
    pub(crate) fn invalidate_range(
        &self,
        upstream: &Arc<Upstream>,
        range: &TimeRange,
        which: impl Fn(&LaneKey) -> bool,
    ) -> usize {
        let mut changed = 0;
        for key in self.keys(which) {
            let lane = Lane::with_key(upstream.clone(), key.lane.clone());
            let frame = lane.frame(key.index);
            let gone = range.aligned(lane.grid());
            if gone.intersection(&frame.span).is_none() {
                continue;
            }
            changed += 1;
            self.chunks
                .entry_by_ref(&*key)
                .and_compute_with(|held| match held {
                    None => Op::Nop,
                    Some(held) => match held.value().without(&gone, &frame) {
                        Some(rest) => Op::Put(Arc::new(rest)),
                        None => Op::Remove,
                    },
                });
        }
        self.tidy();
        changed
    }

    /// Returns the number of chunks of the lanes that `which` picks.
    pub(crate) fn count(&self, which: impl Fn(&LaneKey) -> bool) -> usize {
        self.chunks
            .iter()
            .filter(|(key, _)| which(&key.lane))
            .count()
    }

    fn keys(&self, which: impl Fn(&LaneKey) -> bool) -> Vec<Arc<ChunkKey>> {
        let keys = self.chunks.iter().map(|(key, _)| key);
        keys.filter(|key| which(&key.lane)).collect()
    }

    /// Calls `see` with each chunk's lane, its weight in bytes, and the number of answers made of
    /// it.
    pub(crate) fn each(&self, mut see: impl FnMut(&LaneKey, u64, u64)) {
        for (key, chunk) in &self.chunks {
            see(&key.lane, u64::from(weigh(&key, &chunk)), chunk.answered());
        }
    }

    /// Drops everything.
    #[cfg(test)]
    pub(crate) fn clear(&self) {
        self.chunks.invalidate_all();
    }

    /// Drops the chunks whose number `which` picks.
    #[cfg(test)]
    pub(crate) fn evict(&self, which: impl Fn(i64) -> bool) {
        for key in self.keys(|_| true) {
            if which(key.index) {
                self.chunks.invalidate(&*key);
            }
        }
    }
}

/// Neighbouring chunks of a lane, some of which may be absent. They do not change with the cache.
#[derive(Clone)]
pub struct Chunks {
    first: i64,
    /// As a rule a few, which need no memory of their own then.
    chunks: SmallVec<[Option<Arc<Chunk>>; 3]>,
}

impl Chunks {
    /// Returns places for the chunks of `lane` that meet `range`, all empty.
    pub(crate) fn new(lane: &Lane, range: &TimeRange) -> Self {
        let span = lane.chunk_span();
        let count = usize::try_from(span.cells_in(range)).unwrap_or(0);
        Self {
            first: span.index(range.start()),
            chunks: SmallVec::from_elem(None, count),
        }
    }

    /// Returns the chunks that `piece` makes by itself, which are in no cache.
    pub(crate) fn beside(lane: &Lane, piece: &Piece) -> Self {
        let mut chunks = Self::new(lane, &piece.hull().unwrap_or(TimeRange::clamped(0, 0)));
        for (index, place) in chunks.indices().zip(&mut chunks.chunks) {
            *place = Some(Arc::new(Chunk::merged(None, piece, &lane.frame(index))));
        }
        chunks
    }

    fn indices(&self) -> impl Iterator<Item = i64> + use<> {
        let first = self.first;
        (0..self.chunks.len() as i64).map(move |i| first + i)
    }

    /// Returns the chunks that are present, with their numbers, in order of time.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &Arc<Chunk>)> {
        let numbered = self.indices().zip(&self.chunks);
        numbered.filter_map(|(index, chunk)| Some((index, chunk.as_ref()?)))
    }

    /// Returns the chunks that are present, with their numbers, in order of time.
    pub(crate) fn into_present(self) -> impl Iterator<Item = (i64, Arc<Chunk>)> {
        let numbered = self.indices().zip(self.chunks);
        numbered.filter_map(|(index, chunk)| Some((index, chunk?)))
    }

    /// Returns the known segments, in order of time.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.iter().flat_map(|(_, chunk)| chunk.coverage())
    }

    /// Returns the known segments, in order of time.
    pub(crate) fn coverage(&self) -> Vec<Segment> {
        self.segments().copied().collect()
    }

    /// Takes over what `newer` knows. A chunk that knows less than the one held, because that was
    /// evicted meanwhile, is merged with it.
    pub(crate) fn update(&mut self, lane: &Lane, newer: &Self) {
        for (index, chunk) in newer.iter() {
            let place = usize::try_from(index - self.first).ok();
            let Some(place) = place.and_then(|p| self.chunks.get_mut(p)) else {
                continue;
            };
            *place = Some(match place.take() {
                None => chunk.clone(),
                Some(held) if chunk.supersedes(&held) => chunk.clone(),
                Some(held) => {
                    let piece = Piece {
                        data: chunk.data(),
                        segments: chunk.coverage().to_vec(),
                    };
                    Arc::new(Chunk::merged(Some(&held), &piece, &lane.frame(index)))
                }
            });
        }
    }
}
