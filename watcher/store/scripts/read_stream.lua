-- Read a stream in parts, oldest first, together with what is noted of its size at that moment: the log, dead letters
-- or attempts.
-- uses references
-- KEYS    1 stream   2 bodies   3 sizes
-- ARGV    1 after which id   2 at most   3 the name of its part in sizes
-- returns the noted size ('': none), the id of the first record that is there ('': none), then for each record its
--         id, its fields (a list), and the bytes of its body without the count (0: it has none)
local stream, bodies, sizes = unpack(KEYS)
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local reply = {redis.call('HGET', sizes, ARGV[3]) or '', first and first[1] or ''}
for _, record in ipairs(redis.call('XRANGE', stream, '(' .. ARGV[1], '+', 'COUNT', ARGV[2])) do
  local reference = reference_in(record[2])
  local _, body = counted(reference and redis.call('HGET', bodies, reference) or '')
  reply[#reply + 1] = record[1]
  reply[#reply + 1] = record[2]
  reply[#reply + 1] = #body
end
return reply
