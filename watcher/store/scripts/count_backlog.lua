-- Count what waits for a subscription in a shard, and read what is noted of it in backlogs, at the same moment.
-- KEYS    1 backlogs   2 schedule   then for each account: its queue
-- ARGV    1 subscription   2.. the accounts
-- returns what is noted ('': nothing), and the count; -1: the schedule names other accounts by now
local backlogs, schedule = unpack(KEYS, 1, 2)
local noted = redis.call('HGET', backlogs, ARGV[1]) or ''
if redis.call('ZCARD', schedule) ~= #ARGV - 1 then return {noted, -1} end
local count = 0
for i = 2, #ARGV do
  if not redis.call('ZSCORE', schedule, ARGV[i]) then return {noted, -1} end
  count = count + redis.call('LLEN', KEYS[i + 1])
end
return {noted, count}
