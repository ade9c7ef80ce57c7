-- Fence a running turn whose lease has run out, or whose owner is known to be dead, and own it under a new epoch.
-- KEYS: turn, running turns    ARGV: lease ms, worker, the dead owner or '', turn id
-- Returns the new epoch, or 0 when the turn has ended or its owner lives.
local turn = redis.call('HMGET', KEYS[1], 'state', 'lease', 'worker')
if turn[1] ~= 'running' then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(turn[2]) >= now_ms and (ARGV[3] == '' or turn[3] ~= ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'lease', now_ms + tonumber(ARGV[1]), 'worker', ARGV[2])
redis.call('ZADD', KEYS[2], now_ms + tonumber(ARGV[1]), ARGV[4])
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
