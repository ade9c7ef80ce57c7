-- Make a turn the one active turn of its conversation and write its first event, all or nothing.
-- KEYS: conversation, turn, log, idempotency record, owner's list of conversations
-- ARGV: turn id, conversation id, owner, idempotency key given (0/1), body hash,
--       key prefix, lease ms, live ttl s, idempotency ttl s, conversation ttl s, the user's message as JSON
-- Returns {outcome, turn id, ordinal}; outcomes: started repeated mismatched busy orphaned unknown.
local turn_id, conversation_id, owner = ARGV[1], ARGV[2], ARGV[3]
local keyed, body_hash, prefix = ARGV[4] == '1', ARGV[5], ARGV[6]

if keyed then
  local known = redis.call('GET', KEYS[4])
  if known then
    local first, hash = string.match(known, '^(%S+) (%S+)$')
    if hash ~= body_hash then return {'mismatched', first, 0} end
    return {'repeated', first, 0}
  end
end

if redis.call('HGET', KEYS[1], 'owner') ~= owner then return {'unknown', '', 0} end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local active = redis.call('HGET', KEYS[1], 'active')
if active then
  local seen = redis.call('HMGET', prefix .. 'turn:' .. active, 'state', 'lease')
  if seen[1] == 'running' then
    if tonumber(seen[2]) >= now_ms then return {'busy', active, 0} end
    return {'orphaned', active, 0}
  end
end

local ordinal = redis.call('HINCRBY', KEYS[1], 'ordinal', 1)
local count = redis.call('HINCRBY', KEYS[1], 'messages', 1)
redis.call('HSET', KEYS[1], string.format('m:%06d', count - 1), ARGV[11])
redis.call('HSET', KEYS[1], 'active', turn_id)
redis.call('EXPIRE', KEYS[1], ARGV[10])
redis.call('ZADD', KEYS[5], now_ms, conversation_id)
redis.call('EXPIRE', KEYS[5], ARGV[10])
redis.call('HSET', KEYS[2], 'conversation', conversation_id, 'owner', owner, 'state', 'running',
  'epoch', 1, 'lease', now_ms + tonumber(ARGV[7]))
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('XADD', KEYS[3], '1-0', 'e', 'turn.started', 'd',
  '{"turn_id":"' .. turn_id .. '","conversation_id":"' .. conversation_id .. '","ordinal":' .. ordinal .. '}')
redis.call('EXPIRE', KEYS[3], ARGV[8])
if keyed then redis.call('SET', KEYS[4], turn_id .. ' ' .. body_hash, 'EX', ARGV[9]) end
return {'started', turn_id, ordinal}
