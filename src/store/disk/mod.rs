//! A level on this machine: segments that are only ever appended to. The oldest goes first, so
//! there is never more than `size` on disk; a torn or damaged record is lost, and nothing else.

mod log;
mod segment;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use self::log::{SegmentLog, remove_segments};
use super::key::{Names, ValueKey};
use super::page::Stamp;
use super::{
    CacheLevel, Found, Invalidation, Invalidations, LevelClock, LevelFailure, LevelHoldings,
    LevelReply, LevelState, Put, millis,
};
use crate::clock::Clock;

/// Reads and writes at once.
const AT_ONCE: usize = 8;

/// The mark of every value: there is only one writer.
const MARK: super::Mark = [0; 12];

/// The lock file, which keeps a second process out.
const LOCK: &str = "lock";

/// The file of the [`DiskState`].
const STATE: &str = "state";

/// The first bytes of [`STATE`].
const STATE_MARK: [u8; 4] = *b"HeS2";

/// The knowledge about the level besides its values.
#[derive(Clone)]
struct DiskState {
    /// Names are made with it.
    secret: [u8; 32],
    /// The place in the list that replicas share up to which that is a part of `invalidations`; epoch 0
    /// for none.
    heard: Stamp,
    invalidations: Arc<Invalidations>,
}

/// A level on this machine.
pub struct Disk {
    shared: Arc<DiskShared>,
    names: Names,
    permits: Arc<Semaphore>,
}

struct DiskShared {
    dir: PathBuf,
    log: SegmentLog,
    clock: Arc<dyn Clock>,
    state: RwLock<DiskState>,
    /// Held while the file of the state is written.
    file: Mutex<()>,
    _lock: File,
}

impl Disk {
    /// Opens the level in `dir`, which is created if needed. Takes time with the number of records.
    /// The error says what is wrong with `dir`.
    pub fn open(dir: &Path, size: u64, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let failed = |what: &str, e: &io::Error| format!("{what} in {}: {e}", dir.display());
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(|e| failed("cannot be made", &e))?;
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(dir.join(LOCK));
        let lock = lock.map_err(|e| failed("cannot write", &e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(format!("another process uses {}", dir.display()));
            }
            Err(fs::TryLockError::Error(e)) => return Err(failed("cannot lock", &e)),
        }
        let known = read_state(&dir.join(STATE));
        let anew = known.is_none();
        let state = match known {
            Some(state) => state,
            None => {
                // Values of another secret can never be found again.
                remove_segments(dir).map_err(|e| failed("cannot remove segments", &e))?;
                let random = || random().ok_or("the system has no random numbers".to_owned());
                let [a, b, c, d] = [random()?, random()?, random()?, random()?];
                let mut secret = [0; 32];
                let bytes = [a, b, c, d].map(u64::to_le_bytes);
                for (to, from) in secret.iter_mut().zip(bytes.as_flattened()) {
                    *to = *from;
                }
                DiskState {
                    secret,
                    heard: Stamp::default(),
                    invalidations: Arc::new(Invalidations::new(random()?)),
                }
            }
        };
        match write_state(dir, &state) {
            // What was there before can be read.
            Err(e) if e.kind() == io::ErrorKind::StorageFull && !anew => {
                warn!(dir = %dir.display(), "second level on disk has no room to write: {e}");
            }
            written => written.map_err(|e| failed("cannot write", &e))?,
        }
        let began = clock.monotonic();
        let log = SegmentLog::open(dir, size, clock.clone());
        let log = log.map_err(|e| failed("cannot read", &e))?;
        let took = clock.monotonic().saturating_sub(began);
        info!(
            dir = %dir.display(),
            records = log.len(),
            took_ms = took.as_millis(),
            "second level on disk is open"
        );
        let names = Names::new(&state.secret);
        let shared = DiskShared {
            dir: dir.to_owned(),
            log,
            clock,
            state: RwLock::new(state),
            file: Mutex::default(),
            _lock: lock,
        };
        Ok(Self {
            names,
            shared: Arc::new(shared),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        })
    }

