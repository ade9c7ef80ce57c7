-- Shared by the scripts that charge, correct or give back what a request uses; no script by itself.
-- A charge is kept at lim:of:<request id>, packed: {answer, rules, tokens charged, state, unnoted}, where rules are kind,
-- key, limit, period, one after the other, the state is 0 open, 1 settled, 2 undone, and what is unnoted is not among
-- the open charges, since its turn began in the step that charged it. Kinds: r requests, t tokens a minute, s slots, b budget. All numbers are whole and
-- below 2^53, so that a double holds them; gateway/core/limit_books.py is the same in Python.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function upward(dividend, divisor)
  local rest = math.fmod(dividend, divisor)
  return (dividend - rest) / divisor + (rest > 0 and 1 or 0)
end

local function downward(dividend, divisor) return (dividend - math.fmod(dividend, divisor)) / divisor end

local function text(number) return string.format('%.0f', number) end

-- How full a bucket is now, in shares of which `period` make one request or token; it drains `limit` shares a µs.
local function drained(value, limit, now)
  if not value then return 0 end
  local level, at = string.match(value, '^(%d+) (%d+)$')
  return math.max(0, tonumber(level) - math.max(0, now - at) * limit)
end

local function fill(key, level, limit, now)
  level = math.min(math.max(0, level), 8000000000000000)
  if level == 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, text(level) .. ' ' .. text(now), 'PX', text(upward(level, limit * 1000) + 1))
  end
end

local function find_charge(record)
  local packed = redis.call('GET', record)
  return packed and cmsgpack.unpack(packed)
end

-- Change the tokens that a request was charged to another figure; with `ends` its slots are given back too, and with
-- `kept_ms` the charge is kept for so long from now.
local function correct(record, charge, id, tokens, now, ends, kept_ms)
  local rules, more = charge[2], tokens - charge[3]
  for i = 1, #rules, 4 do
    local kind, key = rules[i], rules[i + 1]
    if kind == 's' then
      if ends then redis.call('ZREM', key, id) end
    elseif more ~= 0 and kind == 't' then
      local limit, period = rules[i + 2], rules[i + 3]
      fill(key, drained(redis.call('GET', key), limit, now) + more * period, limit, now)
    elseif more ~= 0 and kind == 'b' and redis.call('EXISTS', key) == 1 then -- else its period was over long ago
      redis.call('INCRBY', key, text(more))
    end
  end
  if ends then
    if not charge[5] then redis.call('ZREM', string.sub(record, 1, #record - #id - 3) .. 'open', id) end
    charge[4] = math.max(charge[4], 1)
  end
  charge[3] = tokens
  if kept_ms then
    redis.call('SET', record, cmsgpack.pack(charge), 'PX', kept_ms)
  else
    redis.call('SET', record, cmsgpack.pack(charge), 'KEEPTTL')
  end
end

-- Correct a turn's charge to its settlement, and keep what the next estimate is made of. Repeats charge the difference;
-- after the `final` one none can come, and the charge is kept ten minutes more.
local function settle_charge(record, id, settlement, now, final)
  local charge = find_charge(record)
  if not charge then return end
  local tokens = math.min(math.max(0, settlement.total_tokens), 1000000000000)
  correct(record, charge, id, tokens, now, true, final and 600000)
  if settlement.source == 'estimated' then return end
  local rules, counts = charge[2], false
  for i = 1, #rules, 4 do counts = counts or rules[i] == 't' or rules[i] == 'b' end
  if not counts then return end
  local week_s = 604800
  local limits = string.sub(record, 1, #record - #id - 3)
  redis.call('SET', limits .. 'prompt:' .. settlement.conversation_id, text(settlement.prompt_tokens), 'EX', week_s)
  if settlement.state ~= 'completed' then return end
  local seen = limits .. 'completions:' .. settlement.persona
  local count = redis.call('LPUSH', seen, text(settlement.completion_tokens))
  redis.call('LTRIM', seen, 0, 63)
  redis.call('EXPIRE', seen, week_s)
  if count < 8 then return end
  local figures = redis.call('LRANGE', seen, 0, -1)
  for i = 1, #figures do figures[i] = tonumber(figures[i]) end
  table.sort(figures)
  local high = figures[upward(9 * #figures, 10)]
  redis.call('SET', limits .. 'completion:' .. settlement.persona, text(high), 'EX', week_s)
end

-- Give back everything that a request was charged, its requests too. Safe to repeat.
local function undo_charge(record, id, now)
  local charge = find_charge(record)
  if not charge then return 0 end
  local undone = charge[4] == 2
  charge[4] = 2
  correct(record, charge, id, 0, now, true, 600000)
  if undone then return 0 end
  local rules = charge[2]
  for i = 1, #rules, 4 do
    if rules[i] == 'r' then
      local key, limit, period = rules[i + 1], rules[i + 2], rules[i + 3]
      fill(key, drained(redis.call('GET', key), limit, now) - period, limit, now)
    end
  end
  return 1
end

