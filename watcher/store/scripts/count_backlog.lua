-- Count what waits for a subscription in a shard, and read what is noted of it in backlogs, at the same moment.
-- uses waiting
-- KEYS    1 backlogs   2 schedule   3 nothing (deleted first, see claim)   then for each account: its queue
-- ARGV    1 subscription   2 whether the count is noted from now on (one or zero)   then the accounts
-- returns what was noted ('': nothing), and the count; -1: the schedule names other accounts by now
local backlogs, schedule, nothing = unpack(KEYS, 1, 3)
local subscription, is_noted = unpack(ARGV, 1, 2)
local noted = redis.call('HGET', backlogs, subscription) or ''
if redis.call('ZCARD', schedule) ~= #ARGV - 2 then return {noted, -1} end
local count = 0
for i = 3, #ARGV do
  if not redis.call('ZSCORE', schedule, ARGV[i]) then return {noted, -1} end
  local list = KEYS[i + 1]
  count = count + length_of(list)
end
if is_noted == '1' then
  redis.call('DEL', nothing)
  redis.call('HDEL', backlogs, subscription)
  if count > 0 then redis.call('HSET', backlogs, subscription, count) end
end
return {noted, count}
