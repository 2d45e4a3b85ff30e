-- Read when the first of each schedule is due, and when an index says it is, at the same moment.
-- KEYS    1 index   2.. schedules
-- ARGV    for each schedule: its name in the index
-- returns for each schedule when its first is due, and what the index says, in ms ('': nothing)
local index = KEYS[1]
local reply = {}
for i = 1, #ARGV do
  reply[2 * i - 1] = redis.call('ZRANGE', KEYS[i + 1], 0, 0, 'WITHSCORES')[2] or ''
  reply[2 * i] = redis.call('ZSCORE', index, ARGV[i]) or ''
end
return reply
