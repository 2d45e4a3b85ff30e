-- List the queues of subscriptions in one shard that are due first, and those that are due last.
-- KEYS    the schedules of queues
-- ARGV    1 how many of each end
-- returns for each schedule: accounts, some twice where it is short
local count = tonumber(ARGV[1])
local reply = {}
for i = 1, #KEYS do
  local accounts = redis.call('ZRANGE', KEYS[i], 0, count - 1)
  for _, account in ipairs(redis.call('ZRANGE', KEYS[i], -count, -1)) do accounts[#accounts + 1] = account end
  reply[i] = accounts
end
return reply
