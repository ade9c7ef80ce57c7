-- Find running turns without an owner: those whose lease ran out, or all of one dead worker.
-- KEYS: running turns (scored by when to look at them again, ms)
-- ARGV: prefix of turn keys, the dead worker or '', most turns to look at
-- Returns turn ids. A turn that lives is put back to the end of its lease, so a sweep looks at each once a lease.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local until_ms = ARGV[2] == '' and now_ms or '+inf'
local found = {}
for _, turn_id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', until_ms, 'LIMIT', 0, ARGV[3])) do
  local turn = redis.call('HMGET', ARGV[1] .. turn_id, 'state', 'lease', 'worker')
  if turn[1] ~= 'running' then
    redis.call('ZREM', KEYS[1], turn_id)
  elseif ARGV[2] ~= '' then
    if turn[3] == ARGV[2] then found[#found + 1] = turn_id end
  elseif tonumber(turn[2]) < now_ms then
    found[#found + 1] = turn_id
  else
    redis.call('ZADD', KEYS[1], turn[2], turn_id)
  end
end
return found
