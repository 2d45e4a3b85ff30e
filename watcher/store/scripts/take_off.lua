-- Take accounts off a provider's schedule, and note from when on those that are not configured at all are forgotten.
-- KEYS    1 schedule   2 failing   3 removed accounts   4 nothing (deleted first, see claim)
-- ARGV    1 when they are forgotten (ms)   2 how many are not configured at all   then the accounts, those first
-- returns how many were on the schedule
local schedule, failing, removed, nothing = unpack(KEYS, 1, 4)
local forget_at, gone = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('DEL', nothing)
redis.call('HLEN', failing)
redis.call('ZCARD', removed)
local accounts, noted = {}, {}
for i = 3, #ARGV do accounts[i - 2] = ARGV[i] end
for i = 1, gone do
  noted[2 * i - 1] = forget_at
  noted[2 * i] = accounts[i]
end
-- A poll in flight has lost its lease with this, and cannot change the state any more.
local count = redis.call('ZREM', schedule, unpack(accounts))
redis.call('HDEL', failing, unpack(accounts))
if noted[1] then redis.call('ZADD', removed, unpack(noted)) end
return count
