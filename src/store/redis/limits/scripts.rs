//! The scripts that keep shares, leases and limits.

use std::time::Duration;

use super::budget_scripts::{LEASES, WINDOWS};
use crate::store::joint::PermitAsk;
use crate::store::lease::LeaseReport;
use crate::store::redis::random;
use crate::store::standing::Report;

/// The level's time, in milliseconds.
pub(super) const NOW: &str = "
local t = redis.call('TIME')
local now = t[1] * 1000 + t[2] / 1000
";

/// Which run of the server it is: after another one began, or another server took its place, data
/// may be missing.
pub(super) const RUN: &str = "
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ''
";

/// Reads the state of the replicas: `KEYS[1]` is a hash of the state of all and of `m:NAME`, one
/// for each, which is instance, number of its last beat, when it was heard, the time of the last
/// reply that it got, its claim (the larger of the share that it believes in and the one it was
/// granted), and whether that is from before data was lost and not confirmed yet.
pub(super) const READ: &str = "
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
/// to begin with, milliseconds until a silent replica is forgotten, whether it leaves, whether
/// it ever had a share, and whether the one it believes in has lapsed. The number of rests follows, and
/// these: see [`RESTS`]; then budgets: see [`LEASES`].
const BEAT: &str = "
local name, instance, sequence = ARGV[1], ARGV[2], tonumber(ARGV[3])
local believed, of, acked = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local forget, leaves, lapsed = tonumber(ARGV[8]), ARGV[9] == '1', ARGV[11] == '1'
-- Where budgets begin.
local first = 13 + 2 * tonumber(ARGV[12])
now = math.floor(now)
local before = together(tonumber(state.total or '0'))
local lost = not state.epoch
-- It has begun anew, knows less than a replica has seen of it, or its clock went back.
if state.epoch and (run ~= state.run or acked > seen or now < seen) then
  lost = true
end
-- Leases were lost without the shares, or the other way round.
if redis.call('HGET', KEYS[2], 'epoch') ~= state.epoch then lost = true end
if lost then
  for i = 1, #fields, 2 do redis.call('HDEL', KEYS[1], fields[i]) end
  local held = redis.call('HGETALL', KEYS[2])
  for i = 1, #held, 2 do redis.call('HDEL', KEYS[2], held[i]) end
  redis.call('HSET', KEYS[2], 'epoch', ARGV[7])
  members = {}
  before = 0
  state = {epoch = ARGV[7], born = number(now), known = '0', fresh = '0', total = '0',
    grown = number(now), run = run, met = '0', latest = '0 0', resumed = '0 0'}
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
";

/// The part of a beat that changes shares: see [`BEAT`]. What windows were begun with before was noted by
/// [`WINDOWS`].
///
/// A share that has lapsed may be another's, unless the level was away from all. This is so if all who
/// have reported what they had before data was lost had their last replies at about the same time, in one
/// epoch: a grant then left room for all whom the level had heard within `forget_after`. `latest` is the
/// epoch and time of the last of these replies, `resumed` those of the first whose share was resumed.
/// Until all who are there have had time to report, the reply is that nothing is decided, and who asked
/// goes on as before.
const SHARES: &str = "
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
local unconfirmed = of ~= state.epoch and not whole and (mine == nil or mine.pending == '1')
local latest_of, latest = string.match(state.latest or '0 0', '^(%S+) (%S+)$')
if unconfirmed and believed > 0 and acked > tonumber(latest) then
  latest_of, latest = of, number(acked)
  state.latest = latest_of .. ' ' .. latest
end
local resumed, undecided = false, false
if lapsed then
  local resumed_of, eldest = string.match(state.resumed or '0 0', '^(%S+) (%S+)$')
  local claimed = believed
  for other, member in pairs(members) do
    if other ~= name then claimed = claimed + member.claim end
  end
  resumed = unconfirmed and believed > 0 and acked <= now and claimed <= 1000000
    and of == latest_of and latest - acked <= forget / 2
    and (resumed_of == '0' or of == resumed_of and acked - eldest <= forget / 2)
  if resumed and now - born <= math.max(3000, forget / 10) and not leaves then
    resumed, undecided = false, true
  elseif not resumed then
    believed = 0
  elseif resumed_of == '0' or acked < tonumber(eldest) then
    state.resumed = of .. ' ' .. number(acked)
  end
