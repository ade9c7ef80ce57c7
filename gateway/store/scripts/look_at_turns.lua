-- Tell of those of some turns that still run: whose, where and how far each is.
-- KEYS: turn, log of each    ARGV: id of each turn
-- Returns for each {turn id, conversation, owner, persona, worker, when it began ms or '', leased 0/1, stop flag 0/1,
-- name of its log's last event or '', position of that}.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for i = 1, #ARGV do
  local turn = redis.call('HMGET', KEYS[2 * i - 1], 'state', 'conversation', 'owner', 'persona', 'worker', 'begun', 'lease',
    'stop')
  if turn[1] == 'running' then
    local newest = redis.call('XREVRANGE', KEYS[2 * i], '+', '-', 'COUNT', 1)[1]
    found[#found + 1] = {
      ARGV[i], turn[2], turn[3], turn[4] or '', turn[5] or '', turn[6] or '',
      (turn[7] and tonumber(turn[7]) >= now_ms) and 1 or 0, turn[8] and 1 or 0,
      newest and newest[2][2] or '', newest and tonumber(string.match(newest[1], '^%d+')) or 0,
    }
  end
end
return found
