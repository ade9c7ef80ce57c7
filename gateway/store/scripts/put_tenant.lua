-- Keep a tenant's document and tell every worker that the tenants are others now.
-- KEYS: tenants    ARGV: tenant, document, how many there may be, channel of all workers
-- Returns 1 for a new tenant, 0 for one that was there, nothing when there are too many.
local known = redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1
if not known and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return false end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], cjson.encode({'tenants', ARGV[1]}))
return known and 0 or 1
