-- Count what waits for subscriptions in one shard.
-- KEYS    for each subscription: queues, tries, dead letters
-- returns for each subscription: its queues, those whose head has failed before, its dead letters
local reply = {}
for i = 1, #KEYS, 3 do
  reply[#reply + 1] = redis.call('ZCARD', KEYS[i])
  reply[#reply + 1] = redis.call('HLEN', KEYS[i + 1])
  reply[#reply + 1] = redis.call('XLEN', KEYS[i + 2])
end
return reply
