-- Append entries to the logs of some turns and renew their owner's leases.
-- KEYS: turn, log, followers of each turn
-- ARGV: lease ms (-1: give them up), then as MessagePack an array with one of each turn: epoch, the position that its
--       entries follow, how many entries the log has if its last is at that position (-1: not known), and id, event name,
--       data of each entry
-- Returns for each turn 1 where there is nothing to tell, or {1, stop flag or '', workers that follow, entries that the
-- log has (-1: not known), its last position}; else {0} when the epoch is no longer the owner's or the turn has ended, {-1} when the store has lost the turn,
-- {-2, log's last position} when the log ends before the entries begin. Entries at or before the log's last position are
-- skipped: sending a batch twice stores it once.
local call = redis.call
local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local lease_ms = tonumber(ARGV[1])
local lease = string.format('%d', now_ms + lease_ms)
local fresh_ms = now_ms + lease_ms - lease_ms / 8  -- a lease that lasts until then is not written again

local function position(id) return tonumber(string.match(id, '^%d+')) end

-- Append what a log lacks that may not be as its owner thinks. Returns its last position, and whether it ends too early.
local function append_unsure(turn_key, log, entries)
  local newest = call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local last = newest and position(newest[1]) or 0
  if last < entries[2] then return last, true end
  for i = 4, #entries, 3 do
    if position(entries[i]) > last then
      call('XADD', log, entries[i], 'e', entries[i + 1], 'd', entries[i + 2])
    end
  end
  -- A log that is written again after it was lost must end with its turn's record, as the one that claim began.
  if last == 0 then
    local ttl_ms = call('PTTL', turn_key)
    if ttl_ms > 0 then call('PEXPIRE', log, ttl_ms) end
  end
  return math.max(last, position(entries[#entries - 2])), false
end

local function append(turn_key, log, followers, entries)
  local turn = call('HMGET', turn_key, 'epoch', 'state', 'stop', 'lease')
  if not turn[1] then return {-1} end
  if turn[1] ~= entries[1] or turn[2] ~= 'running' then return {0} end
  if lease_ms < 0 or not (turn[4] and tonumber(turn[4]) >= fresh_ms) then call('HSET', turn_key, 'lease', lease) end
  local length, last = entries[3], entries[2]
  local known = true
  if #entries > 3 then
    known = call('XLEN', log) == length
    if known then  -- the log is as its owner left it: only he adds to it, and what the store loses is its end
      for i = 4, #entries, 3 do
        call('XADD', log, entries[i], 'e', entries[i + 1], 'd', entries[i + 2])
        length = length + 1
      end
      last = position(entries[#entries - 2])
    else
      local behind
      last, behind = append_unsure(turn_key, log, entries)
      if behind then return {-2, last} end
      length = call('XLEN', log)
    end
  end
  -- Nearly always there are none, and to learn that is half as dear as to ask for them.
  local workers = call('EXISTS', followers) == 1 and call('ZRANGEBYSCORE', followers, now_ms, '+inf') or {}
  if known and not turn[3] and #workers == 0 then return 1 end
  return {1, turn[3] or '', workers, length, last}
end

local appends = cmsgpack.unpack(ARGV[2])
local answers = {}
for i = 1, #appends do
  answers[i] = append(KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i], appends[i])
end
return answers