end
if unconfirmed then
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
elseif not undecided then
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
  'latest', state.latest or '0 0', 'resumed', state.resumed or '0 0', 'seen', number(now))
";

/// Keeps the rests that upstreams have asked replicas for, in the hash `KEYS[3]` of address and time of
/// their ends. A rest is told as address and milliseconds, and so it is returned to all.
const RESTS: &str = "
for at = 13, first - 2, 2 do
  local ends = now + tonumber(ARGV[at + 1])
  if ends > tonumber(redis.call('HGET', KEYS[3], ARGV[at]) or '0') then
    redis.call('HSET', KEYS[3], ARGV[at], number(ends))
  end
end
local resting, rests = redis.call('HGETALL', KEYS[3]), {}
for i = 1, #resting, 2 do
  local rest = tonumber(resting[i + 1]) - now
  if rest > 0 then
    rests[#rests + 1] = {resting[i], number(rest)}
  else
    redis.call('HDEL', KEYS[3], resting[i])
  end
end
return {number(now), undecided and '0' or state.epoch, number(share), number(live), leases, rests}";

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
-- Of differences: the time itself is too large to add fractions of a millisecond to.
local granted = math.min(want, math.floor((depth - (due - now)) / period + 1e-6))
due = due + granted * period
redis.call('HSET', KEYS[2], 'due', string.format('%.3f %.3f', due, now))
return {granted, string.format('%.3f', math.max(0, (due - now) + period - depth))}";

/// The scripts as they are sent, with the time that they go by.
pub(super) struct Scripts {
    pub(super) beat: String,
    pub(super) permits: String,
}

impl Scripts {
    /// Scripts that go by the time that `now` sets and the run that `run` does, where clocks differ by
    /// at most `skew`.
    pub(super) fn new(now: &str, run: &str, skew: Duration) -> Self {
        let windows = WINDOWS.replace("SKEW", &skew.as_millis().to_string());
        Self {
            beat: [now, run, READ, BEAT, &windows, SHARES, LEASES, RESTS].concat(),
            permits: [now, READ, PERMITS].concat(),
        }
    }
}

/// The reply to a beat: time, epoch, or 0 if nothing is decided, share, live replicas, and of each budget
/// what is leased, what all have left, or -1 if the time is wrong, and what is leased of the next window,
/// or -1; then the addresses that rest, and for how long, in milliseconds.
pub(super) type ShareReply = (i64, u64, u32, u32, Vec<(u32, i64, i64)>, Vec<(String, i64)>);

/// The hashes that beats read and write.
pub(super) struct ShareKeys {
    pub(super) shares: String,
    pub(super) budgets: String,
    pub(super) rests: String,
}

/// A replica, as the scripts know it.
pub(super) struct MemberId<'a> {
    pub(super) name: &'a str,
    pub(super) instance: u64,
    pub(super) forget_after: Duration,
}

impl Scripts {
    /// The beat of `member` that tells `report`, the `rests` of addresses and, by the names of their
    /// budgets, `leases`.
    pub(super) fn beat(
        &self,
        keys: &ShareKeys,
        member: &MemberId<'_>,
        report: &Report,
        rests: &[(String, Duration)],
        leases: &[(String, LeaseReport)],
        leaves: bool,
    ) -> redis::Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(&self.beat).arg(3);
        command
            .arg(&keys.shares)
            .arg(&keys.budgets)
            .arg(&keys.rests);
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
            .arg(if report.held { "1" } else { "0" })
            .arg(if report.lapsed { "1" } else { "0" })
            .arg(rests.len());
        for (address, rest) in rests {
            let rest = u64::try_from(rest.as_millis()).unwrap_or(0);
            command.arg(address).arg(rest);
        }
        for (budget, lease) in leases {
            let window = &lease.window;
            command
                .arg(format!("{budget}-{}", window.per))
                .arg(window.index)
                .arg(window.start)
                .arg(window.end)
                .arg(window.allowed)
                .arg(lease.used)
                .arg(lease.leased)
                .arg(lease.begins)
                .arg(lease.want)
                .arg(lease.restored.map(|of| format!("{of:016x}")).join(" "))
                .arg(lease.unless_lapsed.0)
                .arg(lease.unless_lapsed.1);
        }
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
