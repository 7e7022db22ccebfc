//! The parts of a beat that divide budgets.
//!
//! For each window (an hour, day or month of a budget) this has to hold: all that replicas were
//! granted of it or may use of it unseen, those that are gone included, is never more than is allowed.
//!
//! 1. A replica may begin a window of which it was told nothing with the least share that it had
//!    lately (`Standing::own_share`). Shares sum to 1 at any one time, so this does too for all that begin
//!    the same window, whenever they do and whatever becomes of their shares then.
//! 2. A window is noted before any share moves once a replica may have begun it by its clock: the first
//!    beat that comes then gives each replica an entry of what its share is worth (`begin`, `follow`).
//!    From then on entries change only by what is told.
//! 3. An entry goes down only as its replica reports that it holds less, or ends. One that is gone has
//!    used all of its entry, unless its successor knows better.
//! 4. Granted is what no entry has.
//! 5. After data was lost, a window that may have been noted before is divided among those only who come
//!    with what they had of it: what each holds, or would begin it with. That counts once it is said
//!    knowing of the loss: what was sent before may be out of date. If nobody turns out to have shared limits
//!    before, all of it is divided, and what replicas have said at all is theirs.
//! 6. A lease that was begun with a share that may be another's by then counts as no more than what was
//!    used of it: it adds nothing. The exception is a share that is found to be nobody else's after data
//!    was lost (`scripts`).
//! 7. Nobody begins a window of a budget with its share of which the level was never told, as the level
//!    could not note it (`store::lease`).

/// Reads all windows, notes those that may have begun, and forgets those that are over. `KEYS[2]` is a
/// hash of `w:BUDGET:INDEX`, one for each hour, day or month of a budget, and `e:BUDGET:INDEX:NAME`, one
/// for each replica that may have used some of it.
///
/// A window has its start and end, the part of it in millionths that may be given away, what was
/// reported besides after data was lost, what replicas that are gone have used, when its budget was
/// told last, and the most that is allowed. A replica's entry has its instance (after a `-` once that
/// has ended), what it holds, what it has used of that, whether that is from before data was lost and
/// not confirmed yet (then it counts for nothing), and what it lacks.
pub(super) const WINDOWS: &str = "
-- By how much clocks may differ.
local skew = SKEW
-- Windows that begin before that may have been noted before data was lost, by another clock.
local unknown_until = tonumber(state.born) + 2 * skew
local windows, newest = {}, {}
local function window_of(budget, index)
  local id = budget .. ':' .. number(index)
  windows[id] = windows[id] or {id = id, budget = budget, index = index, entries = {}}
  return windows[id]
