-- Note a delivery to a subscription that had failed: it stands well again, unless it is paused. One that is
-- left alone stays so until then: the attempt had begun before, and a Retry-After is not taken back.
-- KEYS    1 standings
-- ARGV    1 subscription
-- returns how often it had failed until now (1 where that cannot be read), 0 if it stood well or is paused
local standing = redis.call('HGET', KEYS[1], ARGV[1])
if not standing then return 0 end
local failures, held, paused, reason = string.match(standing, '^(%d+) %d+ (%d+) (%d+)!?%d* (.*)$')
if paused and tonumber(paused) > 0 then return 0 end
local count = math.min(tonumber(failures or 1), 2 ^ 31)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if held and tonumber(held) > now then
  redis.call('HDEL', KEYS[1], ARGV[1]) -- as in note_failure
  redis.call('HSET', KEYS[1], ARGV[1], string.format('0 %d %d 0 ', now, tonumber(held)) .. reason)
  return count
end
redis.call('HDEL', KEYS[1], ARGV[1])
return count
