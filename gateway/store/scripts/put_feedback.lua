-- Replace one message of a cached transcript if it still is the one that was read.
-- KEYS: conversation    ARGV: field, old value, new value    Returns 1 when written.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
