-- Make accounts due, whenever they were, but for those that a worker has in hand.
-- uses leases
-- KEYS    1 polls   2 due providers
-- ARGV    1 due ms   2 provider   3.. accounts
-- returns the accounts that are in hand
local scores = redis.call('ZMSCORE', KEYS[1], unpack(ARGV, 3))
local due, in_hand = {}, {}
for i = 1, #ARGV - 2 do
  local score = scores[i] and tonumber(scores[i])
  if score and score > tonumber(ARGV[1]) and is_lease(score) then
    in_hand[#in_hand + 1] = ARGV[i + 2]
  elseif score then
    due[#due + 1] = ARGV[1]
    due[#due + 1] = ARGV[i + 2]
  end
end
if due[1] then
  redis.call('ZADD', KEYS[1], unpack(due))
  redis.call('ZADD', KEYS[2], 'LT', ARGV[1], ARGV[2])
end
return in_hand
