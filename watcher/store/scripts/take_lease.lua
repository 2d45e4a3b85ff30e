-- Take, keep or give back what one worker has at a time: a lease that is no queue's and no account's.
-- KEYS    1 lease   (deleted first: a full server still drains)
-- ARGV    1 worker   2 how long it keeps the lease, in ms (0: give it back)
-- returns 1 if the worker has the lease (or it is free again), 0 if another worker has it
local holder = redis.pcall('GET', KEYS[1])
if type(holder) == 'string' and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
