-- Keep a revocation as of now, by this server's clock, and tell every worker.
-- KEYS: revocations    ARGV: what, tenant, id, life (s; -1: for ever), how many may be in force, channel of all workers
-- Returns {at, until} as text, or nothing when too many are in force.
local clock = redis.call('TIME')
local at = string.format('%d.%06d', clock[1], clock[2])
local ends = 'inf'
if tonumber(ARGV[4]) >= 0 then ends = string.format('%.3f', clock[1] + ARGV[4]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. at)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[5]) then return false end
redis.call('ZADD', KEYS[1], ends, table.concat({ARGV[1], at, ARGV[2], ARGV[3]}, '|'))
redis.call('PUBLISH', ARGV[6], cjson.encode({'revoked', ARGV[1], ARGV[2], ARGV[3], at, ends}))
return {at, ends}
