-- Shared by the scripts of the gate in front of the vendor; no script by itself. gateway/core/gate_books.py is the same
-- in Python, and says why. All numbers are whole and below 2^53; times are in µs, on this server's clock.
-- KEYS[1] is hg:{_vendor.<label>}:gate; all others begin with it:
--   (itself)          hash: virtual time, next place in a line, held (until), open (until), rest, probe, prober
--   :hour, :min       lists: when the last calls passed, as many as the limit
--   :queue            sorted set: tenants that wait, by the virtual finish time of the first of their line
--   :line:<tenant>    sorted set: ids that wait, by their places
--   :shares           hash: tenant → virtual time of one of its calls
--   :waiting          hash: id → '<worker> <until> <tenant>'
--   :workers          sorted set: workers with somebody in the queue, or with the probe, by the end of their lease
--   :of:<id>          when it passed, or 'dropped' (its worker was gone), or 'left'
-- ARGV: 1 prefix of workers' inboxes, 2 label, 3 lease, 4 limit and 5 period of :hour, 6 limit and 7 period of :min,
--       8 how many one step lets through, 9 how long to wait for a probe; the script's own begin at 10
local at = KEYS[1]
local queue, waiting, workers, shares = at .. ':queue', at .. ':waiting', at .. ':workers', at .. ':shares'
local RULES = {
  {at .. ':hour', tonumber(ARGV[4]), tonumber(ARGV[5])},
  {at .. ':min', tonumber(ARGV[6]), tonumber(ARGV[7])},
}
local KEPT_MS, QUEUE_MS, STATE_MS = 600000, 3600000, 7200000

