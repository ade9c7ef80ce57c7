-- Renew the leases of slots.
-- KEYS: the holders of each rule's slots
-- ARGV: lease µs, 1 to take slots again that are not held any more (the store may have lost them) or 0, then the number
--       of the rule and the holder for each slot
-- Returns now in µs.
local now = now_us()
local score = text(now + tonumber(ARGV[1]))
for i = 3, #ARGV, 2 do
  local key = KEYS[tonumber(ARGV[i])]
  if ARGV[2] == '1' then
    redis.call('ZADD', key, score, ARGV[i + 1])
  else
    redis.call('ZADD', key, 'XX', score, ARGV[i + 1])
  end
end
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], text(ARGV[1] / 1000 + 60000)) end
return now
