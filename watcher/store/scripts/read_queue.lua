-- Read deliveries of a queue, with what is stored of their events.
-- uses references
-- KEYS    1 queue   2 bodies
-- ARGV    1 from which place   2 to which place
-- returns each as it was queued, and what is stored of its event ('': nothing)
local queue, bodies = unpack(KEYS, 1, 2)
local reply = {}
for _, entry in ipairs(redis.call('LRANGE', queue, ARGV[1], ARGV[2])) do
  reply[#reply + 1] = entry
  reply[#reply + 1] = redis.call('HGET', bodies, reference_of(entry)) or ''
end
return reply
