-- Take members that are due and lease them: whoever claims one is alone with it until the deadline.
-- Safe to repeat: members whose answer was lost come back when their lease ends; of lanes soon, as begin_lane is
-- what keeps them for longer. A claim that was held up on its way (the server hung) is void: whoever sent it has
-- given it up, and nobody would work on what it takes.
-- KEYS    1 schedule (member -> due ms)   2 due providers, or due subscriptions
--         lanes only: 3 nothing (deleted first: a full server still drains)
-- ARGV    1 lease ms   2 at most   3 void from then on (ms)   4 none that are due for less than so many ms
--         5 provider, or subscription
-- returns now ms, deadline ms (of a poll as text, with a quarter: see make_due), when the next member is due (-1: the schedule is empty), members...
if KEYS[3] then redis.call('DEL', KEYS[3]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = now + tonumber(ARGV[1])
if not KEYS[3] then deadline = string.format('%d.25', deadline) end
if now >= tonumber(ARGV[3]) then return {now, now, now} end
local reply = {now, deadline, -1}
local leases = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[4], 'LIMIT', 0, ARGV[2])) do
  leases[#leases + 1] = deadline
  leases[#leases + 1] = member
  reply[#reply + 1] = member
end
if leases[1] then redis.call('ZADD', KEYS[1], unpack(leases)) end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if first[2] then reply[3] = math.floor(tonumber(first[2])) end
if first[2] then
  redis.call('ZADD', KEYS[2], first[2], ARGV[5])
else
  redis.call('ZREM', KEYS[2], ARGV[5])
end
return reply
