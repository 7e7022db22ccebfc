//! The heartbeat: what time it is for the level, what was invalidated, and who else is there.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use super::{Connection, RedisLevel, random};
use crate::model::Millis;
use crate::store::page::Stamp;
use crate::store::{Invalidations, LevelClock, LevelFailure, LevelState, Replica, millis};

/// The interval of heartbeats.
const EVERY: Duration = Duration::from_millis(250);

/// Most time of a beat.
const DEADLINE: Duration = Duration::from_secs(1);

/// Without a beat for so long the level is not used.
const SILENCE: Duration = Duration::from_millis(2500);

/// Beats in a row that fail before the connection is made anew; a cluster mends its own.
const MISSES: u32 = 2;
const MISSES_OF_CLUSTER: u32 = 5;

/// For how long a sample of the time is used.
const SAMPLE: Duration = Duration::from_secs(60);

/// By how much two clocks drift apart, in millionths.
const DRIFT: u128 = 200;

/// A replica that was heard within so many milliseconds is there.
const LIVE: Millis = 3000;

/// One that was not heard for so long is forgotten.
const GONE: Millis = 300_000;

/// Registers a replica, and returns time, epoch, floor, all replicas, and the list if the replica's
/// copy is out of date. A list that is lost, or that lacks something a replica knows, begins with a
/// new epoch: everything older is then unknown. `ARGV[7]` is 0 if there is no room to write.
const BEAT: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local epoch = redis.call('HGET', KEYS[1], 'epoch')
local floor = tonumber(redis.call('HGET', KEYS[1], 'floor') or '0')
local list = redis.call('HGET', KEYS[1], 'list') or ''
local number = floor + #list / 32
if not epoch or (epoch == ARGV[4] and number < tonumber(ARGV[5])) then
  if ARGV[7] == '0' then return redis.error_reply('the list of invalidations is gone') end
  epoch, floor, list, number = ARGV[3], 0, '', 0
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'floor', '0', 'list', '')
end
local members = redis.call('HGETALL', KEYS[2])
for i = 1, #members, 2 do
  local heard = tonumber(string.match(members[i + 1], '^%d+') or '0')
  if now - heard > tonumber(ARGV[6]) then redis.call('HDEL', KEYS[2], members[i]) end
end
if ARGV[7] ~= '0' then
  redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', now) .. ' ' .. ARGV[2])
end
local known = epoch == ARGV[4] and number == tonumber(ARGV[5])
return {string.format('%.0f', now), epoch, string.format('%.0f', floor), known and '' or list,
  known and '1' or '0', redis.call('HGETALL', KEYS[2])}";

/// The reply to a heartbeat: time, epoch, floor, list, whether that is known, replicas.
type BeatReply = (String, String, String, Vec<u8>, String, Vec<String>);

/// The state that the last heartbeat returned.
pub(super) struct Beat {
    invalidations: Arc<Invalidations>,
    /// The sample of the time in use.
    sample: TimeSample,
    /// The time is not trusted before this, by the monotonic clock.
    trusted_from: Duration,
    /// When the last beat came back, by the monotonic clock.
    heard: Duration,
    replicas: Arc<[Replica]>,
}

/// The level's time as a beat showed it.
#[derive(Clone, Copy)]
struct TimeSample {
    /// Milliseconds that it is ahead of the monotonic clock.
    offset: Millis,
    /// By how much that was wrong at most.
    error: Millis,
    taken: Duration,
}

impl TimeSample {
    /// By how much it is wrong at most `now`.
    fn error(&self, now: Duration) -> Millis {
        let age = now.saturating_sub(self.taken).as_millis();
        let drift = Millis::try_from(age * DRIFT / 1_000_000).unwrap_or(Millis::MAX);
        self.error.saturating_add(drift)
    }

    /// The better of this and a newer one, and whether they contradict each other.
    fn better(self, newer: Self, now: Duration) -> (Self, bool) {
        let apart = self.offset.abs_diff(newer.offset);
        let allowed = self.error(now).saturating_add(newer.error).max(0);
        let contradict = apart > allowed.unsigned_abs();
        let old = now.saturating_sub(self.taken) > SAMPLE;
        match contradict || old || newer.error <= self.error(now) {
            true => (newer, contradict),
            false => (self, false),
        }
    }
}

impl Beat {
    /// Returns the state of the level at `now`, if its last heartbeat is recent.
    pub(super) fn state(&self, now: Duration) -> Option<LevelState> {
        if now.saturating_sub(self.heard) > SILENCE {
            return None;
        }
        Some(LevelState {
            invalidations: self.invalidations.clone(),
            clock: LevelClock {
                offset: self.sample.offset,
                error: self.sample.error(now),
                trusted: now >= self.trusted_from,
            },
            replicas: self.replicas.clone(),
        })
    }
}

/// Beats until `level` is dropped.
pub(super) fn start(level: &Arc<RedisLevel>) {
    let weak = Arc::downgrade(level);
    tokio::spawn(async move {
        let mut misses = 0;
        loop {
            let Some(level) = weak.upgrade() else { return };
            let began = level.clock.monotonic();
            let beaten = level.beat_or_connect().await;
            let took = level.clock.monotonic().saturating_sub(began);
            let outcome = beaten.as_ref().map_or_else(LevelFailure::label, |()| "hit");
            level.metrics.request("heartbeat", outcome, Some(took));
            match beaten {
                Ok(()) => {
                    if misses > 0 {
                        info!("connected to the shared second level");
                    }
                    misses = 0;
                }
                Err(failure) => {
                    misses += 1;
                    if misses == MISSES {
                        warn!("the shared second level cannot be reached: {failure}");
                    }
                    level.give_up_after(misses);
                }
            }
            drop(level);
            // Many replicas do not beat at once.
            let jitter = random().unwrap_or_default() % 50;
            tokio::time::sleep(EVERY + Duration::from_millis(jitter)).await;
        }
    });
}

