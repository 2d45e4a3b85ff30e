-- Keep queues for longer, each a step, if their leases are still ours.
-- uses waiting, groups
-- KEYS    1 schedule   2 nothing (deleted first, see claim)   then for each step: its queue
-- ARGV    for each step: account, deadline, new deadline, delivery that has to be the queue's head ('': any)
-- returns for each step: 1 done, also where a repeat finds it done, -1 another head, -2 the lease was lost
local queues, nothing = unpack(KEYS, 1, 2)
redis.call('DEL', nothing)
local lists = {unpack(KEYS, 3)}
local accounts, reply, kept = {unpack(lists)}, {unpack(lists)}, {}
for i = 1, #lists do accounts[i] = ARGV[i * 4 - 3] end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))
local alone = alone_in(lists)
for i = 1, #lists do
  local list = KEYS[2 + i]
  local deadline, new, head = unpack(ARGV, i * 4 - 2, i * 4)
  if deadlines[i] == new then
    reply[i] = 1
  elseif deadlines[i] ~= deadline then
    reply[i] = -2
  elseif head ~= '' and (alone[i] or redis.call('LINDEX', list, 0)) ~= head then
    reply[i] = -1
  else
    reply[i] = 1
    kept[#kept + 1] = new
    kept[#kept + 1] = accounts[i]
  end
end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
return reply
