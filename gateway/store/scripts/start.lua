-- Decide a turn's limits, and where they and its conversation allow it charge it and make it the active turn, in one
-- step: a turn that does not begin is not charged.
-- KEYS: as in claims.lua, then from 8 as in limits.lua    ARGV: as in claims.lua, then from 18 as in limits.lua
-- Returns {claim, decision} as those do; without a claim where the limits refuse, without a decision where the
-- idempotency key led to an earlier turn, whatever the limits say.
local before = earlier()
if before then return {before, {}} end
local now = now_us()
local case = weigh(8, 18, now)
if case.stale or case.refused > 0 then return {{}, told(case)} end
local now_ms = math.floor(now / 1000)
local conversation, refusal = look(now_ms)
if refusal then return {refusal, told(case)} end
local answer = charge(case, false)
return {begin(conversation, now_ms), answer}
