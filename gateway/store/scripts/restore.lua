-- Write the record of a running turn again after the store has lost it, and what stands with it: its place among the
-- running turns, its conversation's lock and question, its idempotency record. Its log is written by the owner anew.
-- KEYS: conversation, turn, log, idempotency record, running turns
-- ARGV: turn id, conversation id, owner, idempotency key given (0/1), body hash, key prefix, lease ms, live ttl s,
--       idempotency ttl s, the user's message as JSON, worker, persona, epoch, ordinal, messages before, last message id,
--       trace
-- Returns 1 when it was written, 0 when there is a record.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local turn_id, prefix = ARGV[1], ARGV[6]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[2], 'conversation', ARGV[2], 'owner', ARGV[3], 'persona', ARGV[12], 'state', 'running',
  'epoch', ARGV[13], 'worker', ARGV[11], 'lease', now_ms + tonumber(ARGV[7]), 'before', ARGV[15], 'last', ARGV[16],
  'trace', ARGV[17])
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('DEL', KEYS[3])
redis.call('ZADD', KEYS[5], now_ms + tonumber(ARGV[7]), turn_id)
redis.call('EXPIRE', KEYS[5], ARGV[8])
if ARGV[4] == '1' then redis.call('SET', KEYS[4], turn_id .. ' ' .. ARGV[5], 'EX', ARGV[9], 'NX') end

-- The conversation's record, where the store still has it, is the one from just before this turn, unless another turn
-- has begun since: then that one keeps the lock, and this one goes on beside it.
local conversation = redis.call('HMGET', KEYS[1], 'owner', 'active', 'messages')
if conversation[1] == ARGV[3] then
  local active = conversation[2]
  local taken = active and active ~= turn_id and redis.call('HGET', prefix .. 'turn:' .. active, 'state') == 'running'
  if not taken then
    redis.call('HSET', KEYS[1], 'active', turn_id)
    local before = tonumber(ARGV[15])
    if tonumber(conversation[3] or '0') == before then
      redis.call('HSET', KEYS[1], string.format('m:%06d', before), ARGV[10], 'messages', before + 1, 'ordinal', ARGV[14])
    end
  end
end
return 1
