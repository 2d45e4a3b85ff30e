-- Free memory: take the oldest of a stream away. Dead letters leave their names; records of the log and attempts do not.
-- uses references, dead_letters
-- KEYS    1 stream   2 nothing (deleted first, see claim)   3 bodies   4 sizes   5 given up
-- ARGV    1 what it holds (log, attempts or dead)   2 how many at most   3 subscription ('': of the log)
--         4 dead letters bytes
-- returns how many were taken away
local stream, nothing, bodies, sizes, given_up = unpack(KEYS, 1, 5)
local part, most, subscription, dead_bytes = unpack(ARGV, 1, 4)
redis.call('DEL', nothing)
-- As in commit: a key of another type fails all of it before anything is taken away.
redis.call('HLEN', bodies)
redis.call('HLEN', sizes)
redis.call('XLEN', given_up)
local gone, freed = {}, 0
for i, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', most)) do
  local fields = entry[2]
  local first, second, third = fields[2], fields[4] or '', fields[6] or ''
  gone[i] = entry[1]
  if part == 'dead' then
    freed = freed + letter_size(fields, drop(bodies, reference_of(third)))
    note_given_up(given_up, tonumber(dead_bytes), subscription, first, second, third)
  else
    freed = freed + #first + #second + #third + 80 + drop(bodies, reference_in(fields) or '')
  end
end
if gone[1] then
  redis.call('XDEL', stream, unpack(gone))
  grow(sizes, part, -freed)
  if part == 'dead' then note_dead(sizes, stream, subscription) end
  if part == 'log' then redis.call('HSET', sizes, 'trimmed', gone[#gone]) end
end
return #gone
