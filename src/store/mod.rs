//! The second level of cache: stores of values that outlive the process, and how they are guarded.
//!
//! - `key`: names of lanes, which cannot leave out a part of an identity
//! - `page`: values as bytes; `invalidation`: what of them is no longer known
//! - `guard`: deadlines, a breaker and bounds, so that a level that fails costs nothing but its help
//! - `disk`: a level on this machine, which survives restarts
//! - `redis`: a level that replicas share
//! - `joint`, `standing`: limits that replicas keep together through such a level
//!
//! A level keeps bytes under keys and may lose any of them at any time. What they mean, and when
//! they are asked for, is decided by the engine.

pub mod disk;
mod guard;
mod invalidation;
pub mod joint;
pub mod key;
pub mod lease;
pub mod page;
#[cfg(feature = "shared")]
pub mod redis;
#[cfg(test)]
pub mod sim;
pub mod standing;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use guard::{BreakerState, Guarded};
pub use invalidation::{Invalidation, Invalidations};

use crate::model::{Millis, TimeRange};
use key::{LaneName, Names, ValueKey};
use page::Stamp;

/// The answer of a level, in its time.
pub type LevelReply<'a, T> = Pin<Box<dyn Future<Output = Result<T, LevelFailure>> + Send + 'a>>;

/// A store of values by key, which may lose any of them at any time.
pub trait CacheLevel: Send + Sync {
    /// Returns its name in metrics: `disk` or `shared`.
    fn name(&self) -> &'static str;

    /// The number of its parts that fail by themselves, as nodes of a cluster do.
    fn parts(&self) -> usize {
        1
    }

    /// The part, less than their number, that has the values of the lane of `key`.
    fn part(&self, key: &ValueKey) -> usize {
        let _ = key;
        0
    }

    /// The size of its contents, if it knows.
    fn holdings(&self) -> Option<LevelHoldings> {
        None
    }

    /// Whether other processes write to it.
    fn is_shared(&self) -> bool;

    /// Returns the names of lanes and upstreams.
    fn names(&self) -> &Names;

    /// Returns its state, if that is known well enough to be used.
    fn state(&self) -> Option<LevelState>;

    /// Returns the values of `keys`, in their order.
    fn read(&self, keys: Vec<ValueKey>) -> LevelReply<'_, Vec<Option<Found>>>;

    /// Writes values, and says for each whether it is there now.
    fn write(&self, puts: Vec<Put>) -> LevelReply<'_, Vec<bool>>;

    /// Adds an invalidation to its list, and gives its place there.
    fn invalidate(&self, invalidation: Invalidation) -> LevelReply<'_, Stamp>;

    /// Returns up to which invalidation of the list that replicas share its values take those into
    /// account, if it is known.
    fn heard(&self) -> Option<Stamp> {
        None
    }

    /// Takes in that they do so up to `stamp`, also after a restart.
    fn hear(&self, _stamp: Stamp) -> LevelReply<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Whether replicas take leases of lanes in it.
    fn leases(&self) -> bool {
        false
    }

    /// Takes the lease of `lane` for `range`, unless another replica has it.
    fn lease(&self, _lane: &LaneName, _range: TimeRange) -> LevelReply<'_, Lease> {
        Box::pin(async { Ok(Lease::Mine) })
    }

    /// Gives up the lease of `lane`, if this replica has it.
    fn release(&self, _lane: &LaneName) -> LevelReply<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Takes in that the cache in memory takes the invalidations up to `stamp` into account.
    fn applied(&self, stamp: Stamp);
}

/// The size of the contents of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelHoldings {
    /// Bytes of all values.
    pub bytes: u64,
    /// The upper bound of these bytes.
    pub limit: u64,
    /// The number of values.
    pub values: usize,
}

/// The known state of a level.
#[derive(Clone, Debug)]
pub struct LevelState {
    /// Its invalidations.
    pub invalidations: Arc<Invalidations>,
    /// Its time.
    pub clock: LevelClock,
    /// The replicas that share it, if it is shared.
    pub replicas: Arc<[Replica]>,
}

/// A process that shares a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its name.
    pub name: String,
    /// Its version of Heliostat.
    pub version: String,
    /// Set for this process.
    pub this: bool,
    /// Time since its last heartbeat.
    pub heard: Duration,
    /// Set if that is recent.
    pub live: bool,
    /// The last invalidation up to which it has applied all.
    pub applied: Stamp,
}

/// The time of a level, as seen from this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelClock {
    /// Milliseconds that the level's time is ahead of the monotonic clock.
    pub offset: Millis,
    /// The largest error of that, either way.
    pub error: Millis,
    /// Set if it is accurate enough to tell the freshness of data that may still change.
    pub trusted: bool,
}

impl LevelClock {
    /// Returns the level's time of a fetch that began at `fetched`, by the monotonic clock: the
    /// earliest that it can have been.
    pub fn stamp(&self, fetched: Duration) -> Millis {
        millis(fetched)
            .saturating_add(self.offset)
            .saturating_sub(self.error)
    }

    /// Returns the time, by the monotonic clock, at which a fetch began that another process
    /// stamped with `time`: the earliest that it can have been. `None` if that is before the clock
    /// began.
    pub fn fetched(&self, time: Millis) -> Option<Duration> {
        let fetched = time.checked_sub(self.offset)?.checked_sub(self.error)?;
        Some(Duration::from_millis(u64::try_from(fetched).ok()?))
    }

    /// Returns the latest that it can be now, in the level's time.
    pub fn latest(&self, now: Duration) -> Millis {
        millis(now)
            .saturating_add(self.offset)
            .saturating_add(self.error)
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// The lease of a lane: its holder fetches, and others wait for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// This replica has it now.
    Mine,
    /// Another has it, and fetches this range.
    Others(TimeRange),
}

/// A value that a level has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Sets it apart from every other value of its key.
    pub mark: Mark,
    /// Its bytes; `None` if they are damaged, or of another key or secret.
    pub bytes: Option<Vec<u8>>,
}

/// Sets a value apart from every other value of its key.
pub type Mark = [u8; 12];

/// A value to be written.
#[derive(Clone, Debug)]
pub struct Put {
    /// Its key.
    pub key: ValueKey,
    /// The mark of the value that it replaces; `None` if there must be none.
    pub replaces: Option<Mark>,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The time after which nobody needs it.
    pub ttl: Duration,
}

/// The reason why a level did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelFailure {
    /// It took too long.
    Timeout,
    /// It has no room; reading may work.
    Full(String),
    /// Anything else.
    Error(String),
}

impl LevelFailure {
    /// Returns the failure as a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Full(_) => "full",
            Self::Error(_) => "error",
        }
    }
}

impl fmt::Display for LevelFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("it did not answer in time"),
            Self::Full(why) => write!(f, "it is full: {why}"),
            Self::Error(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for LevelFailure {}
