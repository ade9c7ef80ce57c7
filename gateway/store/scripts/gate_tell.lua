
-- Take in what the vendor said: a time to hold off, that it fails, or how the probe went; and tell all workers.
-- ARGV, from 10: channel of all workers, 'hold' and for how long
--                                      | 'trip' and for how long at first
--                                      | 'alive' or 'dead', longest rest, id of the probe
-- Returns now.
local channel, what, span = ARGV[10], ARGV[11], tonumber(ARGV[12])
if what == 'hold' then
  if now + span > state.held then set('held', now + span) end
elseif what == 'trip' then
  if state.open == 0 then set('open', now + span) set('rest', span) end
elseif state.probe == ARGV[13] then
  set('probe', false)
  set('prober', false)
  if what == 'alive' then
    set('open', 0)
    set('rest', 0)
    serve()
  else
    set('rest', math.min(2 * state.rest, span))
    set('open', now + state.rest)
  end
end
redis.call('PUBLISH', channel, cjson.encode({'gate', ARGV[2], standing()}))
return now
