-- Read deliveries of a queue, with what is stored of their events.
-- uses references, waiting
-- KEYS    1 queue   2 bodies
-- ARGV    1 from which place (counted from zero)   2 to which place
-- returns each as it was queued, and what is stored of its event ('': nothing)
local queue, bodies = unpack(KEYS, 1, 2)
local reply = {}
for _, entry in ipairs(waiting_in(queue, tonumber(ARGV[1]), tonumber(ARGV[2]))) do
  reply[#reply + 1] = entry
  reply[#reply + 1] = redis.call('HGET', bodies, reference_of(entry)) or ''
end
return reply
