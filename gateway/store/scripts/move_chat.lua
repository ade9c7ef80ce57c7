-- Hold a chat in another conversation, unless somebody else has moved it since it was read.
-- KEYS: chat    ARGV: where it was ('' for nowhere), where it is to be, ttl s    Returns where it is now.
local known = redis.call('GET', KEYS[1])
if (known or '') ~= ARGV[1] then return known or ARGV[1] end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return ARGV[2]
