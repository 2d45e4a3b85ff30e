-- Put deliveries at the end of a queue, outside of any commit: an alert, or something sent again.
-- Safe to repeat: deliveries that are its end already are not put there twice, nor are dead letters.
-- uses clock, references, waiting, dead_letters
-- KEYS    1 queue   2 queues   3 due subscriptions   4 nothing (deleted first, see claim)   5 bodies   6 sizes
--         7 backlogs   8 dead letters (may be absent)
-- ARGV    1 subscription   2 account   then for each delivery: itself, what is to be stored of its event, and the
--         id of the dead letter that it was ('': none)
-- returns how many were queued: a dead letter that is gone meanwhile is not
local queue, queues, due_subscriptions, nothing, bodies, sizes, backlogs, dead = unpack(KEYS, 1, 8)
local subscription, account = unpack(ARGV, 1, 2)
local count = (#ARGV - 2) / 3
redis.call('DEL', nothing)
-- As in commit: a key of another type fails the step before a dead letter is taken away.
redis.call('ZCARD', queues)
redis.call('ZCARD', due_subscriptions)
redis.call('HLEN', bodies)
redis.call('HLEN', sizes)
redis.call('HLEN', backlogs)
local alone, last = alone_in({queue})[1], waiting_in(queue, -1, -1)[1]
if not dead and last == ARGV[count * 3] then return count end

local now = now_ms()
local queued = {}
for i = 1, count do
  local entry, stored, letter = unpack(ARGV, 3 * i, 3 * i + 2)
  if dead then -- its reference goes with it
    local found = redis.call('XRANGE', dead, letter, letter)[1]
    if found and redis.call('XDEL', dead, letter) == 1 then
      local _, body = counted(redis.call('HGET', bodies, reference_of(entry)) or '')
      grow(sizes, 'dead', -letter_size(found[2], #body))
      queued[#queued + 1] = entry
    end
  else
    hold(bodies, reference_of(entry), stored)
    queued[#queued + 1] = entry
  end
end
if not queued[1] then return 0 end
if dead then note_dead(sizes, dead, subscription) end
append(queue, alone, not last, queued)
grow(backlogs, subscription, #queued)
if redis.call('ZADD', queues, 'NX', now, account) == 1 then
  redis.call('ZADD', due_subscriptions, 'LT', now, subscription)
end
return #queued
