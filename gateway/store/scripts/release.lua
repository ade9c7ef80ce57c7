-- Undo a claim whose turn never began: nobody was told of it, and nothing was sent to the vendor.
-- KEYS: conversation, turn, log, idempotency record, running turns, charge (see charges.lua)    ARGV: turn id,
--       0 where the claim made the conversation, else 1
-- Returns 1 when there was such a claim, 0 when not (or its turn has gone on by now).
local turn = redis.call('HMGET', KEYS[2], 'state', 'epoch', 'before')
if not turn[1] then undo_charge(KEYS[6], ARGV[1], now_us()) end -- the claim came to nothing
if turn[1] ~= 'running' or turn[2] ~= '1' or redis.call('XLEN', KEYS[3]) > 1 then return 0 end
redis.call('DEL', KEYS[2], KEYS[3])
undo_charge(KEYS[6], ARGV[1], now_us())
redis.call('ZREM', KEYS[5], ARGV[1])
local known = redis.call('GET', KEYS[4])
if known and string.match(known, '^(%S+)') == ARGV[1] then redis.call('DEL', KEYS[4]) end
if redis.call('HGET', KEYS[1], 'active') == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'active', string.format('m:%06d', turn[3]))
  local messages = redis.call('HINCRBY', KEYS[1], 'messages', -1)
  redis.call('HINCRBY', KEYS[1], 'ordinal', -1)
  if ARGV[2] == '0' and messages == 0 then redis.call('DEL', KEYS[1]) end
end
return 1
