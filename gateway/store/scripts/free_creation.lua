-- Give up an idempotency key if it still is reserved by the caller.
-- KEYS: record    ARGV: reservation    Returns 1 when it was.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
