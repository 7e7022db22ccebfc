//! The metrics of the second levels of the cache.

use metrics::{Gauge, counter, gauge, histogram};

use super::metrics::{
    CLOCK_ERROR, DISK_BYTES, DISK_RECORDS, LEVEL_BREAKERS, LEVEL_BYTES, LEVEL_DROPPED, LEVEL_QUEUE,
    LEVEL_REQUESTS, LEVEL_SECONDS, LEVEL_UNREADABLE, LIMIT_SHARE, REPLICAS,
};

/// The metrics of a second level of the cache.
#[derive(Debug)]
pub struct LevelMetrics {
    level: &'static str,
    /// Bytes that wait to be written.
    pub queue: Gauge,
    breakers: Gauge,
}

impl LevelMetrics {
    /// Returns the metrics of `level`.
    pub fn new(level: &'static str) -> Self {
        let metrics = Self {
            level,
            queue: gauge!(LEVEL_QUEUE, "level" => level),
            breakers: gauge!(LEVEL_BREAKERS, "level" => level),
        };
        // Counters start at 0, so that the first increment can be alerted on.
        for reason in ["queue", "size", "resting", "conflict"] {
            metrics.dropped(reason, 0);
        }
        for outcome in ["hit", "miss", "error", "timeout", "skipped"] {
            counter!(LEVEL_REQUESTS, "level" => level, "op" => "read", "outcome" => outcome)
                .absolute(0);
        }
        metrics
    }

    /// Counts a call of `op` that ended as `outcome` after `took`, if it was made.
    pub fn request(
        &self,
        op: &'static str,
        outcome: &'static str,
        took: Option<std::time::Duration>,
    ) {
        let level = self.level;
        counter!(LEVEL_REQUESTS, "level" => level, "op" => op, "outcome" => outcome).increment(1);
        if let Some(took) = took {
            histogram!(LEVEL_SECONDS, "level" => level, "op" => op).record(took.as_secs_f64());
        }
    }

    /// Counts bytes that were `read` or `written`.
    pub fn bytes(&self, direction: &'static str, bytes: usize) {
        let counter = counter!(LEVEL_BYTES, "level" => self.level, "direction" => direction);
        counter.increment(bytes as u64);
    }

    /// Counts `pieces` that were not written for `reason`.
    pub fn dropped(&self, reason: &'static str, pieces: u64) {
        counter!(LEVEL_DROPPED, "level" => self.level, "reason" => reason).increment(pieces);
    }

    /// Sets how many breakers are open.
    pub fn breakers_open(&self, open: usize) {
        self.breakers.set(open as f64);
    }
}

/// Records the number of replicas that share a level, and by how much its time may be wrong, if
/// known.
pub fn shared_level(replicas: usize, error: Option<std::time::Duration>) {
    gauge!(REPLICAS).set(replicas as f64);
    if let Some(error) = error {
        gauge!(CLOCK_ERROR).set(error.as_secs_f64());
    }
}

/// Records the part, from 0 to 1, of the limits of `upstream` that this replica may use by itself.
pub fn limit_share(upstream: &str, share: f64) {
    gauge!(LIMIT_SHARE, "upstream" => upstream.to_owned()).set(share);
}

/// Counts a value of `level` that could not be read for `reason`.
pub fn unreadable(level: &'static str, reason: &'static str) {
    counter!(LEVEL_UNREADABLE, "level" => level, "reason" => reason).increment(1);
}

/// Handles to the metrics of the second level on disk.
#[derive(Debug)]
pub struct DiskMetrics {
    /// Bytes on disk.
    pub bytes: Gauge,
    /// Values on disk.
    pub records: Gauge,
}

impl Default for DiskMetrics {
    fn default() -> Self {
        Self {
            bytes: gauge!(DISK_BYTES),
            records: gauge!(DISK_RECORDS),
        }
    }
}
