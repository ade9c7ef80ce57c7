-- Append entries to a turn's log and renew its owner's lease.
-- KEYS: turn, log, followers
-- ARGV: epoch, lease ms (-1: give it up), the position that the entries follow, then position, event name, data for each entry
-- Returns {1, stop flag or '', workers that follow}; else {0} when the epoch is no longer the owner's or the turn has
-- ended, {-1} when the store has lost the turn, {-2, log's last position} when the log ends before the entries begin.
-- Entries at or before the log's last position are skipped: sending a batch twice stores it once.
local turn = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'stop')
if not turn[1] then return {-1} end
if turn[1] ~= ARGV[1] or turn[2] ~= 'running' then return {0} end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'lease', now_ms + tonumber(ARGV[2]))

if #ARGV > 3 then
  local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
  if last < tonumber(ARGV[3]) then return {-2, last} end
  for i = 4, #ARGV, 3 do
    if tonumber(ARGV[i]) > last then
      redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'd', ARGV[i + 2])
    end
  end
  -- A log that is written again after it was lost must end with its turn's record, as the one that claim began.
  if last == 0 then
    local ttl_ms = redis.call('PTTL', KEYS[1])
    if ttl_ms > 0 then redis.call('PEXPIRE', KEYS[2], ttl_ms) end
  end
end
return {1, turn[3] or '', redis.call('ZRANGEBYSCORE', KEYS[3], now_ms, '+inf')}
