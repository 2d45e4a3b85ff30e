-- Replace accounts' states, log what happened and queue their deliveries, if no other worker did meanwhile: each
-- account is a step, and whole. Fenced by the state's version, which is also the token of the commit that
-- wrote it (a repeat after a lost answer finds its own), and by the poll's lease. The first write allocates,
-- so that a full server refuses all of it.
-- KEYS    1 polls   2 failing   3 log   4 due subscriptions   5 due providers
--         then for each step: its state, then for each of its queues: list, schedule, dead letters
-- ARGV    1 log length   2 dead letters length   3 queue length   4 provider
--         then for each step: account, deadline, expected version ('': no state yet), new version, sequence,
--         polled at ms ('': no successful poll, so its time and the failures stay), next poll due ms, state
--         body, number of log entries, these (opaque bytes), number of queues,
--         then for each of these: subscription, number of deliveries, these (opaque bytes)
-- returns for each step: 1 done, 0 done before, -1 the state moved on, -2 the lease was lost; then (done) for
--         each of its queues how many deliveries it pushed out into the dead letters, as it was full

local polls, failing, log, due_subscriptions, due_providers = unpack(KEYS, 1, 5)
local log_length, dead_length, queue_length, provider = unpack(ARGV, 1, 4)

-- Ask each key something only its own type answers: a damaged one fails all steps before the first write.
local has_failing = redis.call('HLEN', failing) > 0
redis.call('XLEN', log)
redis.call('ZCARD', due_subscriptions)
redis.call('ZCARD', due_providers)
local accounts, key_of, at_of, queues_by_schedule, schedules = {}, {}, {}, {}, {}
local key, at = 6, 5
while KEYS[key] do
  local account, _, _, _, _, _, _, _, entries = unpack(ARGV, at, at + 8)
  accounts[#accounts + 1] = account
  key_of[#accounts], at_of[#accounts] = key, at
  at = at + 9 + entries
  local queues = ARGV[at]
  key, at = key + 1, at + 1
  for _ = 1, queues do
    local queue, schedule, dead = unpack(KEYS, key, key + 2)
    local subscription, deliveries = unpack(ARGV, at, at + 1)
    redis.call('LLEN', queue)
    if not queues_by_schedule[schedule] then
      redis.call('ZCARD', schedule)
      redis.call('XLEN', dead)
      queues_by_schedule[schedule] = {}
      schedules[#schedules + 1] = {at = key + 1, subscription = subscription}
    end
    key, at = key + 3, at + 2 + deliveries
  end
end

local deadlines = redis.call('ZMSCORE', polls, unpack(accounts))
local reply, next_polls, fixed, first = {}, {}, {}, math.huge
for i = 1, #accounts do
  local account, deadline, expected, new, _, _, due = unpack(ARGV, at_of[i], at_of[i] + 6)
  local version = redis.call('HGET', KEYS[key_of[i]], 'version') or ''
  local answer = 1
  if version == new then
    answer = 0
  elseif version ~= expected then
    answer = -1
  elseif deadlines[i] ~= deadline then
    answer = -2
  else
    next_polls[#next_polls + 1] = due
    next_polls[#next_polls + 1] = account
    first = math.min(first, tonumber(due))
  end
  reply[i * 2 - 1], reply[i * 2] = answer, {}
end
if not next_polls[1] then return reply end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #accounts do
  if reply[i * 2 - 1] == 1 then
    key, at = key_of[i], at_of[i]
    local account, _, _, new, sequence, polled_at, _, body, entries = unpack(ARGV, at, at + 8)
    local fields = {'version', new, 'sequence', sequence, 'body', body}
    if polled_at ~= '' then
      fields[7], fields[8] = 'polled_at', polled_at
      fixed[#fixed + 1] = account
    end
    redis.call('HSET', KEYS[key], unpack(fields))
    for j = at + 9, at + 8 + entries do
      redis.call('XADD', log, 'MAXLEN', '~', log_length, '*', 'account', account, 'entry', ARGV[j])
    end
    at = at + 9 + entries
    local queues = ARGV[at]
    key, at = key + 1, at + 1
    for number = 1, queues do
      local queue, schedule, dead = unpack(KEYS, key, key + 2)
      local deliveries, length = ARGV[at + 1], 0
      for j = at + 2, at + 1 + deliveries do length = redis.call('RPUSH', queue, ARGV[j]) end
      reply[i * 2][number] = math.max(0, length - queue_length)
      for _ = 1, reply[i * 2][number] do
        redis.call('XADD', dead, 'MAXLEN', '~', dead_length, '*',
          'account', account, 'reason', 'queue full', 'delivery', redis.call('LPOP', queue))
      end
      local due = queues_by_schedule[schedule]
      due[#due + 1] = now
      due[#due + 1] = account
      key, at = key + 3, at + 2 + deliveries
    end
  end
end

redis.call('ZADD', polls, unpack(next_polls))
redis.call('ZADD', due_providers, 'LT', first, provider)
if has_failing and fixed[1] then redis.call('HDEL', failing, unpack(fixed)) end
for _, found in ipairs(schedules) do
  local schedule = KEYS[found.at]
  local due = queues_by_schedule[schedule]
  -- NX: a queue that waits for its retry, or is leased, keeps its time.
  if due[1] and redis.call('ZADD', schedule, 'NX', unpack(due)) > 0 then
    redis.call('ZADD', due_subscriptions, 'LT', now, found.subscription)
  end
end
return reply
