-- Note a rejected poll: the state and its time stay, the next poll waits longer each time.
-- uses clock, leases
-- KEYS    1 polls   2 failing   3 due providers
-- ARGV    1 account   2 deadline   3 error class and reason   4 wait at least ms   5 provider
--         6.. waits ms, then level
-- returns rejections in a row, since when (ms), wait ms; or -2 when the lease was lost
local polls, failing, due_providers = unpack(KEYS, 1, 3)
local account, deadline, why, at_least, provider = unpack(ARGV, 1, 5)
local score = redis.call('ZSCORE', polls, account)
-- If it was woken meanwhile, its retry is the poll that follows.
if tonumber(score or 0) ~= tonumber(deadline) and not was_woken(score, deadline) then return {-2, 0, 0} end
local now = now_ms()
local count, since = string.match(redis.call('HGET', failing, account) or '', '^(%d+) (%d+) ')
count, since = (tonumber(count) or 0) + 1, tonumber(since) or now
local wait = math.max(tonumber(at_least), tonumber(ARGV[math.min(5 + count, #ARGV)]))
redis.call('ZADD', due_providers, 'LT', now + wait, provider)
redis.call('HSET', failing, account, string.format('%d %d %s', count, since, why))
redis.call('ZADD', polls, string.format('%d.5', now + wait), account) -- the half: see make_retries_due
return {count, since, wait}
