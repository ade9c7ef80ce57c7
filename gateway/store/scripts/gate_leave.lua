
-- Wait no more; an id that has left is let in never again.
-- ARGV, from 10: id, 1 to give back what was charged for it
-- Returns {waiting (and never passed) | passed | unknown, now}
local id = ARGV[10]
local was, waiter = redis.call('GET', at .. ':of:' .. id), waiter_of(id)
note(id, 'left')
if waiter then
  remove(id, waiter.tenant)
  return {'waiting', now}
end
if was == 'dropped' then return {'waiting', now} end
if not was or was == 'left' then return {'unknown', now} end
if ARGV[11] == '1' then
  for i = 1, 2 do redis.call('LREM', RULES[i][1], -1, was) end
end
if state.probe == id then set('probe', false) set('prober', false) end
return {'passed', now}
