-- Read text and other events in one step, so that neither is newer than the other.
-- KEYS: text, other events
return {redis.call('GET', KEYS[1]) or '', redis.call('LRANGE', KEYS[2], 0, -1)}
