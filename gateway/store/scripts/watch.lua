-- Have a worker told of every turn that begins in a conversation; to be said again before the time is up.
-- KEYS: watchers, conversation    ARGV: worker, life ms (0: no more)
-- Returns {turn, owner} of the conversation's active turn, or an empty list.
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return {}
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now_ms)
redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
local active = redis.call('HMGET', KEYS[2], 'active', 'owner')
return active[1] and active or {}
