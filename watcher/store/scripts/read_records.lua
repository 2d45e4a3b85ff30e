-- Read records of the log, or dead letters, with what is stored of their events.
-- uses references
-- KEYS    1 stream   2 bodies
-- ARGV    1 XRANGE or XREVRANGE   2 from   3 to   4 at most
-- returns for each its id, its fields (a list), and what is stored of its event ('': nothing, or it is about none)
local stream, bodies = unpack(KEYS, 1, 2)
local records
if ARGV[1] == 'XRANGE' then
  records = redis.call('XRANGE', stream, ARGV[2], ARGV[3], 'COUNT', ARGV[4])
else
  records = redis.call('XREVRANGE', stream, ARGV[2], ARGV[3], 'COUNT', ARGV[4])
end
local reply = {}
for _, record in ipairs(records) do
  local reference = reference_in(record[2])
  reply[#reply + 1] = record[1]
  reply[#reply + 1] = record[2]
  reply[#reply + 1] = reference and redis.call('HGET', bodies, reference) or ''
end
return reply
