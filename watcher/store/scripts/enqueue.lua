-- Put deliveries at the end of a queue, outside of any commit: an alert, or something sent again.
-- Safe to repeat: deliveries that are its end already are not put there twice, nor are dead letters.
-- KEYS    1 queue   2 queues   3 due subscriptions   4 nothing (deleted first, see claim)
--         5 dead letters (may be absent)
-- ARGV    1 subscription   2 account   3 number of deliveries, then the deliveries,
--         then the ids of the dead letters that they were
-- returns how many were queued: a dead letter that is gone meanwhile is not
redis.call('DEL', KEYS[4])
-- As in commit: a key of another type fails the step before a dead letter is taken away.
redis.call('ZCARD', KEYS[2])
redis.call('ZCARD', KEYS[3])
local count = tonumber(ARGV[3])
local last = redis.call('LINDEX', KEYS[1], -1)
if not KEYS[5] and last == ARGV[3 + count] then return count end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local queued = 0
for i = 1, count do
  if not KEYS[5] or redis.call('XDEL', KEYS[5], ARGV[3 + count + i]) == 1 then
    redis.call('RPUSH', KEYS[1], ARGV[3 + i])
    queued = queued + 1
  end
end
if queued > 0 and redis.call('ZADD', KEYS[2], 'NX', now, ARGV[2]) == 1 then
  redis.call('ZADD', KEYS[3], 'LT', now, ARGV[1])
end
return queued
