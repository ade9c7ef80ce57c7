-- Make a turn the one active turn of its conversation and write its first event, all or nothing.
-- KEYS: conversation, turn, log, idempotency record, owner's list of conversations, running turns,
--       watchers of the conversation
-- ARGV: turn id, conversation id, owner, idempotency key given (0/1), body hash, key prefix, lease ms, live ttl s,
--       idempotency ttl s, conversation ttl s, the user's message as JSON, worker, persona, inbox prefix, tenant
-- Returns {outcome, turn id, ordinal, messages before, last message id}; outcomes: started repeated mismatched busy
-- orphaned unknown.
local turn_id, conversation_id, owner = ARGV[1], ARGV[2], ARGV[3]
local keyed, body_hash, prefix = ARGV[4] == '1', ARGV[5], ARGV[6]
local worker = ARGV[12]

if keyed then
  local known = redis.call('GET', KEYS[4])
  if known then
    local first, hash = string.match(known, '^(%S+) (%S+)$')
    if hash ~= body_hash then return {'mismatched', first, 0, 0, ''} end
    return {'repeated', first, 0, 0, ''}
  end
end

local conversation = redis.call('HMGET', KEYS[1], 'owner', 'active', 'last')
if conversation[1] ~= owner then return {'unknown', '', 0, 0, ''} end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local active = conversation[2]
if active then
  local seen = redis.call('HMGET', prefix .. 'turn:' .. active, 'state', 'lease')
  if seen[1] == 'running' then
    if tonumber(seen[2]) >= now_ms then return {'busy', active, 0, 0, ''} end
    return {'orphaned', active, 0, 0, ''}
  end
end

local last = conversation[3] or ''
local ordinal = redis.call('HINCRBY', KEYS[1], 'ordinal', 1)
local before = redis.call('HINCRBY', KEYS[1], 'messages', 1) - 1
redis.call('HSET', KEYS[1], string.format('m:%06d', before), ARGV[11], 'active', turn_id)
redis.call('EXPIRE', KEYS[1], ARGV[10])
redis.call('ZADD', KEYS[5], now_ms, conversation_id)
redis.call('EXPIRE', KEYS[5], ARGV[10])
redis.call('HSET', KEYS[2], 'conversation', conversation_id, 'owner', owner, 'persona', ARGV[13], 'state', 'running',
  'epoch', 1, 'worker', worker, 'lease', now_ms + tonumber(ARGV[7]), 'before', before, 'last', last)
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('XADD', KEYS[3], '1-0', 'e', 'turn.started', 'd',
  '{"turn_id":"' .. turn_id .. '","conversation_id":"' .. conversation_id .. '","ordinal":' .. ordinal .. '}')
redis.call('EXPIRE', KEYS[3], ARGV[8])
redis.call('ZADD', KEYS[6], now_ms + tonumber(ARGV[7]), turn_id)
redis.call('EXPIRE', KEYS[6], ARGV[8])  -- as long as the newest turn's record
if keyed then redis.call('SET', KEYS[4], turn_id .. ' ' .. body_hash, 'EX', ARGV[9]) end

for _, watcher in ipairs(redis.call('ZRANGEBYSCORE', KEYS[7], now_ms, '+inf')) do
  if watcher ~= worker then
    redis.call('PUBLISH', ARGV[14] .. watcher, cjson.encode({'began', ARGV[15], conversation_id, turn_id, owner}))
  end
end
return {'started', turn_id, ordinal, before, last}
