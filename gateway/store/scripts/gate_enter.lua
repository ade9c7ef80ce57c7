
-- Pass, join the queue, or be refused.
-- ARGV, from 10: id, worker, tenant, weight, longest wait (0: none), how many may wait, virtual time of a call
-- Returns {passed | waiting | full | late | open | left, wait, position, 1 if it is the probe, state, now}
local id, worker, tenant, weight = ARGV[10], ARGV[11], ARGV[12], tonumber(ARGV[13])
local longest, queue_max = tonumber(ARGV[14]), tonumber(ARGV[15])

local function answer(outcome, wait, position)
  return {outcome, wait or 0, position or 0, state.probe == id and 1 or 0, standing(), now}
end

local was = redis.call('GET', at .. ':of:' .. id)
if was == 'left' then return answer('left') end
if was and was ~= 'dropped' then return answer('passed') end
local known = waiter_of(id)
if known then
  renew(worker)
  local position = place_of(tenants_waiting(), id, known.tenant)
  return answer('waiting', wait_of(position), position)
end

serve()
local queued = redis.call('EXISTS', queue) == 1
if state.open > 0 then
  local wait = math.max(resting(), wait_of(1))
  if wait > 0 or queued then return answer('open', wait > 0 and wait or tonumber(ARGV[9])) end
  set('probe', id)
  set('prober', worker)
  renew(worker)
end
if not queued and wait_of(1) == 0 then
  pass(id)
  return answer('passed')
end

local line = at .. ':line:' .. tenant
local share = math.floor(tonumber(ARGV[16]) / weight)
local own = redis.call('ZCARD', line)
local finish = tonumber(redis.call('ZSCORE', queue, tenant) or state.virtual + share)
local position = position_of(tenants_waiting(), tenant, finish + own * share, own)
local wait = wait_of(position)
local free = queue_max - redis.call('HLEN', waiting)
if longest == 0 then return answer('late', wait) end
if free <= 0 or own >= weight * free then return answer('full', wait) end
if wait > longest then return answer('late', wait) end

redis.call('DEL', at .. ':of:' .. id)
redis.call('ZADD', queue, text(finish), tenant)
redis.call('HSET', shares, tenant, text(share))
redis.call('ZADD', line, redis.call('HINCRBY', at, 'place', 1), id)
redis.call('HSET', waiting, id, worker .. ' ' .. text(now + longest + ARGV[3]) .. ' ' .. tenant)
for _, key in ipairs({queue, shares, line, waiting}) do redis.call('PEXPIRE', key, QUEUE_MS) end
redis.call('PEXPIRE', at, STATE_MS)
renew(worker)
return answer('waiting', wait, position)
