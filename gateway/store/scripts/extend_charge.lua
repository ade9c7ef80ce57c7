-- Reserve more tokens for a turn that was admitted, as far as its budgets have them.
-- KEYS: charge    ARGV: request id, tokens wanted in all
-- Returns {tokens reserved in all, now in µs}; -1 for the first when nothing is known of the charge.
local now = now_us()
local charge = find_charge(KEYS[1])
if not charge then return {-1, now} end
local rules, more = charge[2], tonumber(ARGV[2]) - charge[3]
for i = 1, #rules, 4 do
  if rules[i] == 'b' then more = math.min(more, rules[i + 2] - tonumber(redis.call('GET', rules[i + 1]) or '0')) end
end
if more > 0 and charge[4] == 0 then correct(KEYS[1], charge, ARGV[1], charge[3] + more, now, false) end
return {charge[3], now}
