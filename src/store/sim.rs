//! A level in memory that fails in every way that a real one may, for tests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::key::{LaneName, Names, ValueKey};
use super::page::Stamp;
use super::{
    CacheLevel, Found, Invalidation, Invalidations, Lease, LevelClock, LevelFailure, LevelReply,
    LevelState, Mark, Put,
};
use crate::clock::Clock;
use crate::model::TimeRange;

/// A clock for those who need none.
pub fn clock() -> Arc<dyn Clock> {
    Arc::new(crate::clock::SystemClock::default())
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimFault {
    /// It works.
    None,
    /// It is lost on its way.
    Lost,
    /// It works, and its reply is lost.
    ReplyLost,
    /// It takes as long.
    Late(Duration),
}

type Marked = (Mark, Vec<u8>);

struct SimValues {
    next: u64,
    now: HashMap<ValueKey, Marked>,
    /// SimValues that were replaced, oldest first.
    before: Vec<(ValueKey, Option<Marked>)>,
    invalidations: Arc<Invalidations>,
    faults: Vec<SimFault>,
}

/// A level in memory.
pub struct Sim {
    clock: Arc<dyn Clock>,
    names: Names,
    values: Mutex<SimValues>,
    hangs: AtomicBool,
    full: AtomicBool,
    away: AtomicBool,
    leases: AtomicBool,
}

impl Sim {
    /// An empty level that begins with `epoch`.
    pub fn new(epoch: u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            names: Names::new(b"simulation"),
            values: Mutex::new(SimValues {
                next: 0,
                now: HashMap::new(),
                before: Vec::new(),
                invalidations: Arc::new(Invalidations::new(epoch)),
                faults: Vec::new(),
            }),
            hangs: AtomicBool::new(false),
            full: AtomicBool::new(false),
            away: AtomicBool::new(false),
            leases: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SimValues> {
        self.values.lock().unwrap()
    }

    /// Its invalidations.
    pub fn invalidations(&self) -> Arc<Invalidations> {
        self.lock().invalidations.clone()
    }

    /// From now on calls do not end, or do.
    pub fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    /// From now on writes find no room, or do.
    pub fn fill(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// The next calls meet these faults, the last first.
    pub fn faults(&self, faults: Vec<SimFault>) {
        self.lock().faults = faults;
    }

    /// Changes the bytes of every value.
    pub fn damage(&self, change: impl Fn(&mut Vec<u8>)) {
        for (_, bytes) in self.lock().now.values_mut() {
            change(bytes);
        }
    }

    /// Loses what `which` picks.
    pub fn evict(&self, mut which: impl FnMut(&ValueKey) -> bool) {
        self.lock().now.retain(|key, _| !which(key));
    }

    /// Takes back the last `n` writes, as a failover may.
    pub fn roll_back(&self, n: usize) {
        let mut values = self.lock();
        for _ in 0..n {
            match values.before.pop() {
                Some((key, Some(value))) => values.now.insert(key, value),
                Some((key, None)) => values.now.remove(&key),
                None => None,
            };
        }
    }

    /// Loses everything, and begins anew with `epoch`.
    pub fn lose_all(&self, epoch: u64) {
        let mut values = self.lock();
        values.now.clear();
        values.before.clear();
        values.invalidations = Arc::new(Invalidations::new(epoch));
    }

    /// From now on replicas take leases of lanes, which each gets.
    pub fn give_leases(&self) {
        self.leases.store(true, Ordering::SeqCst);
    }

    /// From now on it cannot be reached, or can.
    pub fn cut_off(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    async fn fault(&self) -> Result<bool, LevelFailure> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.away.load(Ordering::SeqCst) {
            return Err(LevelFailure::Error("away".into()));
        }
        let fault = self.lock().faults.pop().unwrap_or(SimFault::None);
        match fault {
            SimFault::None => Ok(true),
            SimFault::Lost => Err(LevelFailure::Error("lost".into())),
            SimFault::ReplyLost => Ok(false),
            SimFault::Late(by) => {
                tokio::time::sleep(by).await;
                Ok(true)
            }
        }
    }
}

fn replied<T>(value: T, arrives: bool) -> Result<T, LevelFailure> {
    arrives
        .then_some(value)
        .ok_or(LevelFailure::Error("the reply was lost".into()))
}

impl CacheLevel for Sim {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn names(&self) -> &Names {
        &self.names
    }

    fn state(&self) -> Option<LevelState> {
        let clock = &self.clock;
        Some(LevelState {
            invalidations: self.invalidations(),
            clock: LevelClock {
                offset: clock.now() - super::millis(clock.monotonic()),
                error: 0,
                trusted: false,
            },
            replicas: Arc::default(),
        })
    }

    fn read(&self, keys: Vec<ValueKey>) -> LevelReply<'_, Vec<Option<Found>>> {
        Box::pin(async move {
            let arrives = self.fault().await?;
            let values = self.lock();
            let found = keys.iter().map(|key| {
                let (mark, bytes) = values.now.get(key)?.clone();
                let bytes = Some(bytes);
                Some(Found { mark, bytes })
            });
            replied(found.collect(), arrives)
        })
    }

    fn write(&self, puts: Vec<Put>) -> LevelReply<'_, Vec<bool>> {
        Box::pin(async move {
            let arrives = self.fault().await?;
            if self.full.load(Ordering::SeqCst) {
                return Err(LevelFailure::Full("simulated".into()));
            }
            let mut values = self.lock();
            let mut written = Vec::new();
            for put in puts {
                let old = values.now.get(&put.key).cloned();
                let expected = old.as_ref().map(|(mark, _)| *mark) == put.replaces;
                written.push(expected);
                if expected {
                    values.next += 1;
                    let mut mark = [0; 12];
                    mark[..8].copy_from_slice(&values.next.to_le_bytes());
                    values.now.insert(put.key, (mark, put.bytes));
                    values.before.push((put.key, old));
                }
            }
            replied(written, arrives)
        })
    }

    fn leases(&self) -> bool {
        self.leases.load(Ordering::SeqCst)
    }

    fn lease(&self, _: &LaneName, _: TimeRange) -> LevelReply<'_, Lease> {
        Box::pin(async move {
            let arrives = self.fault().await?;
            match self.full.load(Ordering::SeqCst) {
                true => Err(LevelFailure::Full("simulated".into())),
                false => replied(Lease::Mine, arrives),
            }
        })
    }

    fn applied(&self, _: Stamp) {}

    fn invalidate(&self, invalidation: Invalidation) -> LevelReply<'_, Stamp> {
        Box::pin(async move {
            let arrives = self.fault().await?;
            let mut values = self.lock();
            Arc::make_mut(&mut values.invalidations).add(invalidation);
            replied(values.invalidations.stamp(), arrives)
        })
    }
}
