-- Return a turn's {conversation, owner, state, epoch, leased 0/1, persona, messages before, last message id,
-- message id, trace}, or an empty list.    KEYS: turn
local turn = redis.call('HMGET', KEYS[1], 'conversation', 'owner', 'state', 'epoch', 'lease', 'persona', 'before', 'last',
  'message_id', 'trace')
if not turn[1] then return {} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local leased = (turn[5] and tonumber(turn[5]) >= now_ms) and 1 or 0
return {turn[1], turn[2], turn[3], turn[4], leased, turn[6] or '', turn[7] or '0', turn[8] or '', turn[9] or '',
  turn[10] or ''}
