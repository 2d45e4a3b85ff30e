-- Let a subscription be asked now that is left alone because of certain errors. Its failures count on, and one
-- that is paused stays so.
-- KEYS    1 standings (see note_failure)
-- ARGV    1 subscription   2.. how the reasons begin
-- returns 1 if it was left alone because of one of them
local standing = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local counts, reason = string.match(standing, '^(%d+ %d+) %d+ 0 (.*)$')
for i = 2, counts and #ARGV or 0 do
  if string.sub(reason, 1, #ARGV[i]) == ARGV[i] then
    redis.call('HDEL', KEYS[1], ARGV[1]) -- as in note_failure
    redis.call('HSET', KEYS[1], ARGV[1], counts .. ' 0 0 ' .. reason)
    return 1
  end
end
return 0
