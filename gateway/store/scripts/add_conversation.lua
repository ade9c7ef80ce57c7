-- Write a conversation record with its transcript unless the cache has one, and list it under its owner.
-- KEYS: conversation, owner's list    ARGV: conversation id, ttl s, time of last use (ms), then field, value pairs
-- Returns 1 when it was written. A record in the cache is newer than what a reader brings from the vendor.
redis.call('ZADD', KEYS[2], 'GT', ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
