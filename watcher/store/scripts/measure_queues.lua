-- Measure queues of one shard.
-- KEYS    queues (their lists)
-- returns for each queue: how many deliveries wait in it, and the oldest, as it was queued ('' if none)
local reply = {}
for i = 1, #KEYS do
  reply[#reply + 1] = redis.call('LLEN', KEYS[i])
  reply[#reply + 1] = redis.call('LINDEX', KEYS[i], 0) or ''
end
return reply
