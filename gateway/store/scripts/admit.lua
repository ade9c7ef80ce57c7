-- Decide several GCRA limits together on Redis's clock: charge all, or none if any refuses.
-- KEYS: one a limit    ARGV: limit, period in microseconds for each
-- Returns {0, 0} when admitted, else {number of the refusing limit, microseconds until it would admit}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local arrivals = {}
local refused, wait = 0, 0
for i = 1, #KEYS do
  local limit, period = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local arrival = math.max(tonumber(redis.call('GET', KEYS[i]) or '0'), now) + period / limit
  local over = arrival - period - now
  if over > wait then refused, wait = i, over end
  arrivals[i] = arrival
end
if refused > 0 then return {refused, math.ceil(wait)} end
for i = 1, #KEYS do
  -- Rounded down: an interval that is no whole number of microseconds must not take one from the burst.
  redis.call('SET', KEYS[i], string.format('%.0f', math.floor(arrivals[i])), 'PX', math.ceil((arrivals[i] - now) / 1000) + 1)
end
return {0, 0}
