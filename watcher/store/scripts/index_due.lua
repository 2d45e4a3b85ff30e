-- Note when the first poll of each provider is due, where the index says later or nothing: an operator deleted it,
-- say. One of another type is made anew, as nothing is lost with it; a schedule of another type is passed over, and
-- costs its own polls only. A schedule that is gone is named as due: to be claimed at shows a worker that it is gone.
-- uses clock
-- KEYS    1 due providers   2.. schedules (account -> due ms)
-- ARGV    for each schedule: its provider
-- returns 1
local index = redis.pcall('ZCARD', KEYS[1])
if type(index) == 'table' then redis.call('DEL', KEYS[1]) end
for i = 1, #ARGV do
  local first = redis.pcall('ZRANGE', KEYS[i + 1], 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', KEYS[1], 'LT', first[2], ARGV[i])
  elseif not first.err and redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'LT', now_ms(), ARGV[i])
  end
end
return 1
