-- Write records of the directory, each a step: the record, a line that it changed, and the place of an account on the
-- schedule of its provider. Versions rise with every step, and with the server's clock.
-- Safe to repeat: nothing is encrypted to the same bytes twice, so what lies there and looks the same was written by this call.
-- uses changes, records
-- KEYS    1 records of accounts   2 records of subscriptions   3 changes   4 removed accounts   5 due providers
--         6.. for each provider: its schedule, failing
-- ARGV    1 how many accounts may lie here   2 how many subscriptions   3 how many changes are kept
--         4 number of providers   5.. providers
--         then for each step: its kind, as records are numbered in KEYS; its name; the version that must lie there
--         ('': any, 0: none, <N: one that was written before N, or none); the version of the client's last edit ('':
--         this one), and of its last write where it was written before; the
--         place of its provider, counted from one (0: schedules stay as they are); its plain part; its encrypted part
-- returns for each step: what became of it (0 another version lies there, 1 written, 2 too many lie there), and the
--         version that lies there now
local accounts, subscriptions, changes, removed, index = unpack(KEYS, 1, 5)
local kept, providers = ARGV[3], tonumber(ARGV[4])
redis.call('HLEN', accounts)
redis.call('HLEN', subscriptions)
redis.call('ZCARD', removed)
redis.call('ZCARD', index)
local place_by_provider = {}
for i = 1, providers do
  redis.call('ZCARD', KEYS[4 + 2 * i])
  redis.call('HLEN', KEYS[5 + 2 * i])
  place_by_provider[ARGV[4 + i]] = i
end
local version, first, now = next_change(changes)

local reply = {}
for at = 5 + providers, #ARGV, 7 do
  local kind, name, rule, edited, place, plain, encrypted = unpack(ARGV, at, at + 6)
  kind, place = tonumber(kind), tonumber(place)
  local record = redis.call('HGET', KEYS[kind], name)
  local there = version_of(record)
  local body = ' ' .. plain .. '\n' .. encrypted
  local outcome = 1
  if record and string.sub(record, -#body) == body and string.sub(rule, 1, 1) ~= '<' then
    outcome = 1 -- by this call, whose answer was lost
  elseif not allows(rule, record) then
    outcome = 0
  elseif not record and redis.call('HLEN', KEYS[kind]) >= tonumber(ARGV[kind]) then
    outcome = 2
  else
    there = version
    local text = string.format('%d', version)
    if edited == '' then edited = text end
    if written_of(record) >= version and string.sub(rule, 1, 1) ~= '<' then -- it is the later one all the same
      edited = edited .. ' ' .. string.format('%d', written_of(record) + 1)
    end
    redis.call('HSET', KEYS[kind], name, text .. ' ' .. edited .. body)
    note_change(changes, kept, version, first, kind, name)
    version = version + 1
    if place > 0 then
      local before = place_by_provider[provider_of(record) or ''] or place
      if before ~= place then
        redis.call('ZREM', KEYS[4 + 2 * before], name)
        redis.call('HDEL', KEYS[5 + 2 * before], name)
      end
      if redis.call('ZADD', KEYS[4 + 2 * place], 'NX', now, name) == 1 then
        redis.call('ZADD', index, 'LT', now, ARGV[4 + place])
      end
      redis.call('ZREM', removed, name)
    end
  end
  reply[#reply + 1] = outcome
  reply[#reply + 1] = there
end
return reply
