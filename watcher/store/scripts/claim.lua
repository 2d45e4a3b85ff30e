-- Take members that are due and lease them: the worker that claims one is alone with it until the deadline.
-- Safe to repeat: members whose answer was lost come back when their lease ends; of queues soon, as begin_queue is
-- what keeps them for longer. A claim that was held up on its way (the server hung) takes nothing, because the
-- worker that sent it has given it up.
-- KEYS    1 schedule (member -> due ms)   2 due providers, or due subscriptions
--         queues only: 3 nothing (deleted first: a full server still drains)
-- ARGV    1 lease ms   2 at most   3 take nothing from then on (ms)   4 none that are due for less than so many ms
--         5 provider, or subscription   6.. members to leave to others
-- returns now ms, deadline ms (of a poll as text, with a quarter: see make_due), when the next member is due (-1: the schedule is empty), members...
if KEYS[3] then redis.call('DEL', KEYS[3]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = now + tonumber(ARGV[1])
if not KEYS[3] then deadline = string.format('%d.25', deadline) end
if now >= tonumber(ARGV[3]) then return {now, now, now} end
local reply = {now, deadline, -1}
local leases = {}
local left, others, most = {}, math.max(0, #ARGV - 5), tonumber(ARGV[2])
for i = 6, #ARGV do left[ARGV[i]] = true end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[4], 'LIMIT', 0, most + others)) do
  if not left[member] and #reply < 3 + most then
    leases[#leases + 1] = deadline
    leases[#leases + 1] = member
    reply[#reply + 1] = member
  end
end
if leases[1] then redis.call('ZADD', KEYS[1], unpack(leases)) end
local first = redis.call('ZRANGE', KEYS[1], 0, others, 'WITHSCORES')
for i = 1, #first, 2 do
  reply[3] = math.floor(tonumber(first[i + 1]))
  if not left[first[i]] then break end
  reply[3] = math.max(reply[3], now + tonumber(ARGV[1])) -- so far there are only others'
end
if first[2] then
  redis.call('ZADD', KEYS[2], first[2], ARGV[5])
else
  redis.call('ZREM', KEYS[2], ARGV[5])
end
return reply
