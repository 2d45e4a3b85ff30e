-- Count what waits for subscriptions in one shard.
-- KEYS    1 backlogs   then for each subscription: queues, tries, dead letters
-- ARGV    the subscriptions
-- returns for each subscription: its queues, those whose head has failed before, its dead letters, its deliveries
local reply = {}
local waiting = redis.call('HMGET', KEYS[1], unpack(ARGV))
for i = 1, #ARGV do
  reply[4 * i - 3] = redis.call('ZCARD', KEYS[i * 3 - 1])
  reply[4 * i - 2] = redis.call('HLEN', KEYS[i * 3])
  reply[4 * i - 1] = redis.call('XLEN', KEYS[i * 3 + 1])
  reply[4 * i] = tonumber(waiting[i] or 0) or 0
end
return reply
