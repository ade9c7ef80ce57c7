-- Write a turn's settlement for good, once.
-- KEYS: turn, settlements, unsettled turns, charge (see charges.lua)    ARGV: turn id, settlement as JSON, ledger ttl ms
-- Returns 1 when it was written, 0 when there was one before (or the turn's record is gone).
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HDEL', KEYS[1], 'settlement', 'settling') == 0 then return 0 end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('XADD', KEYS[2], 'MINID', '~', now_ms - tonumber(ARGV[3]), '*', 's', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
settle_charge(KEYS[4], ARGV[1], cjson.decode(ARGV[2]), now_us(), true)
return 1
