-- Change fields of a cached conversation; nothing happens when it is not cached.
-- KEYS: conversation    ARGV: triples of a field, whether it has a value (0: it has none from now on), the value
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 1, #ARGV, 3 do
  if ARGV[i + 1] == '1' then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  else
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return 1
