//! The wait of a request for the second level: as long as one read of it may take, however many
//! ranges it reads one after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::SecondLevel;
use crate::engine::{CacheOutcome, RequestContext, Timing};

/// The waits of a request that is no hit: the time for the second level and whether that had
/// something for it, and whether another replica filled a gap.
#[derive(Debug, Default)]
pub struct LevelWait {
    micros: AtomicU64,
    found: AtomicBool,
    filled: AtomicBool,
}

impl LevelWait {
    fn waited(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    /// Takes in that another replica filled a gap, or did not.
    pub(in crate::engine) fn fill(&self, filled: bool) {
        self.filled.fetch_or(filled, Ordering::Relaxed);
    }

    /// Adds to `cache` and `timing` what the second level and other replicas contributed to an answer.
    pub(in crate::engine) fn show(&self, cache: &mut CacheOutcome, timing: &mut Timing) {
        cache.second_level = self.found.load(Ordering::Relaxed);
        cache.filled = self.filled.load(Ordering::Relaxed);
        timing.filled = cache.filled;
        timing.second = self.waited();
        timing.fetch = timing.fetch.saturating_sub(timing.second);
    }
}

impl RequestContext {
    /// The same for a request that is no hit, whose waits for the second level count together.
    pub(in crate::engine) fn counting(&self) -> (Self, Arc<LevelWait>) {
        let wait = Arc::<LevelWait>::default();
        let context = Self {
            level_wait: Some(wait.clone()),
            ..self.clone()
        };
        (context, wait)
    }
}

/// A wait that goes on.
pub(super) struct Waiting<'a> {
    second: &'a SecondLevel,
    began: Instant,
    /// When it ends at the latest.
    pub(super) until: Instant,
    wait: Option<&'a LevelWait>,
}

impl SecondLevel {
    /// Begins to wait for a read; `None` if the request has waited long enough.
    pub(super) fn wait<'a>(&'a self, context: &'a RequestContext) -> Option<Waiting<'a>> {
        let most = self.tiers.iter().map(|tier| tier.deadline).max()?;
        let wait = context.level_wait.as_deref();
        let left = most.saturating_sub(wait.map_or(Duration::ZERO, LevelWait::waited));
        if left.is_zero() {
            self.count_wait("skipped");
            return None;
        }
        let began = Instant::now();
        Some(Waiting {
            second: self,
            began,
            until: context.deadline.min(began + left),
            wait,
        })
    }

    fn count_wait(&self, outcome: &'static str) {
        for tier in &self.tiers {
            tier.level.metrics().request("wait", outcome, None);
        }
    }
}

impl Waiting<'_> {
    /// Ends it; the level had something for the request, or not.
    pub(super) fn end(self, found: bool) {
        if Instant::now() >= self.until {
            self.second.count_wait("timeout");
        }
        let Some(wait) = self.wait else { return };
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        wait.micros.fetch_add(micros, Ordering::Relaxed);
        wait.found.fetch_or(found, Ordering::Relaxed);
    }
}
