//! A level that replicas share: Redis or Valkey, by itself, with Sentinels, or as a cluster.
//!
//! Values are sealed: whoever reads the server's memory sees neither what is stored nor of what, and
//! what was changed there is a miss. All keys of a lane lie in one slot, as does all that replicas
//! do together.

mod beat;
mod connect;
mod limits;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use redis::FromRedisValue;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use self::beat::Beat;
use self::connect::Connection;
pub use self::connect::{RedisMode, RedisSettings, inspect};
use super::key::{LaneName, Names, Slot, ValueKey};
use super::page::Stamp;
use super::{
    CacheLevel, Found, Invalidation, Lease, LevelFailure, LevelReply, LevelState, Mark, Put,
};
use crate::clock::Clock;
use crate::model::TimeRange;
use crate::telemetry::metrics::{self, LevelMetrics};

/// Most keys of one command.
const KEYS_AT_ONCE: usize = 64;

/// Slots of a cluster, and how many of them, which most often are of one node, are a part that
/// fails by itself.
const SLOTS: u16 = 16_384;
const SLOTS_OF_PART: u16 = 1024;

/// Sets a value if the one in its place has the mark that is expected, or there is none and none
/// is.
const WRITE: &str = "
if redis.call('GETRANGE', KEYS[1], 0, 11) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1";

/// Adds an invalidation to the list of the epoch that is expected, of which only the last are kept.
/// Gives its number, or -1 if there is no such list.
const INVALIDATE: &str = "
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local floor = tonumber(redis.call('HGET', KEYS[1], 'floor'))
local list = redis.call('HGET', KEYS[1], 'list') .. ARGV[2]
local most = tonumber(ARGV[3]) * #ARGV[2]
if #list > most then
  floor = floor + (#list - most) / #ARGV[2]
  list = string.sub(list, -most)
end
redis.call('HSET', KEYS[1], 'floor', string.format('%d', floor), 'list', list)
return floor + #list / #ARGV[2]";

/// Takes a lease, unless somebody has it: gives what its holder has said of it, or nothing.
const LEASE: &str = "
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return '' end
return redis.call('GETRANGE', KEYS[1], 0, -1)";

/// Gives up a lease, if its holder is the one that is named.
const RELEASE: &str = "
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1] then
  redis.call('SET', KEYS[1], '', 'PX', 1)
end
return 1";

/// After so long a lease lapses.
const LEASE_LASTS: Duration = Duration::from_secs(10);

/// A level that replicas share.
pub struct RedisLevel {
    settings: RedisSettings,
    names: Names,
    clock: Arc<dyn Clock>,
    /// In use, if there is one.
    connection: Mutex<Option<Connection>>,
    /// The state that the last heartbeat returned.
    beat: RwLock<Option<Beat>>,
    /// Which invalidations the cache in memory takes into account.
    applied: Mutex<Option<Stamp>>,
    /// Identifies this process among the replicas.
    instance: u64,
    metrics: LevelMetrics,
}

impl RedisLevel {
    /// Returns the number of this process, which no other has.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// A level as `settings` say, whose heart beats until it is dropped. Within a runtime.
    pub fn start(settings: RedisSettings, clock: Arc<dyn Clock>) -> Arc<Self> {
        let level = Arc::new(Self {
            names: Names::new(settings.secret.as_bytes()),
            settings,
            clock,
            connection: Mutex::default(),
            beat: RwLock::default(),
            applied: Mutex::default(),
            instance: random().unwrap_or_default(),
            metrics: LevelMetrics::new("shared"),
        });
        beat::start(&level);
        level
    }

    fn key(&self, key: &ValueKey) -> String {
        let lane = lane(key);
        let prefix = &self.settings.prefix;
        match key.slot {
            tail if tail == Slot::Tail.number() => format!("{prefix}:{{{lane}}}:t"),
            whole if whole == Slot::Whole.number() => format!("{prefix}:{{{lane}}}:w"),
            page => format!("{prefix}:{{{lane}}}:p{page}"),
        }
    }

