-- Use up a turn that a list of messages goes on from.
-- KEYS: turns put under the digest, what the idempotency key was given
-- ARGV: prefix of the marks of used turns, ttl s, idempotency key given (0/1), its ttl s, a tip as JSON or '' for those
--       put under the digest
-- Returns {repeated (0/1), the tip or ''}.
local keyed = ARGV[3] == '1'
if keyed then
  local known = redis.call('GET', KEYS[2])
  if known then return {1, known} end
end
local found = ''
local tip = ARGV[5]
if tip == '' then tip = redis.call('RPOP', KEYS[1]) end
while tip do
  if redis.call('SET', ARGV[1] .. cjson.decode(tip)[2], 'used', 'NX', 'EX', ARGV[2]) then
    found = tip
    break
  end
  if ARGV[5] ~= '' then break end
  tip = redis.call('RPOP', KEYS[1])
end
if keyed then redis.call('SET', KEYS[2], found, 'EX', ARGV[4]) end
return {0, found}
