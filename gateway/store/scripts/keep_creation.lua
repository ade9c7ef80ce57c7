-- Replace a reservation of an idempotency key by what it led to, unless another request has the key by now.
-- KEYS: record    ARGV: reservation, result, ttl s    Returns 1 when written.
local known = redis.call('GET', KEYS[1])
if known and known ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
