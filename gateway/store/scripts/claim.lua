-- Make a turn the one active turn of its conversation and write its first event, all or nothing.
-- KEYS, ARGV and what is returned: see claims.lua
local before = earlier()
if before then return before end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local conversation, refusal = look(now_ms)
return refusal or begin(conversation, now_ms)
