-- Make accounts due now, wherever they are scheduled: a poll begins after this, whatever workers do at the same time.
-- An account is polled once a second at most for it; what waits for a retry goes on waiting. A schedule of another type
-- is passed over: it costs its own polls only.
-- uses clock, leases
-- KEYS    1 due providers   2.. for each account: its state   then for each provider: its schedule, failing
-- ARGV    1 number of accounts   2.. accounts   then the providers
-- returns for each account of a schedule: its place and that of its provider (counted from one), in how many ms it is
--         due, what it waits for (0 its turn, 1 the poll that a worker has in hand, 2 a retry), what is noted of its
--         rejected polls
local index = KEYS[1]
local accounts, soonest, reply, writes, now = {}, {}, {}, {}, now_ms()
for i = 1, ARGV[1] do
  local state = KEYS[i + 1]
  local polled = redis.pcall('GETRANGE', state, 17, 30)
  accounts[i] = ARGV[i + 1]
  -- No later than in a second: the server's clock was set back, or the state is damaged.
  soonest[i] = math.min(math.max(now, woken_at(type(polled) == 'string' and polled or '')), now + 1000)
end
for j = 1, #ARGV - 1 - #accounts do
  local schedule, failing = unpack(KEYS, #accounts + 2 * j, #accounts + 2 * j + 1)
  local provider = ARGV[1 + #accounts + j]
  local scores = redis.pcall('ZMSCORE', schedule, unpack(accounts))
  local due, first = {}, math.huge
  for i = 1, scores.err and 0 or #accounts do
    local score = scores[i] and tonumber(scores[i])
    if score then
      local waits_for, at = 0, score
      if is_lease(score) then
        -- Also where it has run out: the worker may still be the first to come.
        waits_for, at = score > now and 1 or 0, math.floor(score) + 0.375
      elseif score > now and score % 1 == 0.5 then
        waits_for = 2
      else
        at = math.min(score, soonest[i])
      end
      if at ~= score then
        due[#due + 1] = string.format('%.17g', at)
        due[#due + 1] = accounts[i]
        first = math.min(first, at)
      end
      local rejected = waits_for == 2 and redis.pcall('HGET', failing, accounts[i])
      rejected = type(rejected) == 'string' and rejected or ''
      reply[#reply + 1] = {i, j, math.max(0, math.floor(at - now)), waits_for, rejected}
    end
  end
  if due[1] then
    writes[#writes + 1] = {at = #accounts + 2 * j, due = due, first = first, provider = provider}
  end
end
for _, one in ipairs(writes) do
  redis.call('ZADD', KEYS[one.at], unpack(one.due))
  redis.pcall('ZADD', index, 'LT', one.first, one.provider) -- one of another type is made anew by index_due
end
return reply
