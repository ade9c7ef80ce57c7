-- Shared by the scripts that make a turn the one active turn of its conversation; no script by itself.
-- KEYS: conversation, turn, log, idempotency record, owner's list of conversations, running turns,
--       watchers of the conversation
-- ARGV: turn id, conversation id, owner, idempotency key given (0/1), body hash, key prefix, lease ms, live ttl s,
--       idempotency ttl s, conversation ttl s, the user's message as JSON, worker, persona, inbox prefix, tenant,
--       whether the conversation is in its owner's list; else this claim makes it where it is not there (0/1), trace
-- What they return of a claim: {outcome, turn id, ordinal, messages before, last message id}; outcomes: started repeated
-- mismatched busy orphaned unknown.

-- The claim that the idempotency key led to before, if any.
local function earlier()
  local known = ARGV[4] == '1' and redis.call('GET', KEYS[4])
  if not known then return nil end
  local first, hash = string.match(known, '^(%S+) (%S+)$')
  return {hash == ARGV[5] and 'repeated' or 'mismatched', first, 0, 0, ''}
end

-- The conversation as far as a claim needs it, and the claim that is refused because of it, if any.
local function look(now_ms)
  local found = redis.call('HMGET', KEYS[1], 'owner', 'active', 'last', 'ordinal', 'messages', 'persona')
  if not found[1] and ARGV[16] == '0' then return found end
  -- A turn is admitted under the limits of the persona that its asker thinks the conversation has.
  if found[1] ~= ARGV[3] or found[6] ~= ARGV[13] then return found, {'unknown', '', 0, 0, ''} end
  local active = found[2]
  if not active then return found end
  local seen = redis.call('HMGET', ARGV[6] .. 'turn:' .. active, 'state', 'lease')
  if seen[1] ~= 'running' then return found end
  return found, {tonumber(seen[2]) >= now_ms and 'busy' or 'orphaned', active, 0, 0, ''}
end

-- Write the turn's record and its first event, take the conversation, and tell the workers that watch it.
local function begin(conversation, now_ms)
  local turn_id, conversation_id, owner, worker = ARGV[1], ARGV[2], ARGV[3], ARGV[12]
  local last = conversation[3] or ''
  local ordinal, before = tonumber(conversation[4] or '0') + 1, tonumber(conversation[5] or '0')
  local lease = now_ms + tonumber(ARGV[7])
  if ARGV[16] == '1' then
    redis.call('ZADD', KEYS[5], now_ms, conversation_id)
    redis.call('EXPIRE', KEYS[5], ARGV[10])
  else
    redis.call('HSET', KEYS[1], 'owner', owner, 'persona', ARGV[13])
    local asked_at = cjson.decode(ARGV[11]).created_at
    if asked_at then redis.call('HSET', KEYS[1], 'created_at', asked_at) end
  end
  redis.call('HSET', KEYS[1], string.format('m:%06d', before), ARGV[11], 'active', turn_id, 'ordinal', ordinal,
    'messages', before + 1)
  redis.call('EXPIRE', KEYS[1], ARGV[10])
  redis.call('HSET', KEYS[2], 'conversation', conversation_id, 'owner', owner, 'persona', ARGV[13], 'state', 'running',
    'epoch', 1, 'worker', worker, 'lease', lease, 'begun', now_ms, 'before', before, 'last', last, 'trace', ARGV[17])
  redis.call('EXPIRE', KEYS[2], ARGV[8])
  redis.call('XADD', KEYS[3], '1-0', 'e', 'turn.started', 'd',
    '{"turn_id":"' .. turn_id .. '","conversation_id":"' .. conversation_id .. '","ordinal":' .. ordinal .. '}')
  redis.call('EXPIRE', KEYS[3], ARGV[8])
  redis.call('ZADD', KEYS[6], lease, turn_id)
  redis.call('EXPIRE', KEYS[6], ARGV[8])  -- as long as the newest turn's record
  if ARGV[4] == '1' then redis.call('SET', KEYS[4], turn_id .. ' ' .. ARGV[5], 'EX', ARGV[9]) end

  for _, watcher in ipairs(redis.call('ZRANGEBYSCORE', KEYS[7], now_ms, '+inf')) do
    if watcher ~= worker then
      redis.call('PUBLISH', ARGV[14] .. watcher, cjson.encode({'began', ARGV[15], conversation_id, turn_id, owner}))
    end
  end
  return {'started', turn_id, ordinal, before, last}
end

