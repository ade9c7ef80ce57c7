-- append.lua for every turn of a tenant that is due on a beat.
-- KEYS: turn, log, followers of each turn
-- ARGV: lease ms, then for each turn: epoch, the position that the entries follow, count of entries, and position,
--       event name, data for each entry
-- Returns for each turn what append.lua returns.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now_ms + tonumber(ARGV[1])

local function append(key, at, count)
  local turn = redis.call('HMGET', KEYS[key], 'epoch', 'state', 'stop')
  if not turn[1] then return {-1} end
  if turn[1] ~= ARGV[at] or turn[2] ~= 'running' then return {0} end
  redis.call('HSET', KEYS[key], 'lease', lease)
  if count > 0 then
    local newest = redis.call('XREVRANGE', KEYS[key + 1], '+', '-', 'COUNT', 1)[1]
    local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
    if last < tonumber(ARGV[at + 1]) then return {-2, last} end
    for i = at + 3, at + 2 + 3 * count, 3 do
      if tonumber(ARGV[i]) > last then
        redis.call('XADD', KEYS[key + 1], ARGV[i] .. '-0', 'e', ARGV[i + 1], 'd', ARGV[i + 2])
      end
    end
  end
  return {1, turn[3] or '', redis.call('ZRANGEBYSCORE', KEYS[key + 2], now_ms, '+inf')}
end

local told = {}
local at = 2
for key = 1, #KEYS, 3 do
  local count = tonumber(ARGV[at + 2])
  told[#told + 1] = append(key, at, count)
  at = at + 3 + 3 * count
end
return told
