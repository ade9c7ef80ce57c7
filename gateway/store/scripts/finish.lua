-- Write a turn's last entries, end it, free its conversation and extend the cached transcript.
-- KEYS: turn, log, conversation
-- ARGV: epoch, turn id, final state, log ttl s, conversation ttl s, entry count n,
--       n times (position, event name, data), then the transcript's new messages as JSON
-- Returns 1, also when the same ending was written before; 0 when another worker owns the turn; -1 when the store has
-- lost the turn.
local turn = redis.call('HMGET', KEYS[1], 'epoch', 'state')
if not turn[1] then return -1 end
if turn[1] ~= ARGV[1] then return 0 end
if turn[2] ~= 'running' then return turn[2] == ARGV[3] and 1 or 0 end

local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
local messages_at = 7 + 3 * tonumber(ARGV[6])
for i = 7, messages_at - 1, 3 do
  if tonumber(ARGV[i]) > last then
    redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'd', ARGV[i + 2])
  end
end
redis.call('HSET', KEYS[1], 'state', ARGV[3])
redis.call('HDEL', KEYS[1], 'lease')
-- The record outlives the log, so that a late reader is told that the history is gone, not that it never was.
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[4])

-- A transcript that has left the cache is read back from the vendor whole, never rebuilt from its end.
-- One that was read back while the turn ran may or may not hold its answer: it goes, and is read again when needed.
local active = redis.call('HGET', KEYS[3], 'active')
if not active then
  redis.call('DEL', KEYS[3])
elseif active == ARGV[2] then
  redis.call('HDEL', KEYS[3], 'active')
  local count = tonumber(redis.call('HGET', KEYS[3], 'messages') or '0')
  for i = messages_at, #ARGV do
    redis.call('HSET', KEYS[3], string.format('m:%06d', count), ARGV[i])
    count = count + 1
  end
  redis.call('HSET', KEYS[3], 'messages', count)
  redis.call('EXPIRE', KEYS[3], ARGV[5])
end
return 1
