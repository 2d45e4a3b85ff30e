-- Take accounts off a provider's schedule, and note from when on those that are not configured at all are forgotten. What
-- the directory has at that provider stays: it may have been put there since the worker looked.
-- uses records
-- KEYS    1 schedule   2 failing   3 removed accounts   4 nothing (deleted first, see claim)   5 records of accounts
-- ARGV    1 when they are forgotten (ms)   2 how many are not configured at all   3 provider   4.. the accounts, those
--         first
-- returns the accounts that stay
local schedule, failing, removed, nothing, records = unpack(KEYS, 1, 5)
local forget_at, gone, provider = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
redis.call('DEL', nothing)
redis.call('ZCARD', schedule)
redis.call('HLEN', failing)
redis.call('ZCARD', removed)
local leaving, noted, stay = {}, {}, {}
for i, record in ipairs(redis.call('HMGET', records, unpack(ARGV, 4))) do
  local account = ARGV[3 + i]
  -- A record that cannot be read is not worth less.
  if record and (provider_of(record) or provider) == provider then
    stay[#stay + 1] = account
  else
    leaving[#leaving + 1] = account
    if i <= gone and not record then
      noted[#noted + 1] = forget_at
      noted[#noted + 1] = account
    end
  end
end
if leaving[1] then
  -- A poll in flight has lost its lease with this, and cannot change the state any more.
  redis.call('ZREM', schedule, unpack(leaving))
  redis.call('HDEL', failing, unpack(leaving))
end
if noted[1] then redis.call('ZADD', removed, unpack(noted)) end
return stay
