-- Note a good poll that found nothing new, and say when the next one is due.
-- KEYS    1 state   2 polls   3 failing
-- ARGV    1 account   2 deadline   3 expected version   4 polled at ms   5 next poll due ms
-- returns 1 done, -1 the state moved on, -2 the lease was lost
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[3] then return -1 end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return -2 end
local has_failed = redis.call('HGET', KEYS[3], ARGV[1]) -- a key of another type fails before the first write
redis.call('HSET', KEYS[1], 'polled_at', ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
if has_failed then redis.call('HDEL', KEYS[3], ARGV[1]) end
return 1
