-- Take a shard that is to be moved from one layout to another: steps of any other mover are refused from now on.
-- KEYS    1 layout of the shard
-- ARGV    1 turn: names the move, a later one has a larger number   2 the first step of this mover
-- returns 1 taken, 0 this move is done here, -1 a later move has begun
local layout = KEYS[1]
local turn, done = unpack(redis.call('HMGET', layout, 'turn', 'done'))
if turn ~= ARGV[1] then
  if (tonumber(turn) or 0) > tonumber(ARGV[1]) then return -1 end
  redis.call('DEL', layout)
  redis.call('HSET', layout, 'turn', ARGV[1])
elseif done == ARGV[1] then
  return 0
end
redis.call('HSET', layout, 'step', ARGV[2])
return 1