    /// Does `work` off the threads that serve connections.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DiskShared) -> io::Result<T> + Send + 'static,
    ) -> LevelReply<'_, T> {
        let (shared, permits) = (self.shared.clone(), self.permits.clone());
        Box::pin(async move {
            let permit = permits.acquire_owned().await;
            let permit = permit.map_err(|e| LevelFailure::Error(e.to_string()))?;
            let task = tokio::task::spawn_blocking(move || {
                let done = work(&shared);
                // Held for as long as the work takes, whoever still waits for it.
                drop(permit);
                done
            });
            match task.await {
                Ok(Ok(done)) => Ok(done),
                Ok(Err(e)) if e.kind() == io::ErrorKind::StorageFull => {
                    Err(LevelFailure::Full(e.to_string()))
                }
                Ok(Err(e)) => Err(LevelFailure::Error(e.to_string())),
                Err(e) => Err(LevelFailure::Error(e.to_string())),
            }
        })
    }
}

impl CacheLevel for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn holdings(&self) -> Option<LevelHoldings> {
        Some(self.shared.log.holdings())
    }

    fn names(&self) -> &Names {
        &self.names
    }

    fn state(&self) -> Option<LevelState> {
        let clock = &self.shared.clock;
        Some(LevelState {
            invalidations: self.shared.known().invalidations.clone(),
            // Wall clocks step, so data that may still change is never called fresh.
            clock: LevelClock {
                offset: clock.now().saturating_sub(millis(clock.monotonic())),
                error: 0,
                trusted: false,
            },
            replicas: Arc::default(),
        })
    }

    fn read(&self, keys: Vec<ValueKey>) -> LevelReply<'_, Vec<Option<Found>>> {
        self.blocking(move |shared| {
            let found = keys.iter().map(|key| {
                let bytes = shared.log.read(key)?;
                Ok(bytes.map(|bytes| Found {
                    mark: MARK,
                    bytes: Some(bytes),
                }))
            });
            found.collect()
        })
    }

    fn write(&self, puts: Vec<Put>) -> LevelReply<'_, Vec<bool>> {
        self.blocking(move |shared| {
            shared.log.write(&puts)?;
            Ok(vec![true; puts.len()])
        })
    }

    fn applied(&self, _: Stamp) {}

    fn invalidate(&self, invalidation: Invalidation) -> LevelReply<'_, Stamp> {
        self.blocking(move |shared| {
            let state = shared.change(|state| {
                Arc::make_mut(&mut state.invalidations).add(invalidation);
            });
            Ok(state?.invalidations.stamp())
        })
    }

    fn heard(&self) -> Option<Stamp> {
        Some(self.shared.known().heard).filter(|heard| heard.epoch != 0)
    }

    fn hear(&self, stamp: Stamp) -> LevelReply<'_, ()> {
        self.blocking(move |shared| shared.change(|state| state.heard = stamp).map(|_| ()))
    }
}

impl DiskShared {
    fn known(&self) -> RwLockReadGuard<'_, DiskState> {
        // Each change is made whole.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change and keeps it on disk.
    fn change(&self, change: impl FnOnce(&mut DiskState)) -> io::Result<DiskState> {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // In memory first: it holds while the process runs, whatever becomes of the file. And readers
        // do not wait for that.
        let held = {
            let mut held = self.state.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut held);
            held.clone()
        };
        write_state(&self.dir, &held)?;
        Ok(held)
    }
}

fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Returns the state, if `path` holds it whole.
fn read_state(path: &Path) -> Option<DiskState> {
    let bytes = fs::read(path).ok()?;
    let (mark, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    if *mark != STATE_MARK || u32::from_le_bytes(*sum) != crc32fast::hash(rest) {
        return None;
    }
    let (secret, rest) = rest.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    Some(DiskState {
        secret: *secret,
        heard: Stamp {
            epoch: u64::from_le_bytes(*epoch),
            number: u64::from_le_bytes(*number),
        },
        invalidations: Arc::new(Invalidations::decode(rest)?),
    })
}

/// Writes the file of [`read_state`], whole or not at all.
fn write_state(dir: &Path, state: &DiskState) -> io::Result<()> {
    let DiskState {
        secret,
        heard,
        invalidations,
    } = state;
    let content = [
        &secret[..],
        &heard.epoch.to_le_bytes(),
        &heard.number.to_le_bytes(),
        &invalidations.encode(),
    ]
    .concat();
    let sum = crc32fast::hash(&content).to_le_bytes();
    let new = dir.join("state.new");
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(&[&STATE_MARK[..], &sum, &content].concat())?;
    // An invalidation that was acknowledged must hold after a power cut too.
    file.sync_all()?;
    fs::rename(new, dir.join(STATE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
