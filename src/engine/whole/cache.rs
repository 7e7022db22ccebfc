//! The entries of whole answers, bounded by the bytes they hold.

use std::sync::Arc;

use moka::ops::compute::Op;
use moka::sync::Cache;

use super::{Content, WholeEntry, WholeKey};
use crate::engine::cache::{count_evictions, free_dropped};
use crate::upstream::Flights;

/// Bytes of an entry besides its contents: the entry itself, the bookkeeping of moka, and what the allocator adds to
/// each block (`cargo bench --bench memory -- --keys`).
const ENTRY_OVERHEAD: usize = 840;

/// Answers that were fetched, and fetches in flight.
pub(in crate::engine) struct WholeCache {
    pub(super) entries: Cache<WholeKey, Arc<WholeEntry>>,
    pub(in crate::engine) flights: Flights<WholeKey, Arc<WholeEntry>>,
}

impl WholeCache {
    /// Creates a cache for answers of at most `bytes` in all.
    pub(in crate::engine) fn new(bytes: u64) -> Self {
        let count_eviction = count_evictions();
        let weigh = |key: &WholeKey, entry: &Arc<WholeEntry>| {
            let bytes = key.heap_bytes() + entry.content.heap_bytes() + ENTRY_OVERHEAD;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            entries: Cache::builder()
                .max_capacity(bytes)
                .weigher(weigh)
                .eviction_listener(count_eviction)
                .build(),
            flights: Flights::default(),
        }
    }

    /// Drops the answers of the upstreams that `which` picks.
    pub(in crate::engine) fn invalidate(&self, which: impl Fn(u64) -> bool) {
        self.flights.abandon(|key| which(key.upstream));
        for (key, _) in &self.entries {
            if which(key.upstream) {
                self.entries.invalidate(&**key);
            }
        }
    }

    /// Returns the bytes that it holds.
    pub(in crate::engine) fn weight(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.weighted_size()
    }

    /// Returns the answer that is known under `newest`.
    pub(super) fn behind(&self, newest: &WholeKey) -> Option<Arc<WholeEntry>> {
        match &self.entries.get(newest)?.content {
            Content::Alias(key) => self.entries.get(key),
            Content::List(_) | Content::Response(_) | Content::Error(_) => None,
        }
    }

    /// Inserts `entry`, which was found elsewhere, unless one that was fetched later is there; and
    /// lets it be known under `newest` if nothing is.
    pub(in crate::engine) fn insert_found(
        &self,
        key: &WholeKey,
        newest: Option<&WholeKey>,
        entry: Arc<WholeEntry>,
    ) {
        let known = self.entries.get(key);
        if known.is_some_and(|known| known.fetched >= entry.fetched && !known.content.is_error()) {
            return;
        }
        self.insert(key.clone(), entry);
        if let Some(newest) = newest.filter(|newest| self.behind(newest).is_none()) {
            let alias = WholeEntry::unstored(Content::Alias(key.clone()));
            self.insert(newest.clone(), alias);
        }
    }

    pub(super) fn insert(&self, key: WholeKey, entry: Arc<WholeEntry>) {
        self.entries.insert(key, entry);
        self.make_room();
    }

    /// Evicts entries over the bound now; by itself moka does that some hundred writes later.
    pub(in crate::engine) fn make_room(&self) {
        self.entries.run_pending_tasks();
        free_dropped();
    }

    /// Weighs `entry` again, which has been encoded since it was stored, unless another has taken
    /// its place.
    pub(in crate::engine) fn weigh_again(&self, key: &WholeKey, entry: &Arc<WholeEntry>) {
        let held = self.entries.entry_by_ref(key);
        held.and_compute_with(|held| match held {
            Some(held) if Arc::ptr_eq(held.value(), entry) => Op::Put(entry.clone()),
            _ => Op::Nop,
        });
        self.make_room();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::engine::passthrough::PassthroughRequest;
    use crate::engine::whole::{WholeIdentity, WholeQuery};
    use crate::model::{Error, Kind};

    #[test]
    fn what_is_evicted_is_counted() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let cache = metrics::with_local_recorder(&recorder, || WholeCache::new(20_000));
        for n in 0..100 {
            let request = PassthroughRequest {
                path: format!("/{n}"),
                params: Arc::default(),
                body: Bytes::new(),
                headers: Vec::new(),
                json: true,
            };
            let entry = WholeEntry {
                content: Content::Error(Error::new(Kind::Internal, "x")),
                policy: super::super::CachePolicy::Short,
                fetched: Duration::ZERO,
            };
            let key = WholeIdentity::of(7, WholeQuery::Response(request));
            cache.insert(key, Arc::new(entry));
        }
        assert!(cache.weight() <= 20_000);
        let left = cache.entries.entry_count();
        let text = recorder.handle().render();
        let counted = format!("heliostat_cache_evictions_total {}", 100 - left);
        assert!(left < 100 && text.contains(&counted), "{counted} in {text}");
    }
}
