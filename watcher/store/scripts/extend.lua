-- Keep queues for longer, each a step, if their leases are still ours.
-- uses groups
-- KEYS    1 schedule   2 nothing (deleted first, see claim)   then for each step: its queue
-- ARGV    for each step: account, deadline, new deadline
-- returns for each step: 1 done, also where a repeat finds it done, -2 the lease was lost
local queues, nothing = unpack(KEYS, 1, 2)
redis.call('DEL', nothing)
local accounts, reply, kept = {unpack(KEYS, 3)}, {unpack(KEYS, 3)}, {}
for i = 1, #accounts do accounts[i] = ARGV[i * 3 - 2] end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))
for i = 1, #accounts do
  local deadline, new = unpack(ARGV, i * 3 - 1, i * 3)
  if deadlines[i] == new then
    reply[i] = 1
  elseif deadlines[i] ~= deadline then
    reply[i] = -2
  else
    reply[i] = 1
    kept[#kept + 1] = new
    kept[#kept + 1] = accounts[i]
  end
end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
return reply
