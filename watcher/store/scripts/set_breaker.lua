-- Read a subscription's breaker; or write it, unless it was changed since it was read.
-- uses clock
-- KEYS    1 breakers (subscription -> JSON, see Breaker)
-- ARGV    1 subscription   2 what was read ('': nothing)   3 what to write ('': nothing)   (only 1: read)
-- returns the breaker; the server's time in ms; 1 if this wrote it
local breakers, name, before, after = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local found = redis.call('HGET', breakers, name) or ''
local now = now_ms()
if not after or found ~= before then return {found, now, 0} end
redis.call('HDEL', breakers, name) -- first: a full server still drains
if after ~= '' then redis.call('HSET', breakers, name, after) end
return {after, now, 1}
