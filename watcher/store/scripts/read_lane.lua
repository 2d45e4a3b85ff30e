-- Read the oldest deliveries of lanes, and how often their heads failed already. Each lane is a step.
-- KEYS    1 tries   then for each step: its lane
-- ARGV    for each step: account, deliveries at most
-- returns for each step: deliveries (a list), then `count head` of the failed attempts ('': none)
local accounts, reply = {}, {}
for i = 1, #KEYS - 1 do accounts[i] = ARGV[i * 2 - 1] end
local tries = redis.call('HMGET', KEYS[1], unpack(accounts))
for i = 1, #accounts do
  reply[i * 2 - 1] = redis.call('LRANGE', KEYS[1 + i], 0, ARGV[i * 2] - 1)
  reply[i * 2] = tries[i] or ''
end
return reply
