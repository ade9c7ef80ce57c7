-- Correct a turn's charge to its settlement. `finish` and `settle` do the same in the step that writes one.
-- KEYS: charge    ARGV: turn id, settlement as JSON
-- Returns now in µs.
local now = now_us()
settle_charge(KEYS[1], ARGV[1], cjson.decode(ARGV[2]), now, false)
return now
