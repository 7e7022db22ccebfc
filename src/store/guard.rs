//! Guards a level: a deadline for every call, few calls at once, and a breaker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::{info, warn};

use super::key::{LaneName, Names, Slot, ValueKey};
use super::page::Stamp;
use super::{
    CacheLevel, Found, Invalidation, Lease, LevelFailure, LevelHoldings, LevelReply, LevelState,
    Put,
};
use crate::model::TimeRange;
use crate::telemetry::metrics::LevelMetrics;

/// Most reads at once; beyond it a read is skipped.
const READS_AT_ONCE: usize = 256;

/// Most time of a batch of writes, which nobody waits for.
const WRITE_DEADLINE: Duration = Duration::from_secs(1);

/// Failures in a row after which the level is not used for a while.
const FAILURES: u32 = 5;

/// For how long; then one call tries whether it is well.
const REST: Duration = Duration::from_secs(1);

/// The same where there is no room to write, while reads go on.
const FULL_REST: Duration = Duration::from_secs(10);

/// A level whose failures cost a request at most its deadline.
pub struct Guarded {
    level: Arc<dyn CacheLevel>,
    /// Most time of a read.
    deadline: Duration,
    reading: Semaphore,
    /// Of each part one, as of writes.
    reads: Vec<LevelBreaker>,
    writes: Vec<LevelBreaker>,
    metrics: LevelMetrics,
}

impl Guarded {
    /// Returns `level`, of which a read takes at most `deadline`.
    pub fn new(level: Arc<dyn CacheLevel>, deadline: Duration) -> Self {
        let name = level.name();
        let breakers = |op| {
            let parts = 0..level.parts().max(1);
            parts.map(|_| LevelBreaker::new(name, op)).collect()
        };
        Self {
            reads: breakers("read"),
            writes: breakers("write"),
            level,
            deadline,
            reading: Semaphore::new(READS_AT_ONCE),
            metrics: LevelMetrics::new(name),
        }
    }

