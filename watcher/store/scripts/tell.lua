-- Take it upon oneself to tell of a pause, for a while, or note that it was told.
-- KEYS    1 standings (see note_failure)
-- ARGV    1 subscription   2 when it was paused (ms)   3 for how long nobody else is to tell of it, in ms
--         (0: it was told)
-- returns 1 if the asker is to tell of it (or has), 0 if somebody else is at it, or nobody need do so any more
local standing = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local before, from, reason = string.match(standing, '^(%d+ %d+ %d+ ' .. ARGV[2] .. ')!(%d+) (.*)$')
if not before then return 0 end
if ARGV[3] ~= '0' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if now < tonumber(from) then return 0 end
  before = before .. string.format('!%d', now + ARGV[3])
end
redis.call('HDEL', KEYS[1], ARGV[1]) -- as in note_failure
redis.call('HSET', KEYS[1], ARGV[1], before .. ' ' .. reason)
return 1
