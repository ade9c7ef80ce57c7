-- Set the stop flag of a running turn and tell its owner, which sees the flag in its next append's answer as well.
-- KEYS: turn    ARGV: reason, turn id, inbox prefix    Returns 1 when the flag is set, 0 when the turn is not running.
-- The first reason stands, and is what the owner is told each time: an earlier word may have been lost.
local turn = redis.call('HMGET', KEYS[1], 'state', 'worker', 'stop')
if turn[1] ~= 'running' then return 0 end
local reason = turn[3] or ARGV[1]
redis.call('HSETNX', KEYS[1], 'stop', reason)
if turn[2] then redis.call('PUBLISH', ARGV[3] .. turn[2], cjson.encode({'stop', ARGV[2], reason})) end
return 1
