-- Let a tenant in again and tell every worker.
-- KEYS: revocations    ARGV: tenant, channel of all workers    Returns how many revocations of the tenant were lifted.
local lifted = 0
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], 'inf', 'inf')) do
  local tenant = string.match(member, '^tenant|[^|]*|([^|]*)|$')
  if tenant == ARGV[1] then lifted = lifted + redis.call('ZREM', KEYS[1], member) end
end
redis.call('PUBLISH', ARGV[2], cjson.encode({'lifted', ARGV[1]}))
return lifted
