-- Note good polls that found nothing new, and say when their accounts are due next. Each is a step.
-- KEYS    1 polls   2 failing   3 due providers   then for each step: its state
-- ARGV    1 provider   then for each step: account, deadline, expected version, polled at ms, next poll due ms
-- returns for each step: 1 done, -1 the state moved on, -2 the lease was lost
-- All is read before the first write: a key of another type fails every step, and changes nothing.
local accounts = {}
for i = 1, #KEYS - 3 do accounts[i] = ARGV[i * 5 - 3] end
local deadlines = redis.call('ZMSCORE', KEYS[1], unpack(accounts))
local has_failing = redis.call('HLEN', KEYS[2]) > 0
redis.call('ZCARD', KEYS[3])
local reply, due, fixed, first = {}, {}, {}, math.huge
for i = 1, #accounts do
  if redis.call('HGET', KEYS[3 + i], 'version') ~= ARGV[i * 5 - 1] then
    reply[i] = -1
  elseif deadlines[i] ~= ARGV[i * 5 - 2] then
    reply[i] = -2
  else
    reply[i] = 1
    due[#due + 1] = ARGV[i * 5 + 1]
    due[#due + 1] = accounts[i]
    fixed[#fixed + 1] = accounts[i]
    first = math.min(first, tonumber(ARGV[i * 5 + 1]))
  end
end
if not due[1] then return reply end

for i = 1, #accounts do
  if reply[i] == 1 then redis.call('HSET', KEYS[3 + i], 'polled_at', ARGV[i * 5]) end
end
redis.call('ZADD', KEYS[1], unpack(due))
redis.call('ZADD', KEYS[3], 'LT', first, ARGV[1])
if has_failing then redis.call('HDEL', KEYS[2], unpack(fixed)) end
return reply
