-- Give back everything that a request was charged.
-- KEYS: charge    ARGV: request id
-- Returns now in µs.
local now = now_us()
undo_charge(KEYS[1], ARGV[1], now)
return now
