-- Replace an account's state, log what happened and queue its deliveries, as one step, if nobody else did
-- meanwhile. Fenced by the state's version, which is also the token of the commit that wrote it (a repeat
-- after a lost answer finds its own), and by the poll's lease. The first write allocates, so that a full
-- server refuses the whole step.
-- KEYS    1 state   2 polls   3 failing   4 log   5 due subscriptions
--         then for each lane: its list, its schedule, its dead letters
-- ARGV    1 account   2 deadline   3 expected version ('': no state yet)   4 new version   5 sequence
--         6 polled at ms ('': no good poll, so that its time and the failures stay)   7 next poll due ms   8 state body   9 log length   10 dead letters length
--         11 lane length   12 number of log entries, then the entries (opaque bytes),
--         then for each lane: subscription, number of deliveries, deliveries (opaque bytes)
-- returns 1 done, 0 done before, -1 the state moved on, -2 the lease was lost; then the deliveries that a
--         full lane pushed out into the dead letters
local version = redis.call('HGET', KEYS[1], 'version') or ''
if version == ARGV[4] then return {0, 0} end
if version ~= ARGV[3] then return {-1, 0} end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return {-2, 0} end

-- Ask each key something only its own type answers: a damaged one fails the step before its first write.
local has_failed = redis.call('HGET', KEYS[3], ARGV[1])
redis.call('XLEN', KEYS[4])
redis.call('ZCARD', KEYS[5])
for i = 6, #KEYS, 3 do
  redis.call('LLEN', KEYS[i])
  redis.call('ZCARD', KEYS[i + 1])
  redis.call('XLEN', KEYS[i + 2])
end

if ARGV[6] == '' then
  redis.call('HSET', KEYS[1], 'version', ARGV[4], 'sequence', ARGV[5], 'body', ARGV[8])
else
  redis.call('HSET', KEYS[1], 'version', ARGV[4], 'sequence', ARGV[5], 'body', ARGV[8], 'polled_at', ARGV[6])
  if has_failed then redis.call('HDEL', KEYS[3], ARGV[1]) end
end
redis.call('ZADD', KEYS[2], ARGV[7], ARGV[1])

local at = 13
for _ = 1, tonumber(ARGV[12]) do
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[9], '*', 'account', ARGV[1], 'entry', ARGV[at])
  at = at + 1
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local pushed_out = 0
local key = 6
while KEYS[key] do
  local subscription, count = ARGV[at], tonumber(ARGV[at + 1])
  local length = 0
  for i = at + 2, at + 1 + count do length = redis.call('RPUSH', KEYS[key], ARGV[i]) end
  at = at + 2 + count
  for _ = 1, length - tonumber(ARGV[11]) do
    redis.call('XADD', KEYS[key + 2], 'MAXLEN', '~', ARGV[10], '*',
      'account', ARGV[1], 'reason', 'lane full', 'delivery', redis.call('LPOP', KEYS[key]))
    pushed_out = pushed_out + 1
  end
  -- NX: a lane that waits for its retry, or is leased, keeps its time.
  if redis.call('ZADD', KEYS[key + 1], 'NX', now, ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[5], 'LT', now, subscription)
  end
  key = key + 3
end
return {1, pushed_out}
