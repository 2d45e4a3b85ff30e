-- Measure queues of one shard.
-- uses waiting
-- KEYS    queues (their lists)
-- returns for each queue: how many deliveries wait in it, and the oldest, as it was queued ('' if none)
local reply = {}
for i = 1, #KEYS do
  local list = KEYS[i]
  reply[#reply + 1] = length_of(list)
  reply[#reply + 1] = waiting_in(list, 0, 0)[1] or ''
end
return reply
