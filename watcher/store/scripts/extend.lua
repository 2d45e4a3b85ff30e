-- Keep a lease for longer, if it is still ours.
-- KEYS    1 schedule   2 nothing (deleted first, see claim)
-- ARGV    1 member   2 deadline   3 new deadline
-- returns 1 done, also where a repeat finds it done, -2 the lease was lost
redis.call('DEL', KEYS[2])
local deadline = redis.call('ZSCORE', KEYS[1], ARGV[1])
if deadline == ARGV[3] then return 1 end
if deadline ~= ARGV[2] then return -2 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
