-- Take turns whose tokens are to be looked up now. Each comes back once more, on a longer wait, until its last try.
-- KEYS: unsettled turns (scored by when they are due, ms)
-- ARGV: prefix of turn keys, most turns, ms until the second try, until the third, ... of all tries after the first
-- Returns {settlement as JSON, last try 0/1} of each. After the last try a turn comes back every 30 s until it is
-- settled, in case whoever took it died.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local tries = #ARGV - 2 + 1
local found = {}
for _, turn_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, ARGV[2])) do
  local key = ARGV[1] .. turn_id
  local settlement = redis.call('HGET', key, 'settlement')
  if not settlement then
    redis.call('ZREM', KEYS[1], turn_id)
  else
    local try = redis.call('HINCRBY', key, 'settling', 1)
    redis.call('ZADD', KEYS[1], now_ms + tonumber(ARGV[2 + try] or '30000'), turn_id)
    found[#found + 1] = {settlement, try >= tries and 1 or 0}
  end
end
return found
