-- Decide all limits of a request together on Redis's clock: charge it under all, or under none if any refuses.
-- KEYS: charge, open charges, last prompt of the conversation, 90th percentile of the persona's completions, then the
--       count of each rule
-- ARGV: request id, charge's ttl ms, tokens of the message (-1: not a turn), tokens of an answer as long as the
--       percentile is unknown, µs of a slot's lease, µs to wait for a slot, first and last + 1 µs of the budgets'
--       periods (0 0: no budgets), ms until an open charge is looked at, then kind, limit, period of each rule (of a
--       budget: the µs when it ends)
-- Returns {1 admitted | 0 refused | -1 the budgets' periods are over, refusing rule or 0, its wait in µs, tokens
-- reserved, of these for the prompt, now in µs, then remaining and µs until reset of each rule}. A request that was admitted before gets the same.
local record, id = KEYS[1], ARGV[1]
local known = find_charge(record)
if known then return known[1] end

local now = now_us()
local until_us = tonumber(ARGV[8])
if until_us > 0 and (now < tonumber(ARGV[7]) or now >= until_us) then return {-1, 0, 0, 0, 0, now} end

local turn = ARGV[3] ~= '-1'
local count = #KEYS - 4
local kinds, keys, limits, periods, levels = {}, {}, {}, {}, {}
local counted = false
local slot_wait = tonumber(ARGV[6])
local values = redis.call('MGET', unpack(KEYS, 3)) -- a slot's key is no string: nil
for i = 1, count do
  local kind = ARGV[7 + 3 * i]
  kinds[i], keys[i], limits[i], periods[i] = kind, KEYS[4 + i], tonumber(ARGV[8 + 3 * i]), tonumber(ARGV[9 + 3 * i])
  if kind == 's' then
    redis.call('ZREMRANGEBYSCORE', keys[i], '-inf', text(now))
    levels[i] = redis.call('ZCARD', keys[i])
  elseif kind == 'b' then
    counted = true
    levels[i] = tonumber(values[2 + i] or '0')
  else
    counted = counted or kind == 't'
    levels[i] = drained(values[2 + i], limits[i], now)
  end
end

local tokens, least = 0, 0
if turn and counted then
  local prompt = tonumber(values[1] or '0') + tonumber(ARGV[3])
  tokens, least = prompt + tonumber(values[2] or ARGV[4]), prompt + 1
  for i = 1, count do
    if kinds[i] == 'b' then tokens = math.min(tokens, limits[i] - levels[i]) end
  end
  tokens = math.max(0, tokens)
end

local refused, longest = 0, 0
for i = 1, count do
  local kind, limit, wait = kinds[i], limits[i], 0
  if kind == 's' then
    if levels[i] >= limit then wait = slot_wait end
  elseif kind == 'b' then
    if limit - levels[i] < least then wait = periods[i] - now end
  else
    local amount = kind == 'r' and 1 or math.min(tokens, limit)
    local room = (limit - amount) * periods[i] - levels[i]
    if room < 0 then wait = upward(-room, limit) end
  end
  if wait > longest then refused, longest = i, wait end
end

if refused == 0 then
  for i = 1, count do
    local kind = kinds[i]
    if kind == 's' then
      redis.call('ZADD', keys[i], text(now + tonumber(ARGV[5])), id)
      redis.call('PEXPIRE', keys[i], text(ARGV[5] / 1000 + 60000)) -- an owner that stalled may still renew
      levels[i] = levels[i] + 1
    elseif kind == 'b' then
      -- It outlives its period by a day, so that a turn which began in it can still be settled.
      redis.call('SET', keys[i], text(levels[i] + tokens), 'PX', text(upward(periods[i] - now, 1000) + 86400000))
      levels[i] = levels[i] + tokens
    else
      levels[i] = math.min(levels[i] + (kind == 'r' and 1 or tokens) * periods[i], 8000000000000000)
      fill(keys[i], levels[i], limits[i], now)
    end
  end
end

local answer = {refused == 0 and 1 or 0, refused, longest, refused == 0 and tokens or 0, math.max(0, least - 1), now}
for i = 1, count do
  local kind, limit, remaining, reset = kinds[i], limits[i], 0, 0
  if kind == 's' then
    remaining = math.max(0, limit - levels[i])
    if remaining == 0 then reset = slot_wait end
  elseif kind == 'b' then
    remaining, reset = math.max(0, limit - levels[i]), periods[i] - now
  else
    local full = limit * periods[i]
    remaining = math.max(0, downward(full - levels[i], periods[i]))
    reset = upward(remaining > 0 and levels[i] or levels[i] + periods[i] - full, limit)
  end
  answer[5 + 2 * i], answer[6 + 2 * i] = remaining, reset
end

if refused == 0 then
  local rules = {}
  for i = 1, count do
    local at = 4 * i
    rules[at - 3], rules[at - 2], rules[at - 1], rules[at] = kinds[i], keys[i], limits[i], periods[i]
  end
  redis.call('SET', record, cmsgpack.pack({answer, rules, tokens, 0}), 'PX', ARGV[2])
  if turn then
    redis.call('ZADD', KEYS[2], text(now / 1000 + tonumber(ARGV[9])), id)
    redis.call('PEXPIRE', KEYS[2], ARGV[2])
  end
end
return answer
