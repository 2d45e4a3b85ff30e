-- Delete records of the directory, each a step, with a line that it changed; an account leaves all schedules, and is
-- forgotten later. Safe to repeat: what is gone stays gone.
-- uses changes, records
-- KEYS    1 records of accounts   2 records of subscriptions   3 changes   4 removed accounts
--         5 nothing (deleted first, see claim)   6.. for each provider: its schedule, failing
-- ARGV    1 after how many ms an account is forgotten   2 how many changes are kept
--         then for each step: its kind, as records are numbered in KEYS; its name; the version that must lie there
--         ('': any, <N: one that was written before N); whether an account leaves the schedules
--         (1); the version of the deletion, where it was deleted before ('': this one)
-- returns for each step: what became of it (0 another version lies there, 1 deleted, 2 nothing lay there), and the
--         version of the deletion, or the one that lies there
local accounts, subscriptions, changes, removed, nothing = unpack(KEYS, 1, 5)
local forget_ms, kept = tonumber(ARGV[1]), ARGV[2]
redis.call('DEL', nothing)
redis.call('HLEN', accounts)
redis.call('HLEN', subscriptions)
redis.call('ZCARD', removed)
for i = 6, #KEYS, 2 do
  redis.call('ZCARD', KEYS[i])
  redis.call('HLEN', KEYS[i + 1])
end
local version, first, now = next_change(changes)

local reply = {}
for at = 3, #ARGV, 5 do
  local kind, name, rule, leaves, written = unpack(ARGV, at, at + 4)
  kind = tonumber(kind)
  local record = redis.call('HGET', KEYS[kind], name)
  local there = version_of(record)
  local outcome = 1
  if not record then
    outcome = 2
  elseif not allows(rule, record) then
    outcome = 0
  else
    there = version
    redis.call('HDEL', KEYS[kind], name)
    if written == '' and written_of(record) >= version then written = string.format('%d', written_of(record) + 1) end
    if written == '' then
      note_change(changes, kept, version, first, kind, name)
    else
      note_change(changes, kept, version, first, kind, name, 'written', written)
    end
    version = version + 1
    if leaves == '1' then
      for i = 6, #KEYS, 2 do
        redis.call('ZREM', KEYS[i], name)
        redis.call('HDEL', KEYS[i + 1], name)
      end
      redis.call('ZADD', removed, now + forget_ms, name)
    end
  end
  reply[#reply + 1] = outcome
  reply[#reply + 1] = there
end
return reply
