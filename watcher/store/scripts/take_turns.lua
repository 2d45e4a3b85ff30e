-- Reserve the next starts of requests, evenly spaced, over all workers together; or none, if they are far off.
-- KEYS    1 rate
-- ARGV    1 turns   2 ms between two turns   3 no turn before this many ms from now (a provider's Retry-After)
--         4 reserve nothing if the first turn is further off than this many ms (absent: however far)
-- returns how many ms from now the first turn is, as text with three decimals
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local text = redis.pcall('GET', KEYS[1])
local free = tonumber(type(text) == 'string' and text or 0) -- of another type it is made anew
-- No worker reserves six hours ahead: the clock was set back, or the key is damaged (NaN is below nothing).
if not (free and free < now + 21600000) then free = 0 end
local first = math.max(now + tonumber(ARGV[3]), free)
if ARGV[4] and first - now > tonumber(ARGV[4]) then return string.format('%.3f', first - now) end
local after = first + tonumber(ARGV[1]) * tonumber(ARGV[2])
if ARGV[4] then redis.call('DEL', KEYS[1]) end -- first: what a poll in hand waits for is no reason to fail on a full server
redis.call('SET', KEYS[1], string.format('%.3f', after), 'PX', math.ceil(after - now) + 60000)
return string.format('%.3f', first - now)
