-- Do not look at subscriptions for a while: there is no room for them, or they are backing off.
-- KEYS    1 due subscriptions   2 nothing (deleted first, see claim)
-- ARGV    1.. until when (ms), subscription
-- returns 1
redis.call('DEL', KEYS[2])
redis.call('ZADD', KEYS[1], 'XX', unpack(ARGV))
return 1
