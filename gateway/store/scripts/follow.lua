-- Say that a worker has readers of a turn that another owns; to be said again before the time is up.
-- KEYS: followers, turn, log    ARGV: worker, life ms (0: it has none any more), turn id, inbox prefix
-- Returns {state, leased 0/1, last position of the log}, or an empty list when there is no such turn. The owner is told
-- when what it knows has changed.
local turn = redis.call('HMGET', KEYS[2], 'state', 'lease', 'worker')
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local changed
if ARGV[2] == '0' then
  changed = redis.call('ZREM', KEYS[1], ARGV[1]) == 1
else
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now_ms)
  changed = redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[2]), ARGV[1]) == 1
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if not turn[1] then return {} end
if changed and turn[1] == 'running' and turn[3] and turn[3] ~= ARGV[1] then
  local workers = redis.call('ZRANGEBYSCORE', KEYS[1], now_ms, '+inf')
  redis.call('PUBLISH', ARGV[4] .. turn[3], cjson.encode({'followers', ARGV[3], table.concat(workers, ' ')}))
end
local newest = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
return {turn[1], (turn[2] and tonumber(turn[2]) >= now_ms) and 1 or 0, last}