local function text(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local read = redis.call('HMGET', at, 'virtual', 'held', 'open', 'rest', 'probe', 'prober')
local state = {
  virtual = tonumber(read[1] or '0'), held = tonumber(read[2] or '0'), open = tonumber(read[3] or '0'),
  rest = tonumber(read[4] or '0'), probe = read[5], prober = read[6],
}

local function set(field, value)
  state[field] = value
  if not value or value == 0 then
    redis.call('HDEL', at, field)
  else
    redis.call('HSET', at, field, type(value) == 'number' and text(value) or value)
    redis.call('PEXPIRE', at, STATE_MS)
  end
end

-- After how long the number-th pass from now may go, by the plan limit and the hold.
local function wait_of(number)
  local longest = math.max(0, state.held - now)
  for i = 1, 2 do
    local key, limit, period = RULES[i][1], RULES[i][2], RULES[i][3]
    if limit > 0 then
      local before = math.fmod(number - 1, limit)
      local older, wait = redis.call('LINDEX', key, before - limit), (number - 1 - before) / limit * period
      if older then wait = wait + math.max(0, older + period - now) end
      longest = math.max(longest, wait)
    end
  end
  return longest
end

-- How long the breaker lets nobody through; 0: it is closed, or a probe may go.
local function resting()
  if state.open == 0 then return 0 end
  if now < state.open then return state.open - now end
  return state.probe and tonumber(ARGV[9]) or 0
end

local function standing()
  if state.open > 0 then return 'open' end
  if state.held > now then return 'held' end
  return redis.call('EXISTS', queue) == 1 and 'busy' or 'clear'
end

local function renew(worker)
  redis.call('ZADD', workers, text(now + ARGV[3]), worker)
  redis.call('PEXPIRE', workers, QUEUE_MS)
end

local function note(id, value) redis.call('SET', at .. ':of:' .. id, value, 'PX', KEPT_MS) end

local function pass(id)
  local moment = now
  for i = 1, 2 do
    local latest = redis.call('LINDEX', RULES[i][1], -1)
    if latest then moment = math.max(moment, latest + 1) end
  end
  for i = 1, 2 do
    local key, limit, period = RULES[i][1], RULES[i][2], RULES[i][3]
    if limit > 0 then
      redis.call('RPUSH', key, text(moment))
      redis.call('LTRIM', key, -limit, -1)
      redis.call('PEXPIRE', key, text(period / 1000 + 1000))
    end
  end
  note(id, text(moment))
end

local function remove(id, tenant)
  local line = at .. ':line:' .. tenant
  redis.call('HDEL', waiting, id)
  redis.call('ZREM', line, id)
  local left = redis.call('EXISTS', line) == 1
  if not left then
    redis.call('ZREM', queue, tenant)
    redis.call('HDEL', shares, tenant)
    if redis.call('EXISTS', queue) == 0 then
      redis.call('HDEL', at, 'virtual', 'place')
      state.virtual = 0
    end
  end
  return left
end

local function waiter_of(id)
  local known = redis.call('HGET', waiting, id)
  if not known then return nil end
  local worker, until_us, tenant = string.match(known, '^(%S+) (%d+) (%S+)$')
  return {worker = worker, until_us = tonumber(until_us), tenant = tenant}
end

-- Drop whose worker is gone, then let through who may pass, and tell their workers.
local function serve()
  local gone = redis.call('ZRANGEBYSCORE', workers, '-inf', text(now))
  if #gone > 0 then
    local is_gone = {}
    for _, worker in ipairs(gone) do is_gone[worker] = true end
    redis.call('ZREMRANGEBYSCORE', workers, '-inf', text(now))
    local all = redis.call('HKEYS', waiting)
    for _, id in ipairs(all) do
      local waiter = waiter_of(id)
      if is_gone[waiter.worker] then
        remove(id, waiter.tenant)
        note(id, 'dropped')
      end
    end
    if state.prober and is_gone[state.prober] then set('probe', false) set('prober', false) end
  end
  local granted, told = 0, {}
  while granted < tonumber(ARGV[8]) do
    local head = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
    if not head[1] or resting() > 0 or wait_of(1) > 0 then break end
    local tenant, finish = head[1], tonumber(head[2])
    local id = redis.call('ZRANGE', at .. ':line:' .. tenant, 0, 0)[1]
    local waiter = waiter_of(id)
    local share = tonumber(redis.call('HGET', shares, tenant))
    local more = remove(id, tenant)
    if waiter.until_us <= now then
      note(id, 'dropped')
    else
      if redis.call('EXISTS', queue) == 1 then set('virtual', finish) end
      if more then redis.call('ZADD', queue, text(finish + share), tenant) end
      pass(id)
      granted = granted + 1
      told[waiter.worker] = (told[waiter.worker] and told[waiter.worker] .. ' ' or '') .. id
      if state.open > 0 then set('probe', id) set('prober', waiter.worker) end
    end
  end
  for worker, ids in pairs(told) do
    redis.call('PUBLISH', ARGV[1] .. worker, cjson.encode({'passed', ARGV[2], ids, state.probe or ''}))
  end
end

-- The tenants that wait, once for all who ask for their places in this call.
local function tenants_waiting()
  local found, flat = {}, redis.call('ZRANGE', queue, 0, -1, 'WITHSCORES')
  for i = 1, #flat, 2 do
    local tenant = flat[i]
    found[#found + 1] = {
      name = tenant, head = tonumber(flat[i + 1]), share = tonumber(redis.call('HGET', shares, tenant)),
      count = redis.call('ZCARD', at .. ':line:' .. tenant),
    }
  end
  return found
end

-- The place of a tenant's call that ends at a virtual time, with `own` calls of its tenant before it.
local function position_of(tenants, tenant, finish, own)
  local position = own + 1
  for _, other in ipairs(tenants) do
    if other.name ~= tenant and other.head <= finish then
      local rest = math.fmod(finish - other.head, other.share)
      local before = (finish - other.head - rest) / other.share
      if rest > 0 or other.name < tenant then before = before + 1 end
      position = position + math.min(before, other.count)
    end
  end
  return position
end

local function place_of(tenants, id, tenant)
  local own = redis.call('ZRANK', at .. ':line:' .. tenant, id)
  local finish = tonumber(redis.call('ZSCORE', queue, tenant)) + own * tonumber(redis.call('HGET', shares, tenant))
  return position_of(tenants, tenant, finish, own)
end
