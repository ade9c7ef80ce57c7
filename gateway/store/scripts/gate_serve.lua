
-- Renew a worker's lease, let through who may pass, and say where some are.
-- ARGV, from 10: worker, 1 if places are to be told, ids
-- Returns {until the next look, or -1 when nobody waits, state, now, then for each id three numbers: 1 passed,
-- 2 passed as the probe, 0 waiting, -1 not known; position; wait}
local worker, wanted = ARGV[10], ARGV[11] == '1'
renew(worker)
serve()
local next_us = -1
if redis.call('EXISTS', queue) == 1 then next_us = math.max(resting(), wait_of(1)) end
local answer = {next_us, standing(), now}
local tenants = wanted and tenants_waiting()
for i = 12, #ARGV do
  local id = ARGV[i]
  local waiter, what, position, wait = waiter_of(id), -1, 0, 0
  if waiter then
    what = 0
    if wanted then
      position = place_of(tenants, id, waiter.tenant)
      wait = wait_of(position)
    end
  else
    local was = redis.call('GET', at .. ':of:' .. id)
    if was and was ~= 'dropped' and was ~= 'left' then what = state.probe == id and 2 or 1 end
  end
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = what, position, wait
end
return answer
