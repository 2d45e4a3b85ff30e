-- Begin to work on queues that were claimed, each a step: keep them until another deadline, and read their oldest
-- deliveries, and how often their heads failed already. A claim holds for a moment only: where its answer was
-- lost, no worker begins what it took. A queue where nothing waits any more is in no schedule from then on.
-- uses references, waiting, groups
-- KEYS    1 queues   2 tries   3 nothing (deleted first, see claim)   4 bodies   then for each step: its queue
-- ARGV    for each step: account, deadline, new deadline, deliveries at most
-- returns for each step: 1 done, also where a repeat finds it done, -2 the lease was lost; deliveries (a list: each
--         as it was queued, and what is stored of its event, '' for nothing); `count delivery` of the failed
--         attempts ('': none)
local queues, all_tries, nothing, bodies = unpack(KEYS, 1, 4)
redis.call('DEL', nothing)
local lists = {unpack(KEYS, 5)}
local accounts, reply, kept, empty = {}, {}, {}, {}
for i = 1, #lists do accounts[i] = ARGV[i * 4 - 3] end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))
local tries = redis.call('HMGET', all_tries, unpack(accounts))
local alone, begun, references = alone_in(lists), {}, {}
for i, account in ipairs(accounts) do
  local _, deadline, new, most = unpack(ARGV, i * 4 - 3, i * 4)
  local is_ours = deadlines[i] == deadline
  local answer, deliveries = (is_ours or deadlines[i] == new) and 1 or -2, {}
  if answer == 1 then
    for j, entry in ipairs(alone[i] and {alone[i]} or redis.call('LRANGE', KEYS[4 + i], 0, most - 1)) do
      deliveries[2 * j - 1], deliveries[2 * j] = entry, ''
      begun[#begun + 1] = {deliveries, 2 * j}
      references[#begun] = reference_of(entry)
    end
  end
  reply[i * 3 - 2], reply[i * 3 - 1], reply[i * 3] = answer, deliveries, tries[i] or ''
  if is_ours and not deliveries[1] then
    empty[#empty + 1] = account
  elseif is_ours then
    kept[#kept + 1] = new
    kept[#kept + 1] = account
  end
end
if references[1] then
  for i, stored in ipairs(redis.call('HMGET', bodies, unpack(references))) do
    local deliveries, at = unpack(begun[i])
    deliveries[at] = stored or ''
  end
end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
if empty[1] then redis.call('ZREM', queues, unpack(empty)) end
return reply