    fn lease_key(&self, lane: &LaneName) -> String {
        let lane = ValueKey::new(lane, Slot::Tail).lane;
        let lane: String = lane.iter().map(|b| format!("{b:02x}")).collect();
        format!("{}:{{{lane}}}:l", self.settings.prefix)
    }

    /// A key of what all replicas do together.
    fn together(&self, name: &str) -> String {
        format!("{}:{{all}}:{name}", self.settings.prefix)
    }

    fn connection(&self) -> Option<Connection> {
        let connection = self.connection.lock();
        connection.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, LevelFailure> {
        let connection = self.connection();
        let none = || LevelFailure::Error("there is no connection".into());
        connection.ok_or_else(none)?.ask(command).await
    }

    /// Returns the key that values of `lane` are sealed with.
    fn sealing(&self, lane: &[u8; 16]) -> Option<LessSafeKey> {
        let key = self.names.sealing(lane);
        UnboundKey::new(&AES_256_GCM, &key)
            .ok()
            .map(LessSafeKey::new)
    }

    fn sealed(&self, key: &ValueKey, name: &str, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = bytes.to_vec();
        let sealing = self.sealing(&key.lane)?;
        let (unique, about) = (Nonce::assume_unique_for_key(nonce), Aad::from(name));
        sealing
            .seal_in_place_append_tag(unique, about, &mut sealed)
            .ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    fn found(&self, key: &ValueKey, name: &str, value: &[u8]) -> Found {
        let mut mark: Mark = [0; NONCE_LEN];
        for (to, from) in mark.iter_mut().zip(value) {
            *to = *from;
        }
        let bytes = value.split_at_checked(NONCE_LEN).and_then(|(_, sealed)| {
            let mut bytes = sealed.to_vec();
            let (unique, about) = (Nonce::assume_unique_for_key(mark), Aad::from(name));
            let opened = self
                .sealing(&key.lane)?
                .open_in_place(unique, about, &mut bytes);
            let length = opened.ok()?.len();
            bytes.truncate(length);
            Some(bytes)
        });
        if bytes.is_none() {
            metrics::unreadable("shared", "seal");
        }
        Found { mark, bytes }
    }

    /// The values of `keys`, which are of one lane.
    async fn read_lane(&self, keys: &[ValueKey]) -> Result<Vec<Option<Found>>, LevelFailure> {
        let mut command = redis::cmd("MGET");
        let names: Vec<String> = keys.iter().map(|key| self.key(key)).collect();
        command.arg(&names);
        let values: Vec<Option<Vec<u8>>> = self.ask(&command).await?;
        let values = keys.iter().zip(&names).zip(values);
        let found = values.map(|((key, name), value)| Some(self.found(key, name, &value?)));
        Ok(found.collect())
    }

    async fn write_one(&self, put: &Put) -> Result<bool, LevelFailure> {
        let name = self.key(&put.key);
        let Some(sealed) = self.sealed(&put.key, &name, &put.bytes) else {
            return Err(LevelFailure::Error("a value could not be sealed".into()));
        };
        let expected = put.replaces.as_ref().map_or(&[][..], |mark| &mark[..]);
        let ttl = put.ttl.max(Duration::from_secs(1)).as_millis();
        let mut command = redis::cmd("EVAL");
        command.arg(WRITE).arg(1).arg(&name);
        command
            .arg(expected)
            .arg(&sealed)
            .arg(u64::try_from(ttl).unwrap_or(u64::MAX >> 1));
        let written: i64 = self.ask(&command).await?;
        Ok(written == 1)
    }
}

impl CacheLevel for RedisLevel {
    fn name(&self) -> &'static str {
        "shared"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn parts(&self) -> usize {
        match self.settings.mode {
            RedisMode::Cluster => usize::from(SLOTS / SLOTS_OF_PART),
            RedisMode::Single | RedisMode::Sentinel(_) => 1,
        }
    }

    fn part(&self, key: &ValueKey) -> usize {
        match self.settings.mode {
            RedisMode::Cluster => usize::from(slot(&lane(key)) / SLOTS_OF_PART),
            RedisMode::Single | RedisMode::Sentinel(_) => 0,
        }
    }

    fn names(&self) -> &Names {
        &self.names
    }

    fn state(&self) -> Option<LevelState> {
        let beat = self.beat.read().unwrap_or_else(PoisonError::into_inner);
        beat.as_ref()?.state(self.clock.monotonic())
    }

    fn applied(&self, stamp: Stamp) {
        *self.applied.lock().unwrap_or_else(PoisonError::into_inner) = Some(stamp);
    }

    fn leases(&self) -> bool {
        self.settings.fetch_once
    }

    fn lease(&self, lane: &LaneName, range: TimeRange) -> LevelReply<'_, Lease> {
        let key = self.lease_key(lane);
        Box::pin(async move {
            let mine = format!("{:016x}", self.instance);
            let mut command = redis::cmd("EVAL");
            command.arg(LEASE).arg(1).arg(key);
            command
                .arg(format!("{mine} {} {}", range.start(), range.end()))
                .arg(u64::try_from(LEASE_LASTS.as_millis()).unwrap_or(u64::MAX >> 12));
            let held: String = self.ask(&command).await?;
            let mut words = held.split(' ');
            if held.is_empty() || words.next() == Some(&mine) {
                return Ok(Lease::Mine);
            }
            let mut time = || words.next()?.parse().ok();
            let theirs = time().zip(time()).and_then(|(s, e)| TimeRange::new(s, e));
            let garbage = || LevelFailure::Error("a lease is not what this version says".into());
            theirs.map(Lease::Others).ok_or_else(garbage)
        })
    }

    fn release(&self, lane: &LaneName) -> LevelReply<'_, ()> {
        let key = self.lease_key(lane);
        Box::pin(async move {
            let mut command = redis::cmd("EVAL");
            command.arg(RELEASE).arg(1).arg(key);
            command.arg(format!("{:016x}", self.instance));
            let _: i64 = self.ask(&command).await?;
            Ok(())
        })
    }

