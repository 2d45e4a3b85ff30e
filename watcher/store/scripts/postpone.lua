-- Note a rejected poll: the state and its time stay, the next poll waits longer each time.
-- KEYS    1 polls   2 failing   3 due providers
-- ARGV    1 account   2 deadline   3 error class and reason   4 wait at least ms   5 provider
--         6.. waits ms, then level
-- returns rejections in a row, since when (ms), wait ms; or -2 when the lease was lost
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return {-2, 0, 0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count, since = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^(%d+) (%d+) ')
count, since = (tonumber(count) or 0) + 1, tonumber(since) or now
local wait = math.max(tonumber(ARGV[4]), tonumber(ARGV[math.min(5 + count, #ARGV)]))
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d %d %s', count, since, ARGV[3]))
redis.call('ZADD', KEYS[1], string.format('%d.5', now + wait), ARGV[1]) -- the half: see make_retries_due
redis.call('ZADD', KEYS[3], 'LT', now + wait, ARGV[5])
return {count, since, wait}
