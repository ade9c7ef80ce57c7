-- Give back what was charged for turns that never began: their worker died between the charge and the claim.
-- KEYS: open charges (scored by when to look at them, ms)
-- ARGV: prefix of charges, prefix of turns, most charges to look at, ms until a running turn's is looked at again
-- Returns how many were given back.
local now = now_us()
local now_ms = now / 1000
local undone = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(now_ms), 'LIMIT', 0, ARGV[3])) do
  local state = redis.call('HGET', ARGV[2] .. id, 'state')
  if state == 'running' then
    redis.call('ZADD', KEYS[1], text(now_ms + tonumber(ARGV[4])), id)
  else
    if not state then undone = undone + undo_charge(ARGV[1] .. id, id, now) end
    redis.call('ZREM', KEYS[1], id)
  end
end
return undone
