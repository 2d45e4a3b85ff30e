-- Do not look at subscriptions for a while: there is no room for them, or they are backing off.
-- uses groups
-- KEYS    1 due subscriptions   2 nothing (deleted first, see claim)
-- ARGV    1.. until when (ms), subscription
-- returns 1
local due_subscriptions, nothing = unpack(KEYS, 1, 2)
redis.call('DEL', nothing)
redis.call('ZADD', due_subscriptions, 'XX', unpack(ARGV))
return {1}
