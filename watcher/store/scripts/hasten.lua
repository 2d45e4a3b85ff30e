-- Make lanes due now that wait for a retry. A lane that may be leased is left alone: one attempt in flight.
-- KEYS    1 lanes   2 due subscriptions   3 nothing (deleted first, see claim)
-- ARGV    1 longest lease ms   2 subscription
-- returns how many lanes
redis.call('DEL', KEYS[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local waiting = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now + tonumber(ARGV[1])), '+inf')
for _, member in ipairs(waiting) do redis.call('ZADD', KEYS[1], now, member) end
if #waiting > 0 then redis.call('ZADD', KEYS[2], 'LT', now, ARGV[2]) end
return #waiting
