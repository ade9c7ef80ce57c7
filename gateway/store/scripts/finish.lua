-- Write a turn's last entries, end it, free its conversation, extend the cached transcript, and settle its tokens.
-- KEYS: turn, log, conversation, running turns, settlements, unsettled turns, charge (see charges.lua)
-- ARGV: epoch, turn id, final state, log ttl s, conversation ttl s, message id or '', settlement as JSON,
--       ms until its tokens are looked up (0: they are known), ledger ttl ms,
--       the position that the entries follow, entry count n, n times (position, event name, data),
--       then the transcript's new messages as JSON
-- Returns {1}, also when the same ending was written before; else as append: {0}, {-1} or {-2, last position}.
local turn = redis.call('HMGET', KEYS[1], 'epoch', 'state')
if not turn[1] then return {-1} end
if turn[1] ~= ARGV[1] then return {0} end
if turn[2] ~= 'running' then return {turn[2] == ARGV[3] and 1 or 0} end

local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
if last < tonumber(ARGV[10]) then return {-2, last} end
local messages_at = 12 + 3 * tonumber(ARGV[11])
for i = 12, messages_at - 1, 3 do
  if tonumber(ARGV[i]) > last then
    redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'd', ARGV[i + 2])
  end
end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'message_id', ARGV[6])
redis.call('HDEL', KEYS[1], 'lease', 'worker', 'stop')
-- The record outlives the log, so that a late reader is told that the history is gone, not that it never was.
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('ZREM', KEYS[4], ARGV[2])

local now = now_us()
local now_ms = math.floor(now / 1000)
if ARGV[8] == '0' then
  redis.call('XADD', KEYS[5], 'MINID', '~', now_ms - tonumber(ARGV[9]), '*', 's', ARGV[7])
  redis.call('PEXPIRE', KEYS[5], ARGV[9])
else
  redis.call('HSET', KEYS[1], 'settlement', ARGV[7])
  redis.call('ZADD', KEYS[6], now_ms + tonumber(ARGV[8]), ARGV[2])
  redis.call('EXPIRE', KEYS[6], ARGV[5])  -- as long as the newest turn's record, which holds the settlement
end
settle_charge(KEYS[7], ARGV[2], cjson.decode(ARGV[7]), now, ARGV[8] == '0')

-- A transcript that has left the cache is read back from the vendor whole, never rebuilt from its end.
-- One that was read back while the turn ran may or may not hold its answer: it goes, and is read again when needed.
local conversation = redis.call('HMGET', KEYS[3], 'active', 'messages')
if not conversation[1] then
  redis.call('DEL', KEYS[3])
elseif conversation[1] == ARGV[2] then
  local count, fields = tonumber(conversation[2] or '0'), {}
  for i = messages_at, #ARGV do
    fields[#fields + 1], fields[#fields + 2] = string.format('m:%06d', count), ARGV[i]
    count = count + 1
  end
  if ARGV[6] ~= '' then fields[#fields + 1], fields[#fields + 2] = 'last', ARGV[6] end
  redis.call('HSET', KEYS[3], 'messages', count, unpack(fields))
  redis.call('HDEL', KEYS[3], 'active')
  redis.call('EXPIRE', KEYS[3], ARGV[5])
end
return {1}
