-- Make members due now that wait for another try. One that may be leased is left alone.
-- KEYS    1 schedule   lanes only: 2 due subscriptions   3 nothing (deleted first, see claim)
-- ARGV    1 longest lease ms   lanes only: 2 subscription
-- returns how many members; lanes that are due already are looked for at once, too
if KEYS[3] then redis.call('DEL', KEYS[3]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local waiting = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%d', now + tonumber(ARGV[1])), '+inf')
for _, member in ipairs(waiting) do redis.call('ZADD', KEYS[1], now, member) end
if KEYS[2] and redis.call('ZCARD', KEYS[1]) > 0 then redis.call('ZADD', KEYS[2], 'LT', now, ARGV[2]) end
return #waiting
