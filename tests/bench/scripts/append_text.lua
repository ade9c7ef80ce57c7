-- As append.lua on one string of text and a list of the events that are no deltas, each with the bytes of text before it.
-- KEYS: turn, text, other events, followers
-- ARGV: epoch, lease ms, live ttl s, the position that the entries follow, then position,
--       event name ('' for a delta), data, code points of a delta
-- Returns what append.lua returns. A delta must follow what is there: the text cannot hold a gap.
local function without(text, code_points)
  local at = 1
  while code_points > 0 do
    at = at + 1
    local byte = string.byte(text, at)
    if not byte or byte < 128 or byte > 191 then code_points = code_points - 1 end
  end
  return string.sub(text, at)
end

local turn = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'stop', 'last')
if not turn[1] then return {-1} end
if turn[1] ~= ARGV[1] or turn[2] ~= 'running' then return {0} end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(turn[4] or '0')
if #ARGV > 4 and last < tonumber(ARGV[4]) then return {-2, last} end
for i = 5, #ARGV, 4 do
  local position, name, data = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  if position > last then
    if name == '' then
      local known = last - (position - tonumber(ARGV[i + 3]))
      if known > 0 then data = without(data, known) end
      if redis.call('APPEND', KEYS[2], data) == #data then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
    else
      local bytes = redis.call('STRLEN', KEYS[2])
      local count = redis.call('RPUSH', KEYS[3], ARGV[i] .. ' ' .. bytes .. ' ' .. name .. ' ' .. data)
      if count == 1 then redis.call('EXPIRE', KEYS[3], ARGV[3]) end
    end
    last = position
  end
end
redis.call('HSET', KEYS[1], 'lease', now_ms + tonumber(ARGV[2]), 'last', last)
return {1, turn[3] or '', redis.call('ZRANGEBYSCORE', KEYS[4], now_ms, '+inf')}
