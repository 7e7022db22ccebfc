//! Limits of all replicas together: shares by heartbeat, and permits by the generic cell rate
//! algorithm (ITU-T I.371, annex A) in a script.
//!
//! All of it lies in one slot, so that a script sees it whole. A limit of which the level knows
//! nothing begins empty, not full, so losing data never makes a second burst.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{RedisLevel, random};
use crate::store::LevelFailure;
use crate::store::joint::{JointAsk, JointLimits, PERMITS_LAST, PermitAsk, Permits};
use crate::store::standing::{LATEST_REPLY, Report, ShareVerdict};

/// The interval of a replica's reports.
const EVERY: Duration = Duration::from_millis(250);

/// After so many beats in a row without a reply that counts, it is logged.
const MISSES: u32 = 6;

/// The level's time, in milliseconds.
const NOW: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000 + t[2] / 1000
";

/// Which run of the server it is: after another one began, or another server took its place, data
/// may be missing.
const RUN: &str = "
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
";

/// Reads the state of the replicas: `KEYS[1]` is a hash of the state of all and of `m:NAME`, one
/// for each, which is instance, number of its last beat, when it was heard, the time of the last
/// reply that it got, its claim (the larger of the share that it believes in and the one it was
/// granted), and whether that is from before data was lost and not confirmed yet.
const READ: &str = "
local fields = redis.call('HGETALL', KEYS[1])
local state, members = {}, {}
for i = 1, #fields, 2 do
  local name = string.match(fields[i], '^m:(.*)$')
  if name then
    local a, b, c, d, e, f = string.match(fields[i + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
    members[name] = {instance = a, sequence = tonumber(b), heard = tonumber(c),
      acked = tonumber(d), claim = tonumber(e), pending = f}
  else
    state[fields[i]] = fields[i + 1]
  end
end
local function number(value) return string.format('%.0f', value) end
local seen = tonumber(state.seen or '0')
-- What is pending is no part of the total yet, unless that is the whole.
local function counts(member, total) return member.pending == '0' or total >= 1000000 end
-- What those may use by themselves who may not have got a reply for a second is not used together.
local function together(total)
  if math.floor(now) < seen then return 0 end
  local all = total
  for _, member in pairs(members) do
    if now - member.acked > 1000 and counts(member, all) then total = total - member.claim end
  end
  return math.max(0, total)
end
";

/// A beat: name, instance, number, believed share, epoch of that, time of the last reply, an epoch
/// to begin with, milliseconds until a silent replica is forgotten, whether it leaves, and whether
/// it ever had a share.
const BEAT: &str = "
local name, instance, sequence = ARGV[1], ARGV[2], tonumber(ARGV[3])
local believed, of, acked = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local forget, leaves = tonumber(ARGV[8]), ARGV[9] == '1'
now = math.floor(now)
local before = together(tonumber(state.total or '0'))
local lost = not state.epoch
-- It has begun anew, knows less than a replica has seen of it, or its clock went back.
if state.epoch and (run ~= state.run or acked > seen or now < seen) then
  lost = true
end
if lost then
  for i = 1, #fields, 2 do redis.call('HDEL', KEYS[1], fields[i]) end
  members = {}
  before = 0
  state = {epoch = ARGV[7], born = number(now), known = '0', fresh = '0', total = '0',
    grown = number(now), run = run, met = '0'}
end
local mine = members[name]
if mine and mine.instance == instance and sequence <= mine.sequence then
  return redis.error_reply('a beat came late')
end
if mine and mine.instance ~= instance then
  if now - mine.heard <= 3000 then
    if now - seen <= 1000 then redis.call('HSET', KEYS[1], 'seen', number(now)) end
    return redis.error_reply('another replica has the same name')
  end
  -- It has ended, as this one has its place.
  mine = nil
end
local away = not lost and now - seen > 1000
if away then
  -- It was away from all, or its clock stepped: nobody could be heard.
  for _, member in pairs(members) do member.heard = member.heard + now - seen end
end
for other, member in pairs(members) do
  if now - member.heard > forget then
    members[other] = nil
    redis.call('HDEL', KEYS[1], 'm:' .. other)
  end
end
local born, known = tonumber(state.born), tonumber(state.known)
local whole = state.fresh == '1' or now - born > forget
local claim = 0
-- It has shared limits before, so others may have, who cannot be heard.
if ARGV[10] == '1' and of ~= state.epoch then state.met = '1' end
local pending = '0'
if of ~= state.epoch and not whole and (mine == nil or mine.pending == '1') then
  -- What it had before data was lost, it has still. That counts once it says it again, knowing of
  -- the loss: this may be a beat of long ago.
  claim = believed
  pending = believed > 0 and '1' or '0'
elseif mine and mine.pending == '1' then
  claim = math.min(believed, mine.claim)
  if not whole then known = known + claim end
elseif mine then
  claim = math.min(believed, mine.claim)
end
if of == state.epoch then
  if mine == nil and believed > 0 then acked = 0 end
elseif mine then
  acked = mine.acked
elseif believed == 0 then
  acked = now
else
  acked = 0
end
-- Nobody has shared limits before: they would have come by now.
if not whole and known == 0 and state.met == '0' and now - born > 3000 then
  state.fresh = '1'
  whole = true
end
local total = whole and 1000000 or math.min(known, 1000000)
local share, live, others = 0, 1, 0
for other, member in pairs(members) do
  if other ~= name then
    if counts(member, total) then others = others + member.claim end
    if now - member.heard <= 3000 then live = live + 1 end
  end
end
if leaves then
  members[name] = nil
  redis.call('HDEL', KEYS[1], 'm:' .. name)
else
  share = math.max(0, math.min(math.floor(1000000 / live), total - others))
  if pending == '1' then share = claim end
  claim = math.max(claim, share)
  members[name] = {acked = acked, claim = claim, pending = pending}
  redis.call('HSET', KEYS[1], 'm:' .. name, instance .. ' ' .. number(sequence) .. ' '
    .. number(now) .. ' ' .. number(acked) .. ' ' .. number(claim) .. ' ' .. pending)
end
for other, member in pairs(members) do
  if away and other ~= name then
    redis.call('HSET', KEYS[1], 'm:' .. other, member.instance .. ' ' .. number(member.sequence)
      .. ' ' .. number(member.heard) .. ' ' .. number(member.acked) .. ' ' .. number(member.claim)
      .. ' ' .. member.pending)
  end
end
-- What is used together again has been used by others until now.
if together(total) > before then state.grown = number(now) end
redis.call('HSET', KEYS[1], 'epoch', state.epoch, 'born', state.born, 'known', number(known),
  'fresh', state.fresh, 'total', number(total), 'grown', state.grown, 'run', state.run, 'met', state.met,
  'seen', number(now))
return {number(now), state.epoch, number(share), number(live)}";

/// Permits of the limit `KEYS[2]`: calls a second, calls at once, and how many are wanted. The limit
/// is the time at which the next call would come if calls came evenly, and when that was written.
/// Gives how many may be made or, if none, milliseconds until one may.
const PERMITS: &str = "
local rate, burst, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
-- Not before a beat has seen that nothing is missing.
if not state.epoch or now - seen > 1000 then return {0, '250'} end
local part = together(tonumber(state.total)) / 1000000
if part <= 0 then return {0, '250'} end
local period = 1000 / (rate * part)
local depth = math.max(1, burst * part) * period
local due, at = string.match(redis.call('HGET', KEYS[2], 'due') or '', '^(%S+) (%S+)$')
local grown = tonumber(state.grown)
due, at = tonumber(due or '0'), tonumber(at or '-1')
if at < 0 then
  due = now + depth
elseif at < grown then
  due = math.max(due, grown + depth)
end
-- Not later than an empty bucket: the part may have been smaller.
due = math.min(math.max(due, now), now + depth)
local granted = math.min(want, math.floor((now + depth - due) / period + 1e-6))
due = due + granted * period
redis.call('HSET', KEYS[2], 'due', string.format('%.3f %.3f', due, now))
return {granted, string.format('%.3f', math.max(0, due + period - now - depth))}";

/// The scripts as they are sent, with the time that they go by.
pub(super) struct Scripts {
    beat: String,
    permits: String,
}

impl Scripts {
    /// Scripts that go by the time that `now` sets and the run that `run` does.
    pub(super) fn new(now: &str, run: &str) -> Self {
        Self {
            beat: [now, run, READ, BEAT].concat(),
            permits: [now, READ, PERMITS].concat(),
        }
    }
}

/// The reply to a beat: time, epoch, share, live replicas.
type ShareReply = (i64, u64, u32, u32);

/// A replica, as the scripts know it.
pub(super) struct MemberId<'a> {
    pub(super) name: &'a str,
    pub(super) instance: u64,
    pub(super) forget_after: Duration,
}

impl Scripts {
    /// The beat of `member` that tells `report`.
    pub(super) fn beat(
        &self,
        key: &str,
        member: &MemberId<'_>,
        report: &Report,
        leaves: bool,
    ) -> redis::Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(&self.beat).arg(1).arg(key);
        command
            .arg(member.name)
            .arg(format!("{:016x}", member.instance))
            .arg(report.sequence)
            .arg(report.share)
            .arg(report.epoch)
            .arg(report.acked)
            // Lua's numbers are exact up to 2^53, and this is compared as text.
            .arg(random().unwrap_or(1).max(1))
            .arg(u64::try_from(member.forget_after.as_millis()).unwrap_or(u64::MAX >> 12))
            .arg(if leaves { "1" } else { "0" })
            .arg(if report.held { "1" } else { "0" });
        command
    }

    /// The command that asks for permits of the limit `key`.
    pub(super) fn permits(&self, shares: &str, key: &str, ask: &PermitAsk) -> redis::Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(&self.permits).arg(2).arg(shares).arg(key);
        command.arg(ask.per_second).arg(ask.burst).arg(ask.want);
        command
    }
}

