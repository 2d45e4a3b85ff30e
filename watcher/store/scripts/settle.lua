-- Settle one attempt: take a lane's head away (delivered, or dead), or say when to try it again.
-- Fenced by the head, so that a repeat or a late worker takes nothing twice, and by the lane's lease.
-- KEYS    1 lane   2 lanes   3 due subscriptions   4 tries   5 dead letters   6 nothing (see claim)
--         7 attempts
-- ARGV    1 subscription   2 account   3 deadline   4 delivery head (its first line)
--         5 delivered, dead or retry   6 the lane's new deadline (delivered, dead) or wait ms (retry)
--         7 reason   8 dead letters length   9 attempt to remember ('': none)   10 attempts length
-- returns 1 done, -1 another head, -2 the lease was lost; then the lane's new deadline (0: it is free)
redis.call('DEL', KEYS[6])
local held_until = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or 0)
-- A repeat after a lost answer: only the first of them can have set this very deadline.
if ARGV[5] ~= 'retry' and held_until == tonumber(ARGV[6]) then return {1, held_until} end
if held_until ~= tonumber(ARGV[3]) then return {-2, 0} end
local head, following = unpack(redis.call('LRANGE', KEYS[1], 0, 1))
if not head or string.sub(head, 1, #ARGV[4]) ~= ARGV[4] then return {-1, 0} end

-- As in commit: a key of another type fails the step before it takes the head away.
local tries = redis.call('HGET', KEYS[4], ARGV[2])
redis.call('ZCARD', KEYS[3])
redis.call('XLEN', KEYS[5])
redis.call('XLEN', KEYS[7])

if ARGV[9] ~= '' then redis.call('XADD', KEYS[7], 'MAXLEN', '~', ARGV[10], '*', 'attempt', ARGV[9]) end
if ARGV[5] == 'retry' then
  local time = redis.call('TIME')
  local later = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[6])
  -- Within the millisecond of its claim the time would stay the same, and not refuse a repeat.
  if later == held_until then later = later + 1 end
  local count, tried = string.match(tries or '', '^(%d+) (.*)$')
  count = tried == ARGV[4] and count + 1 or 1
  redis.call('HSET', KEYS[4], ARGV[2], string.format('%d %s', count, ARGV[4]))
  redis.call('ZADD', KEYS[2], later, ARGV[2])
  redis.call('ZADD', KEYS[3], 'LT', later, ARGV[1])
  return {1, 0}
end

redis.call('LPOP', KEYS[1])
if tries then redis.call('HDEL', KEYS[4], ARGV[2]) end
if ARGV[5] == 'dead' then
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[8], '*', 'account', ARGV[2], 'reason', ARGV[7], 'delivery', head)
end
if not following then
  redis.call('ZREM', KEYS[2], ARGV[2])
  return {1, 0}
end
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[2])
return {1, tonumber(ARGV[6])}
