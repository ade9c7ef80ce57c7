-- Forget a tenant's document and tell every worker that the tenants are others now.
-- KEYS: tenants    ARGV: tenant, channel of all workers    Returns how many were forgotten.
local removed = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], cjson.encode({'tenants', ARGV[1]}))
return removed
