-- Put a turn under a digest; one put twice may still be used up once only.
-- KEYS: turns put under the digest    ARGV: tip as JSON, ttl s, how many are kept
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -ARGV[3], -1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
