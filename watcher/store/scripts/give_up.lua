-- Make a queue's head a dead letter by hand. Safe to repeat: it is another head by then. A worker that has the queue in
-- hand keeps it, and finds another head when it settles.
-- uses clock, references, waiting, dead_letters
-- KEYS    1 queue   2 queues   3 due subscriptions   4 tries   5 dead letters   6 nothing (deleted first, see claim)
--         7 bodies   8 sizes   9 given up   10 backlogs
-- ARGV    1 subscription   2 account   3 delivery (the head, as it was queued)   4 reason   5 dead letters length
-- returns how many deliveries are left, -1 another head
local queue, queues, due_subscriptions, tries, dead, nothing, bodies, sizes, given_up, backlogs = unpack(KEYS, 1, 10)
local subscription, account, head, reason, dead_length = unpack(ARGV, 1, 5)
redis.call('DEL', nothing)
if waiting_in(queue, 0, 0)[1] ~= head then return -1 end
-- As in commit: a key of another type fails the step before the head is taken away.
local due = tonumber(redis.call('ZSCORE', queues, account) or 0)
redis.call('ZCARD', due_subscriptions)
redis.call('HLEN', tries)
check_types(dead, bodies, sizes, given_up, backlogs)

local now = now_ms()
take_oldest(queue, 1)
grow(backlogs, subscription, -1)
redis.call('HDEL', tries, account)
-- The server's bound in bytes is known to workers: the next one that gives something up keeps it.
bury(dead, bodies, sizes, given_up, subscription, account, reason, head, tonumber(dead_length), math.huge)
local left = length_of(queue)
if not is_in_hand(due, now) then
  if left == 0 then
    redis.call('ZREM', queues, account)
  else
    redis.call('ZADD', queues, now, account)
    redis.call('ZADD', due_subscriptions, 'LT', now, subscription)
  end
end
return left
