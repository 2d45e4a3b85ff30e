-- Find what may be due, in several shards with one call.
-- KEYS    an index of each: due providers, say (name -> no later than when its first is due, in ms)
-- ARGV    1 now ms
-- returns for each index: the names that are due, each with its time; none of one that cannot be read
local reply = {}
for i = 1, #KEYS do
  local found = redis.pcall('ZRANGEBYSCORE', KEYS[i], '-inf', ARGV[1], 'WITHSCORES')
  reply[i] = found.err and {} or found
end
return reply
