-- Reserve the start of a subscription's next attempt, evenly spaced over all workers; or let none begin for a while.
-- How many were delivered is counted in seconds in which turns were not held.
-- KEYS    1 rate (`free second count before held`: ms from which on a turn is free; ms when the second began, how many
--         were delivered in it and in the one before; ms until when turns are held)
-- ARGV    1 turn or hold   2 how many this worker delivered since it last said so
--         3 ms between two turns, or to hold them for   4 (turn) reserve nothing that is further off than so many ms
-- returns turn: how many ms from now it is; hold: how many were delivered in the last second, -1 if that was not
--         counted yet; as text with three decimals
local rate, what, delivered, ms, within = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local text = redis.pcall('GET', rate)
if type(text) ~= 'string' then text = '' end -- of another type: it is made anew
local found = {}
for word in string.gmatch(text, '%S+') do found[#found + 1] = tonumber(word) end
local free, second, count, before, held = unpack(found, 1, 5)
-- No turn is further off than a day's hold: the clock was set back, or the key is damaged (NaN is below nothing).
local function is_time(at) return at and at >= 0 and at < now + 90000000 end
local is_new = not (is_time(free) and is_time(second) and is_time(held) and count and before)
if is_new then free, second, count, before, held = 0, now, 0, 0, 0 end
if now - second >= 2000 then
  second, count, before = now, 0, 0
elseif now - second >= 1000 then
  second, count, before = second + 1000, 0, count
end
count = count + delivered
local answer
if what == 'turn' then
  local first = math.max(now, free)
  answer = first - now
  if answer <= within then free = first + ms end
else
  answer = is_new and -1 or before * (1 - math.max(0, now - second) / 1000) + count
  local until_ms = now + ms
  if until_ms > held then
    second = second + until_ms - math.max(now, held) -- what is held does not count as time
    held = until_ms
  end
  free = math.max(free, held)
end
redis.call('DEL', rate) -- first: a full server still drains
local words = string.format('%.3f %.3f %d %d %.3f', free, second, count, before, held)
redis.call('SET', rate, words, 'PX', math.ceil(math.max(0, free - now)) + 60000)
return string.format('%.3f', answer)