    /// Returns its name in metrics.
    pub fn name(&self) -> &'static str {
        self.level.name()
    }

    /// Returns whether other processes write to it.
    pub fn is_shared(&self) -> bool {
        self.level.is_shared()
    }

    /// Returns the names of lanes and upstreams.
    pub fn names(&self) -> &Names {
        self.level.names()
    }

    /// Returns its state, if that is known well enough to be used.
    pub fn state(&self) -> Option<LevelState> {
        self.level.state()
    }

    /// Takes in that the cache in memory takes the invalidations up to `stamp` into account.
    pub fn applied(&self, stamp: Stamp) {
        self.level.applied(stamp);
    }

    /// Returns its metrics.
    pub fn metrics(&self) -> &LevelMetrics {
        &self.metrics
    }

    /// The part that has the values of the lane of `key`: parts fail by themselves, and have breakers
    /// of their own.
    pub fn part(&self, key: &ValueKey) -> usize {
        self.level.part(key)
    }

    /// The size of its contents, if it knows.
    pub fn holdings(&self) -> Option<LevelHoldings> {
        self.level.holdings()
    }

    /// The values of `keys`, all of one part; `None` if they cannot be had now.
    pub async fn read(&self, keys: Vec<ValueKey>) -> Option<Vec<Option<Found>>> {
        let Ok(_permit) = self.reading.try_acquire() else {
            self.metrics.request("read", "skipped", None);
            return None;
        };
        self.found("read", self.deadline, keys).await
    }

    /// The same for those who write, for whom nobody waits: it may take longer.
    pub async fn look(&self, keys: Vec<ValueKey>) -> Option<Vec<Option<Found>>> {
        self.found("look", WRITE_DEADLINE, keys).await
    }

    async fn found(
        &self,
        op: &'static str,
        deadline: Duration,
        keys: Vec<ValueKey>,
    ) -> Option<Vec<Option<Found>>> {
        let count = keys.len();
        let breaker = self
            .reads
            .get(keys.first().map_or(0, |key| self.part(key)))?;
        let read = || self.level.read(keys);
        let outcome = |found: &Vec<Option<Found>>| match found.iter().any(Option::is_some) {
            true => "hit",
            false => "miss",
        };
        let found = self.call(op, breaker, deadline, read, outcome).await?;
        let bytes = found.iter().flatten().filter_map(|f| f.bytes.as_ref());
        self.metrics.bytes("read", bytes.map(Vec::len).sum());
        (found.len() == count).then_some(found)
    }

    /// Writes values, all of one part, and says for each whether it is there now; `None` if that
    /// failed.
    pub async fn write(&self, puts: Vec<Put>) -> Option<Vec<bool>> {
        let (count, bytes) = (puts.len(), puts.iter().map(|put| put.bytes.len()).sum());
        let part = puts.first().map_or(0, |put| self.part(&put.key));
        let breaker = self.writes.get(part)?;
        let write = || self.level.write(puts);
        let outcome = |written: &Vec<bool>| match written.iter().all(|w| *w) {
            true => "written",
            false => "conflict",
        };
        let written = self.call("write", breaker, WRITE_DEADLINE, write, outcome);
        let written = written.await?;
        self.metrics.bytes("written", bytes);
        (written.len() == count).then_some(written)
    }

    /// Whether replicas take leases of lanes in it.
    pub fn leases(&self) -> bool {
        self.level.leases()
    }

    /// Takes the lease of `lane` for `range`, unless another replica has it; `None` if the level
    /// cannot be asked.
    pub async fn lease(&self, lane: &LaneName, range: TimeRange) -> Option<Lease> {
        let outcome = |lease: &Lease| match lease {
            Lease::Mine => "miss",
            Lease::Others(_) => "hit",
        };
        let take = || self.level.lease(lane, range);
        let part = self.part(&ValueKey::new(lane, Slot::Tail));
        // It is a write: while there is no room for it, reads go on.
        let breaker = self.writes.get(part)?;
        self.call("take", breaker, self.deadline, take, outcome)
            .await
    }

    /// Gives up the lease of `lane`. If that fails, it lapses.
    pub async fn release(&self, lane: &LaneName) {
        let released = self.level.release(lane);
        let _ = tokio::time::timeout(WRITE_DEADLINE, released).await;
    }

    /// Returns up to which invalidation of the list that replicas share its values take those into
    /// account, if it is known.
    pub fn heard(&self) -> Option<Stamp> {
        self.level.heard()
    }

    /// Takes in that they do so up to `stamp`.
    pub async fn hear(&self, stamp: Stamp) -> Result<(), LevelFailure> {
        match self.level.heard() == Some(stamp) {
            true => Ok(()),
            false => self.level.hear(stamp).await,
        }
    }

    /// Adds an invalidation to its list. An operator waits for it, whatever the breaker says.
    pub async fn invalidate(&self, invalidation: Invalidation) -> Result<Stamp, LevelFailure> {
        let added = self.level.invalidate(invalidation);
        match tokio::time::timeout(WRITE_DEADLINE, added).await {
            Ok(added) => added,
            Err(_) => Err(LevelFailure::Timeout),
        }
    }

    async fn call<'a, T>(
        &'a self,
        op: &'static str,
        breaker: &LevelBreaker,
        deadline: Duration,
        call: impl FnOnce() -> LevelReply<'a, T>,
        label: impl Fn(&T) -> &'static str,
    ) -> Option<T> {
        if !breaker.admits() {
            self.metrics.request(op, "skipped", None);
            return None;
        }
        // If this is dropped, it shows nothing.
        let began = Instant::now();
        let outcome = match tokio::time::timeout(deadline, call()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(LevelFailure::Timeout),
        };
        let took = began.elapsed();
        match outcome {
            Ok(value) => {
                self.metrics.request(op, label(&value), Some(took));
                breaker.succeeded();
                Some(value)
            }
            Err(failure) => {
                self.metrics.request(op, failure.label(), Some(took));
                breaker.failed(&failure);
                None
            }
        }
    }

    /// Sets the gauges; called when they are read.
    pub fn observe(&self) {
        let [reads, writes] = self.breakers();
        self.metrics.breakers_open(reads.open + writes.open);
    }

    /// The state of the breakers of reads and of writes.
    pub fn breakers(&self) -> [BreakerState; 2] {
        [&self.reads, &self.writes].map(|all| BreakerState {
            open: all.iter().filter(|b| b.is_open()).count(),
            of: all.len(),
            failure: all.iter().find_map(LevelBreaker::failure),
        })
    }
}

/// The state of the breakers of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerState {
    /// The number of those that are open.
    pub open: usize,
    /// The number of all, of each part one.
    pub of: usize,
    /// The failure for which one is open.
    pub failure: Option<String>,
}

