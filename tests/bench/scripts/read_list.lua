-- Find the entries after a position by bisection; a list knows places, not positions.
-- KEYS: log    ARGV: position, most entries    Returns packed entries, each beginning with its position.
local low, high = 0, redis.call('LLEN', KEYS[1])
while low < high do
  local middle = math.floor((low + high) / 2)
  local position = string.match(redis.call('LINDEX', KEYS[1], middle), '^%d+')
  if tonumber(position) > tonumber(ARGV[1]) then high = middle else low = middle + 1 end
end
return redis.call('LRANGE', KEYS[1], low, low + ARGV[2] - 1)
