-- Take members that are due and lease them: the worker that claims one is alone with it until the deadline.
-- Safe to repeat: members whose answer was lost come back when their lease ends; of queues soon, as begin_queue is
-- what keeps them for longer. A claim that was held up on its way (the server hung) takes nothing, because the
-- worker that sent it has given it up.
-- uses clock, groups
-- KEYS    1 schedule (member -> due ms)   2 due providers, or due subscriptions
--         queues only: 3 nothing (deleted first: a full server still drains)
-- ARGV    1 provider, or subscription   2 lease ms   3 at most   4 take nothing from then on (ms)
--         5 none that are due for less than so many ms   6.. members to leave to others
-- returns now ms, deadline ms (of a poll as text, with a quarter: see leases), when the next member is due (-1: the schedule is empty), members...
local schedule, index, nothing = unpack(KEYS, 1, 3)
local name, lease, most, void_from, waited = unpack(ARGV, 1, 5)
if nothing then redis.call('DEL', nothing) end
redis.call('ZCARD', index) -- of another type it fails the claim before anything is leased
local now = now_ms()
if now >= tonumber(void_from) then return {now, now, now} end
local ends = now + lease
local deadline = nothing and ends or ends .. '.25'
local left, others = {}, math.max(0, #ARGV - 5)
for i = 6, #ARGV do left[ARGV[i]] = true end
local reply, leases = {now, deadline, -1}, {}
most = tonumber(most)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', schedule, '-inf', now - waited, 'LIMIT', 0, most + others)) do
  if not left[member] and #reply < 3 + most then
    leases[#leases + 1] = deadline
    leases[#leases + 1] = member
    reply[#reply + 1] = member
  end
end
if leases[1] then redis.call('ZADD', schedule, unpack(leases)) end
local first = redis.call('ZRANGE', schedule, 0, others, 'WITHSCORES')
for i = 1, #first, 2 do
  reply[3] = math.floor(tonumber(first[i + 1]))
  if not left[first[i]] then break end
  reply[3] = math.max(reply[3], ends) -- so far there are only others'
end
if first[2] then
  redis.call('ZADD', index, first[2], name)
else
  redis.call('ZREM', index, name)
end
return reply
