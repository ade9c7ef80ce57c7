-- As append.lua, but the last position lies in the turn's hash and a delta is one field of plain text.
-- KEYS: turn, log, followers
-- ARGV: epoch, lease ms, live ttl s, the position that the entries follow, then position,
--       event name ('' for a delta), data for each entry
-- Returns what append.lua returns.
local turn = redis.call('HMGET', KEYS[1], 'epoch', 'state', 'stop', 'last')
if not turn[1] then return {-1} end
if turn[1] ~= ARGV[1] or turn[2] ~= 'running' then return {0} end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local first = tonumber(turn[4] or '0')
if #ARGV > 4 and first < tonumber(ARGV[4]) then return {-2, first} end
local last = first
for i = 5, #ARGV, 3 do
  local position = tonumber(ARGV[i])
  if position > last then
    if ARGV[i + 1] == '' then
      redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 't', ARGV[i + 2])
    else
      redis.call('XADD', KEYS[2], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'd', ARGV[i + 2])
    end
    last = position
  end
end
if first == 0 then redis.call('EXPIRE', KEYS[2], ARGV[3]) end
redis.call('HSET', KEYS[1], 'lease', now_ms + tonumber(ARGV[2]), 'last', last)
return {1, turn[3] or '', redis.call('ZRANGEBYSCORE', KEYS[3], now_ms, '+inf')}
