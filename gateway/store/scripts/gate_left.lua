-- What the plan limit lets through just now: of each rule the limit less the passes of the last period.
-- Returns {of :hour, of :min, now}; -1 where there is no such rule
local function left_of(rule)
  local key, limit, since = rule[1], rule[2], now - rule[3]
  if limit == 0 then return -1 end
  local first, beyond = 0, redis.call('LLEN', key) -- the times rise: where do those begin that still count?
  local passes = beyond
  while first < beyond do
    local middle = math.floor((first + beyond) / 2)
    if tonumber(redis.call('LINDEX', key, middle)) > since then beyond = middle else first = middle + 1 end
  end
  return math.max(0, limit - (passes - first))
end
return {left_of(RULES[1]), left_of(RULES[2]), now}