impl RedisLevel {
    async fn beat_or_connect(&self) -> Result<(), LevelFailure> {
        if self.connection().is_none() {
            let connection = Connection::open(&self.settings).await?;
            let mut place = self.connection.lock();
            *place.as_deref_mut().map_err(|_| LevelFailure::Timeout)? = Some(connection);
        }
        self.beat().await
    }

    /// Drops a connection whose beats failed so often, so that another is made.
    fn give_up_after(&self, misses: u32) {
        let Some(connection) = self.connection() else {
            return;
        };
        let most = match connection.is_cluster() {
            true => MISSES_OF_CLUSTER,
            false => MISSES,
        };
        if misses.is_multiple_of(most) {
            let mut place = self
                .connection
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *place = None;
        }
    }

    /// Beats once; what it tells is known from then on.
    pub(super) async fn beat(&self) -> Result<(), LevelFailure> {
        match self.beat_writing(true).await {
            // Where there is no room to say that we are here, we can still listen.
            Err(LevelFailure::Full(_)) => self.beat_writing(false).await,
            outcome => outcome,
        }
    }

    async fn beat_writing(&self, write: bool) -> Result<(), LevelFailure> {
        let (known, applied) = {
            let beat = self.beat.read().unwrap_or_else(PoisonError::into_inner);
            let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            (beat.as_ref().map(|b| b.invalidations.stamp()), *applied)
        };
        let known = known.unwrap_or(Stamp {
            epoch: 0,
            number: 0,
        });
        let epoch = random().unwrap_or(1).max(1);
        let (applied_epoch, applied_number) = applied.map_or((0, 0), |a| (a.epoch, a.number));
        let about = format!(
            "{applied_epoch} {applied_number} {} {}",
            env!("CARGO_PKG_VERSION"),
            self.settings.name
        );
        let mut command = redis::cmd("EVAL");
        command
            .arg(BEAT)
            .arg(2)
            .arg(self.together("state"))
            .arg(self.together("replicas"))
            .arg(format!("{:016x}", self.instance))
            .arg(about)
            .arg(epoch.to_string())
            .arg(known.epoch.to_string())
            .arg(known.number)
            .arg(GONE)
            .arg(if write { "1" } else { "0" });
        let sent = self.clock.monotonic();
        let asked = self.ask::<BeatReply>(&command);
        let reply = match tokio::time::timeout(DEADLINE, asked).await {
            Ok(reply) => reply?,
            Err(_) => return Err(LevelFailure::Timeout),
        };
        self.heard(&reply, sent, self.clock.monotonic())
    }

    /// Takes over what a beat told that was sent and came back at these times.
    fn heard(&self, reply: &BeatReply, sent: Duration, back: Duration) -> Result<(), LevelFailure> {
        let garbage = || LevelFailure::Error("its heartbeat is not what this version says".into());
        let (time, epoch, floor, list, known, members) = reply;
        let time: Millis = time.parse().map_err(|_| garbage())?;
        let (epoch, floor): (u64, u64) = (
            epoch.parse().map_err(|_| garbage())?,
            floor.parse().map_err(|_| garbage())?,
        );
        let trip = back.saturating_sub(sent);
        let sample = TimeSample {
            // It was read somewhere between; both clocks are cut to milliseconds.
            offset: time.saturating_sub(millis(sent + trip / 2)),
            error: millis(trip / 2).saturating_add(2),
            taken: back,
        };
        let mut beat = self.beat.write().unwrap_or_else(PoisonError::into_inner);
        let invalidations = match (beat.as_ref(), known == "1") {
            (Some(beat), true) => beat.invalidations.clone(),
            _ => {
                let bytes = [&epoch.to_le_bytes()[..], &floor.to_le_bytes(), list].concat();
                Arc::new(Invalidations::decode(&bytes).ok_or_else(garbage)?)
            }
        };
        let (sample, stepped) = match beat.as_ref() {
            None => (sample, false),
            Some(beat) => beat.sample.better(sample, back),
        };
        let trusted_from = match (beat.as_ref(), stepped) {
            (_, true) => {
                warn!("the time of the shared second level has stepped");
                back + SAMPLE
            }
            (Some(beat), false) => beat.trusted_from,
            (None, false) => back,
        };
        let pairs = members.chunks_exact(2);
        let replicas = pairs.filter_map(|pair| {
            let [instance, about] = pair else { return None };
            let mut words = about.splitn(5, ' ');
            let heard: Millis = words.next()?.parse().ok()?;
            let applied = Stamp {
                epoch: words.next()?.parse().ok()?,
                number: words.next()?.parse().ok()?,
            };
            Some(Replica {
                version: words.next()?.to_owned(),
                name: words.next()?.to_owned(),
                this: *instance == format!("{:016x}", self.instance),
                heard: Duration::from_millis(time.saturating_sub(heard).max(0).unsigned_abs()),
                live: time.saturating_sub(heard) <= LIVE,
                applied,
            })
        });
        let mut replicas: Vec<Replica> = replicas.collect();
        replicas.sort_by(|a, b| a.name.cmp(&b.name));
        *beat = Some(Beat {
            invalidations,
            sample,
            trusted_from,
            heard: back,
            replicas: replicas.into(),
        });
        Ok(())
    }
}