end
local rows = redis.call('HGETALL', KEYS[2])
for i = 1, #rows, 2 do
  local budget, index = string.match(rows[i], '^w:([^:]+):(%d+)$')
  if budget then
    local a, b, c, d, e, f, g = string.match(rows[i + 1],
      '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)$')
    local window = window_of(budget, tonumber(index))
    window.start, window.last, window.part = tonumber(a), tonumber(b), tonumber(c)
    window.known, window.ended, window.told = tonumber(d), tonumber(e), tonumber(f)
    window.allowed = tonumber(g)
  else
    local who
    budget, index, who = string.match(rows[i], '^e:([^:]+):(%d+):(.*)$')
    if budget then
      local a, b, c, d, e = string.match(rows[i + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
      window_of(budget, tonumber(index)).entries[who] = {instance = a, claim = tonumber(b),
        used = tonumber(c), pending = d, want = tonumber(e)}
    end
  end
end
local function keep(window)
  redis.call('HSET', KEYS[2], 'w:' .. window.id, number(window.start) .. ' ' .. number(window.last)
    .. ' ' .. number(window.part) .. ' ' .. number(window.known) .. ' ' .. number(window.ended)
    .. ' ' .. number(window.told) .. ' ' .. number(window.allowed))
end
local function keep_entry(window, who)
  local entry = window.entries[who]
  redis.call('HSET', KEYS[2], 'e:' .. window.id .. ':' .. who, entry.instance .. ' '
    .. number(entry.claim) .. ' ' .. number(entry.used) .. ' ' .. entry.pending .. ' '
    .. number(entry.want))
end
-- What a share is worth.
local function worth(share, allowed) return math.floor(share * allowed / 1000000) end
-- Notes a window that replicas may have begun with the shares that they have until now.
local function begin(budget, index, start, last, allowed, told)
  local window = window_of(budget, index)
  window.start, window.last, window.allowed, window.told = start, last, allowed, told
  window.part, window.known, window.ended = 0, 0, 0
  if state.fresh == '1' or start >= unknown_until then
    window.part = tonumber(state.total)
    for who, member in pairs(members) do
      if counts(member, window.part) and member.claim > 0 then
        window.entries[who] = {instance = member.instance, claim = worth(member.claim, allowed),
          used = 0, pending = '0', want = 0}
        keep_entry(window, who)
      end
    end
  end
  keep(window)
  return window
end
-- Notes those after `window` that replicas may have begun by their clocks.
local function follow(window)
  local length = window.last - window.start
  local over = math.max(0, math.floor((now - skew - window.last) / length))
  local index, start = window.index + 1 + over, window.last + over * length
  while start <= now + skew do
    newest[window.budget] = begin(window.budget, index, start, start + length, window.allowed,
      window.told)
    index, start = index + 1, start + length
  end
end
for at = first, #ARGV - 11, 12 do
  local budget, index, allowed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
  local start, last = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local window = windows[budget .. ':' .. number(index)]
  -- Who names another time than ours may be wrong about it.
  if not window and start <= now + skew and last >= now - skew then
    window = begin(budget, index, start, last, allowed, now)
  end
  if window then
    local entry = window.entries[name]
    if entry and entry.instance == '-' .. instance then
      return redis.error_reply('a beat came late')
    end
    window.start, window.last, window.told = start, last, now
    window.allowed = math.max(window.allowed, allowed)
  end
end
for _, window in pairs(windows) do
  local other = newest[window.budget]
  if not other or other.index < window.index then newest[window.budget] = window end
end
local latest = {}
for _, window in pairs(newest) do latest[#latest + 1] = window end
for _, window in ipairs(latest) do
  -- While nobody could be heard, no time has passed.
  if away and window.told < now then
    window.told = window.told + now - seen
    keep(window)
  end
  -- Of a budget that nobody tells any more, nobody has a lease.
  if now - window.told <= forget then follow(window) end
end
for id, window in pairs(windows) do
  if now - window.last > skew then
    redis.call('HDEL', KEYS[2], 'w:' .. id)
    for who in pairs(window.entries) do redis.call('HDEL', KEYS[2], 'e:' .. id .. ':' .. who) end
    windows[id] = nil
  end
end
";

/// Divides what is left of the windows that the beat tells. Each budget is told by window, number of
/// that, start, end, what is allowed, what the replica has used, what it holds, what it would begin the
/// next window with, what it lacks, the predecessors of which it knows what they used, and what it holds and
/// would begin the next window with if its share, that has lapsed, is nobody else's. Returned are, for
/// each, what it holds from now on, what all have left, or -1 if the time is wrong, and what it holds of
/// the next window, or -1 if there is nothing to tell of that.
pub(super) const LEASES: &str = "
-- The entry of this replica in a window of which it used and holds so much, where it is counted.
local function enter(window, used, held, restored)
  -- Nobody has shared limits before.
  if state.fresh == '1' then window.part, window.known = 1000000, 0 end
  local entry = window.entries[name]
  if entry and entry.instance ~= instance then
    local knows = string.find(restored, string.match(entry.instance, '^%-?(.*)$'), 1, true)
    if knows and used >= entry.used and entry.pending == '0' then
      -- It goes on where its predecessor ended.
      held = math.max(held, entry.claim)
    else
      -- Its predecessor may have used all that it held.
      if entry.pending == '0' then window.ended = window.ended + entry.claim end
      entry = nil
    end
  end
  local sure = of == state.epoch or window.part >= 1000000
  if not entry then
    entry = {pending = not sure and held > 0 and '1' or '0'}
    if sure and window.part < 1000000 then window.known = window.known + held end
  elseif entry.pending == '1' and sure then
    entry.pending = '0'
    if window.part < 1000000 then window.known = window.known + math.min(held, entry.claim) end
  end
  entry.instance, entry.used, entry.want = instance, entry.used or 0, 0
  window.entries[name] = entry
  return entry, held
end
local function all(window, allowed)
  return math.min(allowed, worth(window.part, allowed) + window.known) - window.ended
end
-- What is pending is no part of what is divided yet, unless that is the whole.
local function divided(window, entry) return entry.pending == '0' or window.part >= 1000000 end
-- What nobody but this replica holds or has used up.
local function free(window, allowed)
  local rest = all(window, allowed)
  for who, entry in pairs(window.entries) do
    if who ~= name and divided(window, entry) then rest = rest - entry.claim end
  end
  return rest
end
local leases = {}
for at = first, undecided and 0 or #ARGV - 11, 12 do
  local budget, index, allowed = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
  local used, held, begins = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6]), tonumber(ARGV[at + 7])
  local want, restored = tonumber(ARGV[at + 8]), ARGV[at + 9]
  if resumed then held, begins = tonumber(ARGV[at + 10]), tonumber(ARGV[at + 11]) end
  local window = windows[budget .. ':' .. number(index)]
  local following = windows[budget .. ':' .. number(index + 1)]
  local lease, left, after = used, -1, -1
  if window then
    local entry
    entry, held = enter(window, used, held, restored)
    entry.used, entry.want = used, want
    local wanted, sharing, rest = 0, 0, free(window, allowed)
    left = all(window, allowed)
    for who, other in pairs(window.entries) do
      if divided(window, other) then
        local member = members[who]
        local alive = who == name or (member ~= nil and member.instance == other.instance
          and now - member.heard <= 3000)
        -- Who is silent may use all that it holds.
        left = left - (alive and other.used or other.claim)
        if alive then sharing = sharing + 1 end
        if alive and who ~= name then wanted = wanted + other.want end
      end
    end
    left = math.max(0, left)
    local more = math.floor(math.max(0, left - wanted) / math.max(1, sharing))
    if want > 0 then more = math.max(more, math.min(want, left)) end
    lease = math.max(used, math.min(used + more, rest))
    if entry.pending == '1' then
      -- Unless others have said that they hold it: they were given it when this replica was unknown.
      local others = all(window, allowed) - rest
      lease = math.max(used, math.min(held, allowed - window.ended - others))
      -- Others may have been given it, and not be heard now.
      if lapsed and not resumed then lease = used end
    end
    entry.claim = math.max(held, lease)
    if leaves then lease, entry.claim, entry.want = used, used, 0 end
    keep_entry(window, name)
    keep(window)
  end
  if following then
    local known = following.entries[name]
    local shared = state.fresh == '1' or following.part >= 1000000
    -- All of it is divided without the share that this replica had before data was lost.
    if shared and of ~= state.epoch then begins = math.min(begins, known and known.claim or 0) end
    local entry, holds = enter(following, 0, begins, restored)
    if entry.pending == '1' then
      entry.claim = holds
    elseif leaves then
      entry.claim, after = entry.used, entry.used
    else
      -- What it was told or may begin it with, and its share of what is left.
      if known == entry then holds = math.max(holds, entry.claim) end
      entry.claim = math.max(holds, math.min(worth(share, allowed), free(following, allowed)))
      after = entry.claim
    end
    keep_entry(following, name)
    keep(following)
  end
  leases[#leases + 1] = {number(lease), number(left), number(after)}
end
-- What it sent before and comes late is not to change anything.
for _, window in pairs(leaves and windows or {}) do
  local entry = window.entries[name]
  if entry and entry.instance == instance then
    entry.instance = '-' .. instance
    keep_entry(window, name)
  end
end
";
