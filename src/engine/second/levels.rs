//! The state of the levels, as operators see it.

use std::time::Duration;

use super::Tier;
use crate::engine::Engine;
use crate::store::{BreakerState, LevelHoldings};

/// The state of a second level of the cache.
#[derive(Clone, Debug)]
pub struct LevelReport {
    /// Its name in metrics: `disk` or `shared`.
    pub name: &'static str,
    /// Whether other processes write to it.
    pub shared: bool,
    /// Whether it is known well enough to be asked.
    pub usable: bool,
    /// The size of its contents, if it knows.
    pub holdings: Option<LevelHoldings>,
    /// Bytes that wait to be written.
    pub queue_bytes: usize,
    /// The breakers of reads.
    pub reads: BreakerState,
    /// The breakers of writes.
    pub writes: BreakerState,
    /// By how much its time may be wrong, if it is known.
    pub clock_error: Option<Duration>,
    /// The number of live replicas that share it, this one included.
    pub replicas: usize,
}

impl LevelReport {
    fn of(tier: &Tier) -> Self {
        let state = tier.level.state();
        let [reads, writes] = tier.level.breakers();
        let error = state.as_ref().map(|state| state.clock.error);
        let live = state.iter().flat_map(|state| state.replicas.iter());
        Self {
            name: tier.level.name(),
            shared: tier.level.is_shared(),
            usable: state.is_some(),
            holdings: tier.level.holdings(),
            queue_bytes: tier.queue.bytes(),
            reads,
            writes,
            clock_error: error.and_then(|e| Some(Duration::from_millis(e.try_into().ok()?))),
            replicas: live.filter(|replica| replica.live).count(),
        }
    }
}

impl Engine {
    /// Returns the state of each second level, in the order in which they are asked.
    pub fn levels(&self) -> Vec<LevelReport> {
        let second = self.memory.second.iter();
        let tiers = second.flat_map(|second| &second.tiers);
        tiers.map(|tier| LevelReport::of(tier)).collect()
    }
}
