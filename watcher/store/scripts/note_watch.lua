-- Note that a worker looks which accounts are stale; after a longer break the time counts from now.
-- uses clock
-- KEYS    1 watch (`since_ms seen_ms`)
-- ARGV    1 the longest break ms
-- returns since when (ms) workers have looked without such a break
local watch = KEYS[1]
local longest = tonumber(ARGV[1])
local now = now_ms()
local said = redis.pcall('GET', watch)
local since, seen = string.match(type(said) == 'string' and said or '', '^(%d+) (%d+)$')
local gap = since and #since <= 14 and now - tonumber(seen)
if not gap or gap > longest or gap < 0 then since = string.format('%d', now) end -- below zero the clock was set back
redis.call('DEL', watch) -- first: a full server is no reason to count anew
redis.call('SET', watch, since .. string.format(' %d', now))
return tonumber(since)
