-- Write the settlement of what was metered without being a turn, once, and correct its charge.
-- KEYS: mark that it is written, settlements, charge (see charges.lua)
-- ARGV: id, settlement as JSON, ledger ttl ms, s for which the mark is kept
-- Returns 1 when it was written, 0 when it was before.
if not redis.call('SET', KEYS[1], '', 'NX', 'EX', ARGV[4]) then return 0 end
local now = now_us()
redis.call('XADD', KEYS[2], 'MINID', '~', text(now / 1000 - tonumber(ARGV[3])), '*', 's', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
settle_charge(KEYS[3], ARGV[1], cjson.decode(ARGV[2]), now, true)
return 1
