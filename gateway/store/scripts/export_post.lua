-- Take, keep or leave the post of the one worker that exports the ledger.
-- KEYS: post    ARGV: worker, ms that it is held (0: leave it), ms up to which all is exported or '', life of the key ms
-- Returns {held 0/1, now ms, ms up to which all is exported}. Where that was never said, it is from now on: a store that
-- has lost it has lost what was not exported, too.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local post = redis.call('HMGET', KEYS[1], 'worker', 'until', 'complete')
local mine = post[1] == ARGV[1]
local taken = not mine and post[1] and tonumber(post[2]) > now_ms
if ARGV[2] == '0' then
  if mine then redis.call('HDEL', KEYS[1], 'worker', 'until') end
  return {0, now_ms, tonumber(post[3] or now_ms)}
end
local complete_ms = tonumber(post[3] or now_ms)
if not taken then
  if mine and ARGV[3] ~= '' then complete_ms = tonumber(ARGV[3]) end
  redis.call('HSET', KEYS[1], 'worker', ARGV[1], 'until', now_ms + tonumber(ARGV[2]), 'complete', complete_ms)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
end
return {taken and 0 or 1, now_ms, complete_ms}
