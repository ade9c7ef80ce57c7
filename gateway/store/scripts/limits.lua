-- Shared by the scripts that decide a request's limits, behind charges.lua; no script by itself.
-- KEYS from k: charge, open charges, last prompt of the conversation, 90th percentile of the persona's completions, then
--       the count of each rule, up to the last key
-- ARGV from a: request id, charge's ttl ms, tokens of the message (-1: not a turn), tokens of an answer as long as the
--       percentile is unknown, µs of a slot's lease, µs to wait for a slot, first and last + 1 µs of the budgets'
--       periods (0 0: no budgets), ms until an open charge is looked at, then kind, limit, period of each rule (of a
--       budget: the µs when it ends)

-- Decide all limits together; nothing is charged yet. Of a request that was admitted before only what it got is known.
local function weigh(k, a, now)
  local case = {k = k, a = a, now = now, refused = 0, longest = 0, tokens = 0, least = 0}
  local known = find_charge(KEYS[k])
  if known then
    case.known = known[1]
    return case
  end
  local until_us = tonumber(ARGV[a + 7])
  if until_us > 0 and (now < tonumber(ARGV[a + 6]) or now >= until_us) then
    case.stale = true
    return case
  end

  local turn = ARGV[a + 2] ~= '-1'
  local count = #KEYS - k - 3
  local kinds, keys, limits, periods, levels = {}, {}, {}, {}, {}
  local counted = false
  local slot_wait = tonumber(ARGV[a + 5])
  local values = redis.call('MGET', unpack(KEYS, k + 2)) -- a slot's key is no string: nil
  for i = 1, count do
    local kind, key = ARGV[a + 6 + 3 * i], KEYS[k + 3 + i]
    kinds[i], keys[i], limits[i], periods[i] = kind, key, tonumber(ARGV[a + 7 + 3 * i]), tonumber(ARGV[a + 8 + 3 * i])
    if kind == 's' then
      redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
      levels[i] = redis.call('ZCARD', key)
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
    local prompt = tonumber(values[1] or '0') + tonumber(ARGV[a + 2])
    tokens, least = prompt + tonumber(values[2] or ARGV[a + 3]), prompt + 1
    for i = 1, count do
      if kinds[i] == 'b' then tokens = math.min(tokens, limits[i] - levels[i]) end
    end
    tokens = math.max(0, tokens)
  end

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
    if wait > case.longest then case.refused, case.longest = i, wait end
  end
  case.count, case.kinds, case.keys, case.limits, case.periods, case.levels = count, kinds, keys, limits, periods, levels
  case.tokens, case.least = tokens, least
  return case
end

-- What is returned of a decision: {1 admitted | 0 refused | -1 the budgets' periods are over, refusing rule or 0, its
-- wait in µs, tokens reserved, of these for the prompt, now in µs, then remaining and µs until reset of each rule}.
local function told(case)
  if case.known then return case.known end
  if case.stale then return {-1, 0, 0, 0, 0, case.now} end
  local admitted, now, slot_wait = case.refused == 0, case.now, tonumber(ARGV[case.a + 5])
  local tokens = admitted and case.tokens or 0
  local answer = {admitted and 1 or 0, case.refused, case.longest, tokens, math.max(0, case.least - 1), now}
  for i = 1, case.count do
    local kind, limit, period, level, remaining, reset = case.kinds[i], case.limits[i], case.periods[i], case.levels[i], 0, 0
    if kind == 's' then
      remaining = math.max(0, limit - level)
      if remaining == 0 then reset = slot_wait end
    elseif kind == 'b' then
      remaining, reset = math.max(0, limit - level), period - now
    else
      local full = limit * period
      remaining = math.max(0, downward(full - level, period))
      reset = upward(remaining > 0 and level or level + period - full, limit)
    end
    answer[5 + 2 * i], answer[6 + 2 * i] = remaining, reset
  end
  return answer
end

-- Charge an admitted request under all its rules; returns what is told of the decision then. Of a turn that may still
-- not begin (`open`) a note is kept, so that a sweep gives back what is charged for nothing.
local function charge(case, open)
  if case.known then return case.known end
  local a, now, tokens, rules = case.a, case.now, case.tokens, {}
  local record, id, ttl_ms = KEYS[case.k], ARGV[a], ARGV[a + 1]
  for i = 1, case.count do
    local kind, key, limit, period, level = case.kinds[i], case.keys[i], case.limits[i], case.periods[i], case.levels[i]
    if kind == 's' then
      redis.call('ZADD', key, text(now + tonumber(ARGV[a + 4])), id)
      redis.call('PEXPIRE', key, text(ARGV[a + 4] / 1000 + 60000)) -- an owner that stalled may still renew
      level = level + 1
    elseif kind == 'b' then
      -- It outlives its period by a day, so that a turn which began in it can still be settled.
      level = level + tokens
      redis.call('SET', key, text(level), 'PX', text(upward(period - now, 1000) + 86400000))
    else
      level = math.min(level + (kind == 'r' and 1 or tokens) * period, 8000000000000000)
      fill(key, level, limit, now)
    end
    case.levels[i] = level
    local at = 4 * i
    rules[at - 3], rules[at - 2], rules[at - 1], rules[at] = kind, key, limit, period
  end
  local answer = told(case)
  redis.call('SET', record, cmsgpack.pack({answer, rules, tokens, 0, not open}), 'PX', ttl_ms)
  if open then
    redis.call('ZADD', KEYS[case.k + 1], text(now / 1000 + tonumber(ARGV[a + 8])), id)
    redis.call('PEXPIRE', KEYS[case.k + 1], ttl_ms)
  end
  return answer
end

