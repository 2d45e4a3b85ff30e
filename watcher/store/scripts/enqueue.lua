-- Put deliveries at the end of a queue, outside of any commit: an alert, or something sent again.
-- Safe to repeat: deliveries that are its end already are not put there twice, nor are dead letters.
-- KEYS    1 queue   2 queues   3 due subscriptions   4 nothing (deleted first, see claim)
--         5 dead letters (may be absent)
-- ARGV    1 subscription   2 account   3 number of deliveries, then the deliveries,
--         then the ids of the dead letters that they were
-- returns how many were queued: a dead letter that is gone meanwhile is not
local queue, queues, due_subscriptions, nothing, dead = unpack(KEYS, 1, 5)
local subscription, account, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
redis.call('DEL', nothing)
-- As in commit: a key of another type fails the step before a dead letter is taken away.
redis.call('ZCARD', queues)
redis.call('ZCARD', due_subscriptions)
local last = redis.call('LINDEX', queue, -1)
if not dead and last == ARGV[3 + count] then return count end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local queued = 0
for i = 1, count do
  local delivery, letter = ARGV[3 + i], ARGV[3 + count + i]
  if not dead or redis.call('XDEL', dead, letter) == 1 then
    redis.call('RPUSH', queue, delivery)
    queued = queued + 1
  end
end
if queued > 0 and redis.call('ZADD', queues, 'NX', now, account) == 1 then
  redis.call('ZADD', due_subscriptions, 'LT', now, subscription)
end
return queued
