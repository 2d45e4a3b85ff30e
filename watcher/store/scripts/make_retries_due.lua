-- Make members due now that wait for another try. One that may be leased is left alone: a score with half a
-- millisecond is no lease (settle, postpone and release write it), and neither is what waits for longer than
-- any lease, which is how versions before 0.2 wrote it.
-- uses clock
-- KEYS    1 schedule   2 due providers, or due subscriptions   queues only: 3 nothing (deleted first, see claim)
-- ARGV    1 longest lease ms   2 provider, or subscription
-- returns how many members; those that are due already are looked for at once, too
if KEYS[3] then redis.call('DEL', KEYS[3]) end
local now = now_ms()
local waiting = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%d', now), '+inf', 'WITHSCORES')
local made_due = 0
for i = 1, #waiting, 2 do
  local due = tonumber(waiting[i + 1])
  local part = due % 1
  if part == 0.5 or (part == 0 and due > now + tonumber(ARGV[1])) then
    redis.call('ZADD', KEYS[1], now, waiting[i])
    made_due = made_due + 1
  end
end
if redis.call('ZCARD', KEYS[1]) > 0 then redis.call('ZADD', KEYS[2], 'LT', now, ARGV[2]) end
return made_due
