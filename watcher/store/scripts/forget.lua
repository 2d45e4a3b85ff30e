-- Forget accounts that were taken out of the configuration, if their time has come and nobody has put them back.
-- KEYS    1 removed accounts   2.. for each account: its state, what was queued for it
-- ARGV    1 now (ms)   then the accounts
-- returns how many were forgotten
local removed = KEYS[1]
local now, accounts = tonumber(ARGV[1]), {}
for i = 2, #ARGV do accounts[i - 1] = ARGV[i] end
local gone = {}
for i, forget_at in ipairs(redis.call('ZMSCORE', removed, unpack(accounts))) do
  if forget_at and tonumber(forget_at) <= now then
    local state, queued = KEYS[2 * i], KEYS[2 * i + 1]
    redis.call('UNLINK', state, queued)
    gone[#gone + 1] = accounts[i]
  end
end
if gone[1] then redis.call('ZREM', removed, unpack(gone)) end
return #gone