    fn read(&self, keys: Vec<ValueKey>) -> LevelReply<'_, Vec<Option<Found>>> {
        Box::pin(async move {
            // A command asks one slot; those of one connection go out together.
            let lanes = keys.chunk_by(|a, b| a.lane == b.lane);
            let reads = lanes.flat_map(|lane| lane.chunks(KEYS_AT_ONCE));
            let reads = reads.map(|keys| self.read_lane(keys));
            let found = futures_util::future::try_join_all(reads).await?;
            Ok(found.into_iter().flatten().collect())
        })
    }

    fn write(&self, puts: Vec<Put>) -> LevelReply<'_, Vec<bool>> {
        Box::pin(async move {
            let writes = puts.iter().map(|put| self.write_one(put));
            futures_util::future::try_join_all(writes).await
        })
    }

    fn invalidate(&self, invalidation: Invalidation) -> LevelReply<'_, Stamp> {
        Box::pin(async move {
            let known = self.state().map(|state| state.invalidations.stamp());
            let away = || LevelFailure::Error("it cannot be reached".into());
            let epoch = known.ok_or_else(away)?.epoch;
            let mut command = redis::cmd("EVAL");
            command.arg(INVALIDATE).arg(1).arg(self.together("state"));
            command
                .arg(epoch.to_string())
                .arg(&invalidation.encode()[..])
                .arg(super::Invalidations::MOST);
            let number: i64 = self.ask(&command).await?;
            let Ok(number) = u64::try_from(number) else {
                return Err(LevelFailure::Error(
                    "it has lost its list of invalidations".into(),
                ));
            };
            // What it holds now is what this process goes by.
            self.beat().await?;
            Ok(Stamp { epoch, number })
        })
    }
}

/// The lane of `key`, as it is written between braces.
fn lane(key: &ValueKey) -> String {
    key.lane.iter().map(|b| format!("{b:02x}")).collect()
}

/// The slot of a cluster that has keys with `tag` between braces: CRC-16 (XMODEM) of the tag
/// ("Redis cluster specification", key distribution model).
fn slot(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    });
    crc % SLOTS
}

fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
