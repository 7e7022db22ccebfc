//! The cache's own metrics.

use metrics::{Counter, Gauge, counter, gauge};

use super::metrics::{CACHE_BYTES, CACHE_CHUNKS, EVICTIONS};

/// Handles to the cache's own metrics.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    /// Weight of the cached chunks.
    pub bytes: Gauge,
    /// Number of cached chunks.
    pub chunks: Gauge,
    /// Chunks and whole answers evicted because the cache was full.
    pub evictions: Counter,
}

impl Default for CacheMetrics {
    fn default() -> Self {
        Self {
            bytes: gauge!(CACHE_BYTES),
            chunks: gauge!(CACHE_CHUNKS),
            evictions: counter!(EVICTIONS),
        }
    }
}
