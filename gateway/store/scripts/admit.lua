-- Decide all limits of a request together on Redis's clock: charge it under all, or under none if any refuses.
-- KEYS and ARGV: see limits.lua, from 1
-- Returns what limits.lua tells of a decision. A request that was admitted before gets the same.
local case = weigh(1, 1, now_us())
if case.stale or case.refused > 0 then return told(case) end
return charge(case, ARGV[3] ~= '-1')
