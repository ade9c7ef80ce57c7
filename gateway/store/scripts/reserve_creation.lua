-- Reserve an idempotency key, or tell what it has been used for.
-- KEYS: record    ARGV: reservation, life ms    Returns false when it is reserved now, else the record.
local known = redis.call('GET', KEYS[1])
if known then return known end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
