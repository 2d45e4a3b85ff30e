-- Begin, end or take back a move from one layout to another, unless another process did something meanwhile.
-- KEYS    1 meta
-- ARGV    1 shards   2 schema, as it was read ('': not there)   3 moved   4 moving   5 turn   6 schema from now on
--         7 moved   8 moving   9 turn
-- returns 1 done, 0 the numbers are not those that were read
local meta = KEYS[1]
local names = {'schema', 'moved', 'moving', 'turn'}
local found = redis.call('HMGET', meta, unpack(names))
for i = 1, 4 do
  if (found[i] or '') ~= ARGV[1 + i] then return 0 end
end
redis.call('HSET', meta, 'shards', ARGV[1])
for i = 1, 4 do
  if ARGV[5 + i] == '' then
    redis.call('HDEL', meta, names[i])
  else
    redis.call('HSET', meta, names[i], ARGV[5 + i])
  end
end
return 1
