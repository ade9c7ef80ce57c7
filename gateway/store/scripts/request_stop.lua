-- Set the stop flag of a running turn; its owner sees it in the answer to its next append.
-- KEYS: turn    ARGV: reason    Returns 1 when the flag is set, 0 when the turn is not running.
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then return 0 end
redis.call('HSETNX', KEYS[1], 'stop', ARGV[1])
return 1
