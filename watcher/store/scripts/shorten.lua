-- Give up the oldest deliveries of queues, down to how many may wait in each. A repeat finds no more to give up. A
-- queue that a worker has in hand keeps one, so that its schedule keeps the lease.
-- uses clock, references, waiting, dead_letters
-- KEYS    1 schedule   2 tries   3 dead letters   4 nothing (deleted first, see claim)   5 bodies   6 sizes
--         7 given up   8 backlogs   then for each queue: its list
-- ARGV    1 subscription   2 reason   3 dead letters length (0: there is no memory for them, only names are kept)
--         4 dead letters bytes   5 how many are given up at most   then for each queue: its account, how many may wait
-- returns how many were given up
local schedule, tries, dead, nothing, bodies, sizes, given_up, backlogs = unpack(KEYS, 1, 8)
local subscription, reason, dead_length, dead_bytes, most = unpack(ARGV, 1, 5)
dead_length, dead_bytes, most = tonumber(dead_length), tonumber(dead_bytes), tonumber(most)
redis.call('DEL', nothing)
-- As in commit: a key of another type fails all queues before anything is taken from the first.
redis.call('ZCARD', schedule)
redis.call('HLEN', tries)
check_types(dead, bodies, sizes, given_up, backlogs)
local lengths = {}
for i = 1, #KEYS - 8 do
  local list = KEYS[8 + i]
  lengths[i] = length_of(list)
end

local now = now_ms()
local taken = 0
for i, length in ipairs(lengths) do
  local list = KEYS[8 + i]
  local account, stays = ARGV[2 * i + 4], tonumber(ARGV[2 * i + 5])
  local due = tonumber(redis.call('ZSCORE', schedule, account) or 0)
  if stays == 0 and is_in_hand(due, now) then stays = 1 end
  local count = math.min(length - stays, most - taken)
  if count > 0 then
    for _, entry in ipairs(take_oldest(list, count)) do
      if dead_length > 0 then
        bury(dead, bodies, sizes, given_up, subscription, account, reason, entry, dead_length, dead_bytes)
      else
        drop(bodies, reference_of(entry))
        note_given_up(given_up, dead_bytes, subscription, account, reason, entry)
      end
    end
    taken = taken + count
    if count == length then
      redis.call('ZREM', schedule, account)
      redis.call('HDEL', tries, account)
    end
  end
end
if taken > 0 then grow(backlogs, subscription, -taken) end
return taken