impl RedisLevel {
    /// Keeps `joint` in touch with the level and answers what is asked of it, until the limits are
    /// gone. Within a runtime.
    pub fn keep_limits(
        self: &Arc<Self>,
        joint: &Arc<JointLimits>,
        asked: mpsc::Receiver<JointAsk>,
        forget_after: Duration,
    ) {
        let keeper = Arc::new(Keeper {
            level: self.clone(),
            scripts: Scripts::new(NOW, RUN),
            forget_after,
        });
        tokio::spawn(beats(keeper.clone(), Arc::downgrade(joint)));
        tokio::spawn(answers(keeper, Arc::downgrade(joint), asked));
    }
}

/// Speaks with the level about limits.
struct Keeper {
    level: Arc<RedisLevel>,
    scripts: Scripts,
    forget_after: Duration,
}

async fn beats(keeper: Arc<Keeper>, joint: Weak<JointLimits>) {
    let mut misses = 0;
    while let Some(joint) = joint.upgrade() {
        match keeper.report(&joint, false).await {
            Ok(()) => {
                if misses >= MISSES {
                    info!("limits are kept together with other replicas again");
                }
                misses = 0;
            }
            Err(failure) => {
                misses += 1;
                if misses == MISSES {
                    warn!("limits are not kept together with other replicas: {failure}");
                }
            }
        }
        drop(joint);
        let jitter = random().unwrap_or_default() % 30;
        tokio::time::sleep(EVERY + Duration::from_millis(jitter)).await;
    }
}