/// Stops calls to a level that fails again and again, except for a trial now and then.
struct LevelBreaker {
    level: &'static str,
    op: &'static str,
    state: Mutex<LevelBreakerState>,
}

#[derive(Default)]
struct LevelBreakerState {
    failures: u32,
    /// The time of the next trial, while it is open.
    open_until: Option<Instant>,
    /// The time until the next trial, and the reason.
    rest: Duration,
    failure: String,
}

impl LevelBreaker {
    fn new(level: &'static str, op: &'static str) -> Self {
        Self {
            level,
            op,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LevelBreakerState> {
        // Fields are set one by one and each is sound by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.lock().open_until.is_some()
    }

    /// The failure for which it is open.
    fn failure(&self) -> Option<String> {
        let state = self.lock();
        state.open_until.map(|_| state.failure.clone())
    }

    /// Whether a call may be made. While it is open, one may after each rest.
    fn admits(&self) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        match state.open_until {
            None => true,
            Some(until) if until > now => false,
            Some(_) => {
                state.open_until = Some(now + state.rest);
                true
            }
        }
    }

    fn succeeded(&self) {
        let was = std::mem::take(&mut *self.lock());
        if was.open_until.is_some() {
            info!(
                level = self.level,
                op = self.op,
                "second level of the cache works again"
            );
        }
    }

    fn failed(&self, failure: &LevelFailure) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        let full = matches!(failure, LevelFailure::Full(_));
        state.rest = if full { FULL_REST } else { REST };
        state.failure = failure.to_string();
        if (state.failures >= FAILURES || full) && state.open_until.is_none() {
            state.open_until = Some(Instant::now() + state.rest);
            warn!(
                level = self.level,
                op = self.op,
                "second level of the cache is not used for a while: {failure}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sim::{Sim, clock};

    #[tokio::test(start_paused = true)]
    async fn a_level_that_hangs_is_soon_left_out_and_found_again_when_it_is_well() {
        let sim = Arc::new(Sim::new(1, clock()));
        let level = Guarded::new(sim.clone(), Duration::from_millis(50));
        let key = ValueKey {
            lane: [0; 16],
            slot: 0,
        };
        assert_eq!(level.read(vec![key]).await, Some(vec![None]));
        sim.hang(true);
        let began = Instant::now();
        let mut waited = 0;
        for _ in 0..1000 {
            let before = Instant::now();
            assert_eq!(level.read(vec![key]).await, None);
            assert!(before.elapsed() <= Duration::from_millis(51));
            waited += u32::from(!before.elapsed().is_zero());
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        let most = FAILURES + u32::try_from(began.elapsed().as_secs()).unwrap() + 1;
        assert!(waited <= most, "{waited} reads waited");
        assert!(level.reads[0].is_open());
        sim.hang(false);
        tokio::time::sleep(REST).await;
        assert_eq!(level.read(vec![key]).await, Some(vec![None]));
        assert!(!level.reads[0].is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn reads_beyond_the_bound_are_skipped() {
        let sim = Arc::new(Sim::new(1, clock()));
        sim.hang(true);
        let level = Arc::new(Guarded::new(sim, Duration::from_secs(60)));
        for _ in 0..READS_AT_ONCE {
            let level = level.clone();
            tokio::spawn(async move { level.read(Vec::new()).await });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = Instant::now();
        assert_eq!(level.read(Vec::new()).await, None);
        assert!(before.elapsed().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_level_is_read_but_not_written_for_a_while() {
        let sim = Arc::new(Sim::new(1, clock()));
        let level = Guarded::new(sim.clone(), Duration::from_millis(50));
        sim.fill(true);
        // Leases find no room either.
        let taken = level.lease(&LaneName([0; 32]), TimeRange::ALL).await;
        assert_eq!(taken, None);
        assert!(!level.reads[0].is_open() && level.writes[0].is_open());
        let level = Guarded::new(sim.clone(), Duration::from_millis(50));
        assert_eq!(level.write(Vec::new()).await, None);
        sim.fill(false);
        assert_eq!(level.write(Vec::new()).await, None, "it rests");
        assert_eq!(level.read(Vec::new()).await, Some(Vec::new()));
        tokio::time::sleep(FULL_REST).await;
        assert_eq!(level.write(Vec::new()).await, Some(Vec::new()));
    }
}
