-- Give a lease back: the member is due when we say, if it is still ours.
-- uses clock, leases
-- KEYS    1 schedule   2 due providers, or due subscriptions   queues only: 3 nothing (deleted first, see claim)
-- ARGV    1 member   2 deadline   3 due in ms from now   4 provider, or subscription
-- returns 1 done, -2 the lease was lost
local schedule, index, nothing = unpack(KEYS, 1, 3)
local member, deadline, due_in, name = unpack(ARGV, 1, 4)
if nothing then redis.call('DEL', nothing) end
local score = redis.call('ZSCORE', schedule, member)
if tonumber(score or 0) ~= tonumber(deadline) and not was_woken(score, deadline) then return -2 end
local due = now_ms() + due_in
redis.call('ZADD', index, 'LT', due, name)
redis.call('ZADD', schedule, string.format(due_in == '0' and '%d' or '%d.5', due), member) -- the half: see make_retries_due
return 1