async fn answers(
    keeper: Arc<Keeper>,
    joint: Weak<JointLimits>,
    mut asked: mpsc::Receiver<JointAsk>,
) {
    while let Some(ask) = asked.recv().await {
        let (keeper, joint) = (keeper.clone(), joint.clone());
        tokio::spawn(async move {
            // Whoever asked may not wait for it any more.
            match ask {
                JointAsk::Permits(ask) => {
                    let permits = keeper.permits(&ask).await;
                    let _ = ask.answer.send(permits);
                }
                JointAsk::Leave(done) => {
                    if let Some(joint) = joint.upgrade() {
                        let _ = keeper.report(&joint, true).await;
                    }
                    let _ = done.send(());
                }
            }
        });
    }
}

impl Keeper {
    async fn report(&self, joint: &JointLimits, leaves: bool) -> Result<(), LevelFailure> {
        let level = &self.level;
        let member = MemberId {
            name: &level.settings.name,
            instance: level.instance,
            forget_after: self.forget_after,
        };
        let sent = level.clock.monotonic();
        let report = joint.report();
        let shares = level.together("shares");
        let command = self.scripts.beat(&shares, &member, &report, leaves);
        let reply = timeout(LATEST_REPLY, level.ask::<ShareReply>(&command));
        let (time, epoch, share, live) = reply.await.map_err(|_| LevelFailure::Timeout)??;
        let verdict = ShareVerdict {
            time,
            epoch,
            share,
            live,
        };
        match joint.replied(verdict, sent) {
            true => Ok(()),
            false => Err(LevelFailure::Timeout),
        }
    }

    async fn permits(&self, ask: &PermitAsk) -> Result<Permits, LevelFailure> {
        let level = &self.level;
        let name = level.names.upstream(ask.upstream.as_bytes()).0;
        let name: String = name.iter().map(|b| format!("{b:02x}")).collect();
        let key = level.together(&format!("limit:{name}"));
        let command = self.scripts.permits(&level.together("shares"), &key, ask);
        let reply = timeout(PERMITS_LAST, level.ask::<(u32, f64)>(&command));
        let (granted, wait) = reply.await.map_err(|_| LevelFailure::Timeout)??;
        Ok(Permits {
            granted,
            wait: Duration::try_from_secs_f64(wait / 1000.0).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests;
