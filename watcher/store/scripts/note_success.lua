-- Note a delivery to a subscription that had failed: it stands well again, unless it is paused.
-- KEYS    1 standings
-- ARGV    1 subscription
-- returns 1 if it had failed until now, 0 if it stood well or is paused
local standing = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local paused = string.match(standing, '^%d+ %d+ %d+ (%d+) ')
if paused == nil or tonumber(paused) > 0 then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
