-- Read a subscription's breaker; or write it, unless it was changed since it was read.
-- KEYS    1 breakers (subscription -> `failures since_ms open_until_ms paused_at_ms reason`; until a worker has
--         reported a pause, `!` and from when on any worker is to do so stand behind paused_at_ms)
-- ARGV    1 subscription   2 what was read ('': closed)   3 what to write   (only 1: read)
-- returns the breaker; the server's time in ms; 1 if this wrote it
local name, before, after = ARGV[1], ARGV[2], ARGV[3]
local found = redis.call('HGET', KEYS[1], name) or ''
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if not after or found ~= before then return {found, now, 0} end
redis.call('HDEL', KEYS[1], name) -- first: a full server still drains
if after ~= '' then redis.call('HSET', KEYS[1], name, after) end
return {after, now, 1}
