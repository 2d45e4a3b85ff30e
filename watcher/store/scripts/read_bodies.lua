-- List bodies, a part at a time, and how many refer to each, as it says.
-- KEYS    1 bodies
-- ARGV    1 cursor ('0': from the beginning)   2 about how many
-- returns the next cursor ('0': that was all), then for each its reference, and the first 100 bytes of what stands in
--         front of its content (`count type` and a newline)
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local reply = {found[1]}
for i = 1, #found[2], 2 do
  reply[i + 1] = found[2][i]
  reply[i + 2] = string.sub(string.match(found[2][i + 1], '^[^\n]*\n?'), 1, 100)
end
return reply
