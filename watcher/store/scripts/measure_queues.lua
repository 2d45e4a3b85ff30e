-- Measure queues of one shard.
-- KEYS    queues (their lists)
-- returns for each queue: how many deliveries wait in it, and the first line of the oldest ('' if none)
local reply = {}
for i = 1, #KEYS do
  reply[#reply + 1] = redis.call('LLEN', KEYS[i])
  reply[#reply + 1] = string.match(redis.call('LINDEX', KEYS[i], 0) or '', '^[^\n]*')
end
return reply
