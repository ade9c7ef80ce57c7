-- Say when a key ends; an earlier end stands. The record is forgotten some time after.
-- KEYS: key    ARGV: field (expires_at or revoked_at), time (Unix, s), when to forget it (Unix, s)
-- Returns 1, or 0 when there is no such key.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local known = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '')
if not known or known > tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('EXPIREAT', KEYS[1], ARGV[3])
end
return 1
