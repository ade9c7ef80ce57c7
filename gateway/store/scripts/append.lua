-- Append entries to the logs of some turns and renew their owner's leases.
-- KEYS: turn, log, followers of each turn
-- ARGV: lease ms (-1: give them up), then of each turn: epoch, the position that its entries follow, their number, and
--       position, event name, data of each entry
-- Returns for each turn {1, stop flag or '', workers that follow}; else {0} when the epoch is no longer the owner's or
-- the turn has ended, {-1} when the store has lost the turn, {-2, log's last position} when the log ends before the
-- entries begin. Entries at or before the log's last position are skipped: sending a batch twice stores it once.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now_ms + tonumber(ARGV[1])
local arg = 2

local function append(turn_key, log, followers)
  local epoch, after, first = ARGV[arg], tonumber(ARGV[arg + 1]), arg + 3
  local last_arg = first + 3 * tonumber(ARGV[arg + 2]) - 1
  arg = last_arg + 1
  local turn = redis.call('HMGET', turn_key, 'epoch', 'state', 'stop')
  if not turn[1] then return {-1} end
  if turn[1] ~= epoch or turn[2] ~= 'running' then return {0} end
  redis.call('HSET', turn_key, 'lease', lease)
  if last_arg >= first then
    local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
    if last < after then return {-2, last} end
    for i = first, last_arg, 3 do
      if tonumber(ARGV[i]) > last then
        redis.call('XADD', log, ARGV[i] .. '-0', 'e', ARGV[i + 1], 'd', ARGV[i + 2])
      end
    end
    -- A log that is written again after it was lost must end with its turn's record, as the one that claim began.
    if last == 0 then
      local ttl_ms = redis.call('PTTL', turn_key)
      if ttl_ms > 0 then redis.call('PEXPIRE', log, ttl_ms) end
    end
  end
  return {1, turn[3] or '', redis.call('ZRANGEBYSCORE', followers, now_ms, '+inf')}
end

local answers = {}
for i = 1, #KEYS, 3 do
  answers[#answers + 1] = append(KEYS[i], KEYS[i + 1], KEYS[i + 2])
end
return answers
