-- Begin to work on queues that were claimed, each a step: keep them until another deadline, and read their oldest
-- deliveries, and how often their heads failed already. A claim holds for a moment only: where its answer was
-- lost, no worker begins what it took.
-- KEYS    1 queues   2 tries   3 nothing (deleted first, see claim)   then for each step: its queue
-- ARGV    for each step: account, deadline, new deadline, deliveries at most
-- returns for each step: 1 done, also where a repeat finds it done, -2 the lease was lost; deliveries (a list);
--         `count head` of the failed attempts ('': none)
local queues, all_tries, nothing = unpack(KEYS, 1, 3)
redis.call('DEL', nothing)
local accounts, reply, kept = {}, {}, {}
for i = 1, #KEYS - 3 do accounts[i] = ARGV[i * 4 - 3] end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))
local tries = redis.call('HMGET', all_tries, unpack(accounts))
for i = 1, #accounts do
  local account, deadline, new, most = unpack(ARGV, i * 4 - 3, i * 4)
  local is_ours = deadlines[i] == deadline
  local answer = (is_ours or deadlines[i] == new) and 1 or -2
  reply[i * 3 - 2] = answer
  reply[i * 3 - 1] = answer == 1 and redis.call('LRANGE', KEYS[3 + i], 0, most - 1) or {}
  reply[i * 3] = tries[i] or ''
  if is_ours then
    kept[#kept + 1] = new
    kept[#kept + 1] = account
  end
end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
return reply
