-- Replace accounts' states, log what happened and queue their deliveries, if nobody else did meanwhile: each
-- account is a step, and whole. Fenced by the state's version, which is also the token of the commit that
-- wrote it (a repeat after a lost answer finds its own), and by the poll's lease. The first write allocates,
-- so that a full server refuses all of it.
-- KEYS    1 polls   2 failing   3 log   4 due subscriptions   5 due providers
--         then for each step: its state, then for each of its queues: list, schedule, dead letters
-- ARGV    1 log length   2 dead letters length   3 queue length   4 provider
--         then for each step: account, deadline, expected version ('': no state yet), new version, sequence,
--         polled at ms ('': no good poll, so that its time and the failures stay), next poll due ms, state
--         body, number of log entries, these (opaque bytes), number of queues,
--         then for each of these: subscription, number of deliveries, these (opaque bytes)
-- returns for each step: 1 done, 0 done before, -1 the state moved on, -2 the lease was lost; then (done) for
--         each of its queues how many deliveries it pushed out into the dead letters, as it was full

-- Ask each key something only its own type answers: a damaged one fails all steps before the first write.
local has_failing = redis.call('HLEN', KEYS[2]) > 0
redis.call('XLEN', KEYS[3])
redis.call('ZCARD', KEYS[4])
redis.call('ZCARD', KEYS[5])
local accounts, key_of, at_of, queues_by_schedule, schedules = {}, {}, {}, {}, {}
local key, at = 6, 5
while KEYS[key] do
  accounts[#accounts + 1] = ARGV[at]
  key_of[#accounts], at_of[#accounts] = key, at
  at = at + 9 + tonumber(ARGV[at + 8])
  local queues = tonumber(ARGV[at])
  key, at = key + 1, at + 1
  for _ = 1, queues do
    redis.call('LLEN', KEYS[key])
    if not queues_by_schedule[KEYS[key + 1]] then
      redis.call('ZCARD', KEYS[key + 1])
      redis.call('XLEN', KEYS[key + 2])
      queues_by_schedule[KEYS[key + 1]] = {}
      schedules[#schedules + 1] = {key + 1, ARGV[at]}
    end
    key, at = key + 3, at + 2 + tonumber(ARGV[at + 1])
  end
end

local deadlines = redis.call('ZMSCORE', KEYS[1], unpack(accounts))
local reply, next_polls, fixed, first = {}, {}, {}, math.huge
for i = 1, #accounts do
  at = at_of[i]
  local version = redis.call('HGET', KEYS[key_of[i]], 'version') or ''
  local answer = 1
  if version == ARGV[at + 3] then
    answer = 0
  elseif version ~= ARGV[at + 2] then
    answer = -1
  elseif deadlines[i] ~= ARGV[at + 1] then
    answer = -2
  else
    next_polls[#next_polls + 1] = ARGV[at + 6]
    next_polls[#next_polls + 1] = accounts[i]
    first = math.min(first, tonumber(ARGV[at + 6]))
  end
  reply[i * 2 - 1], reply[i * 2] = answer, {}
end
if not next_polls[1] then return reply end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #accounts do
  if reply[i * 2 - 1] == 1 then
    key, at = key_of[i], at_of[i]
    local fields = {'version', ARGV[at + 3], 'sequence', ARGV[at + 4], 'body', ARGV[at + 7]}
    if ARGV[at + 5] ~= '' then
      fields[7], fields[8] = 'polled_at', ARGV[at + 5]
      fixed[#fixed + 1] = accounts[i]
    end
    redis.call('HSET', KEYS[key], unpack(fields))
    local entries = tonumber(ARGV[at + 8])
    for j = at + 9, at + 8 + entries do
      redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[1], '*', 'account', accounts[i], 'entry', ARGV[j])
    end
    at = at + 9 + entries
    local queues = tonumber(ARGV[at])
    key, at = key + 1, at + 1
    for queue = 1, queues do
      local count, length = tonumber(ARGV[at + 1]), 0
      for j = at + 2, at + 1 + count do length = redis.call('RPUSH', KEYS[key], ARGV[j]) end
      reply[i * 2][queue] = math.max(0, length - tonumber(ARGV[3]))
      for _ = 1, reply[i * 2][queue] do
        redis.call('XADD', KEYS[key + 2], 'MAXLEN', '~', ARGV[2], '*',
          'account', accounts[i], 'reason', 'queue full', 'delivery', redis.call('LPOP', KEYS[key]))
      end
      local due = queues_by_schedule[KEYS[key + 1]]
      due[#due + 1] = now
      due[#due + 1] = accounts[i]
      key, at = key + 3, at + 2 + count
    end
  end
end

redis.call('ZADD', KEYS[1], unpack(next_polls))
redis.call('ZADD', KEYS[5], 'LT', first, ARGV[4])
if has_failing and fixed[1] then redis.call('HDEL', KEYS[2], unpack(fixed)) end
for _, schedule in ipairs(schedules) do
  local due = queues_by_schedule[KEYS[schedule[1]]]
  -- NX: a queue that waits for its retry, or is leased, keeps its time.
  if due[1] and redis.call('ZADD', KEYS[schedule[1]], 'NX', unpack(due)) > 0 then
    redis.call('ZADD', KEYS[4], 'LT', now, schedule[2])
  end
end
return reply
