-- Give a lease back: the member is due when we say, if it is still ours.
-- KEYS    1 schedule   2 due providers, or due subscriptions   queues only: 3 nothing (deleted first, see claim)
-- ARGV    1 member   2 deadline   3 due in ms from now   4 provider, or subscription
-- returns 1 done, -2 the lease was lost
if KEYS[3] then redis.call('DEL', KEYS[3]) end
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return -2 end
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
local score = ARGV[3] == '0' and '%d' or '%d.5' -- the half: see make_retries_due
redis.call('ZADD', KEYS[1], string.format(score, due), ARGV[1])
redis.call('ZADD', KEYS[2], 'LT', due, ARGV[4])
return 1
