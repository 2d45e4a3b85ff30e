-- Begin to work on queues that were claimed, each a step: keep them until another deadline, and read their oldest
-- deliveries, and how often their heads failed already. A claim holds for a moment only: where its answer was
-- lost, no worker begins what it took. A queue where nothing waits any more is in no schedule from then on.
-- uses references, waiting, groups
-- KEYS    1 queues   2 tries   3 nothing (deleted first, see claim)   4 bodies   then for each step: its queue
-- ARGV    for each step: account, deadline, new deadline, deliveries at most
-- returns for each step: 1 done, also where a repeat finds it done, -2 the lease was lost; deliveries (a list), each
--         as it was queued; what is stored of their events (a list, nil for nothing); `count delivery` of the failed
--         attempts ('': none)
local queues, all_tries, nothing, bodies = unpack(KEYS, 1, 4)
redis.call('DEL', nothing)
local lists = {unpack(KEYS, 5)}
local accounts, reply, kept, empty = {unpack(lists)}, {}, {}, {}
for i = 1, #lists do accounts[i] = ARGV[i * 4 - 3] end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))
local tries = redis.call('HMGET', all_tries, unpack(accounts))
local alone = alone_in(lists)
for i = 1, #lists do
  local deadline, new, most = unpack(ARGV, i * 4 - 2, i * 4)
  local is_ours = deadlines[i] == deadline
  local answer, deliveries, stored = (is_ours or deadlines[i] == new) and 1 or -2, {}, {}
  if answer == 1 then deliveries = alone[i] and {alone[i]} or redis.call('LRANGE', lists[i], 0, most - 1) end
  if deliveries[1] then
    local references = {unpack(deliveries)}
    for j = 1, #deliveries do references[j] = reference_of(deliveries[j]) end
    stored = redis.call('HMGET', bodies, unpack(references))
  end
  reply[i * 4 - 3], reply[i * 4 - 2], reply[i * 4 - 1], reply[i * 4] = answer, deliveries, stored, tries[i] or ''
  if is_ours and not deliveries[1] then
    empty[#empty + 1] = accounts[i]
  elseif is_ours then
    kept[#kept + 1] = new
    kept[#kept + 1] = accounts[i]
  end
end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
if empty[1] then redis.call('ZREM', queues, unpack(empty)) end
return reply
