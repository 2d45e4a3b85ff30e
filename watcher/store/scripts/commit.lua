-- Replace accounts' states, log what happened and queue their deliveries, if no other worker did meanwhile: each
-- account is a step, and whole. Fenced by the state's version, which is also the token of the commit that
-- wrote it (a repeat after a lost answer finds its own), and by the poll's lease; where a worker kept the state, by
-- the time and height of its last poll and its length, too. A step of no poll has no lease: its account must be scheduled, and
-- keeps its schedule, the time of its last poll and its failures. A queue that was empty may be leased to the worker
-- that commits: to no worker before, as nothing waited. The first write allocates, so that a full server refuses all of
-- it.
-- uses clock, references, leases, waiting, groups
-- KEYS    1 polls   2 failing   3 log   4 due subscriptions   5 due providers   6 bodies   7 sizes   8 backlogs
--         then for each step: its state, queued, then for each of its queues: list, schedule
-- ARGV    1 provider   2 log bytes
--         then for each step: account, deadline ('': of no poll), expected version ('': no state yet), or version, time
--         and height as they stand in the state, and its bytes; new version, next poll due ms, state, sequence before,
--         number of notes, these, number of events, for each: its reference, what is stored of it, whether it is
--         logged though no queue gets it (one or zero); number of queues, for each: subscription, deadline of its lease ('': it is due now),
--         number of deliveries, the places of their events, counted from zero
-- returns for each step: 1 done, 0 done before, -1 the state moved on, -2 the lease was lost; then a list of the queues
--         that are leased, also where a repeat finds them so: place among the step's queues, counted from zero, and the
--         sequence before its first delivery ('-': none)

local polls, failing, log, due_subscriptions, due_providers, bodies, sizes, backlogs = unpack(KEYS, 1, 8)
local provider, log_bytes = unpack(ARGV, 1, 2)
log_bytes = tonumber(log_bytes)

-- Ask each key something only its own type answers: a damaged one fails all steps before the first write.
local has_failing = redis.call('HLEN', failing) > 0
redis.call('XLEN', log)
redis.call('ZCARD', due_subscriptions)
redis.call('ZCARD', due_providers)
local log_size = tonumber(redis.call('HGET', sizes, 'log') or 0) or 0
-- Where a step, an event or a queue begins in ARGV (at) is kept, and no copy of what stands there.
local steps, accounts, references, filled, filled_by_schedule, names, lists = {}, {}, {}, {}, {}, {}, {}
local key, at = 9, 3
while KEYS[key] do
  local account, count = ARGV[at], #steps + 1
  local events, queues = {}, {}
  steps[count], accounts[count] = {at = at, key = key, events = events, queues = queues, previous = false}, account
  at = at + 8 + ARGV[at + 7]
  for i = 1, ARGV[at] do
    local event = at + 3 * i - 2
    references[#references + 1] = ARGV[event]
    events[i] = {at = event, queued = {}, count = 0, place = #references}
  end
  at = at + 1 + 3 * ARGV[at]
  key, at = key + 2, at + 1
  for i = 1, ARGV[at - 1] do
    local list, schedule = unpack(KEYS, key, key + 1)
    local one = filled_by_schedule[schedule]
    if not one then
      local subscription = ARGV[at]
      one = {at = key + 1, subscription = subscription, accounts = {}, due = {}, first = math.huge, queued = 0}
      filled_by_schedule[schedule], filled[#filled + 1], names[#names + 1] = one, one, subscription
    end
    local place = #one.accounts + 1
    one.accounts[place] = account
    lists[#lists + 1] = list
    queues[i] = {at = at, list = #lists, filled = one, place = place}
    key, at = key + 2, at + 3 + ARGV[at + 2]
  end
end
local alone = alone_in(lists)
local was_empty = empty_in(lists, alone)
for _, one in ipairs(filled) do one.times = redis.call('ZMSCORE', KEYS[one.at], unpack(one.accounts)) end
local waiting_before = names[1] and redis.call('HMGET', backlogs, unpack(names)) or {}
local stored_before, new_bodies = {}, {}
for i = 1, #references, 1000 do
  local some = redis.call('HMGET', bodies, unpack(references, i, math.min(i + 999, #references)))
  for j = 1, #some do stored_before[i + j - 1] = some[j] end
end

local deadlines = redis.call('ZMSCORE', polls, unpack(accounts))
local reply, next_polls, fixed, first, is_done = {}, {}, {}, math.huge, false
for i = 1, #steps do
  local step = steps[i]
  local account, deadline, expected, new, due, state = unpack(ARGV, step.at, step.at + 5)
  local found = redis.call('GET', KEYS[step.key]) or ''
  local version, bytes = string.match(string.sub(found, 1, 16), '^%S*'), ' ' .. #found
  local queues = step.queues
  if queues[1] then
    local own = {}
    for j = 1, #queues do own[j] = ARGV[queues[j].at] end
    local previous = redis.call('HMGET', KEYS[step.key + 1], unpack(own))
    for j = 1, #own do
      local one = previous[j]
      if one and one ~= '0' and (#one > 14 or not string.match(one, '^[1-9]%d*$')) then
        return {['err'] = 'WRONGTYPE no sequence under ' .. KEYS[step.key + 1]}
      end
    end
    step.previous = previous
  end
  local answer, leased = 1, {}
  if version == new then
    answer = 0
    for j, queue in ipairs(queues) do -- what was leased the first time, unless a worker has begun since
      local lease = ARGV[queue.at + 1]
      if lease ~= '' and queue.filled.times[queue.place] == lease then
        local list = lists[queue.list]
        local head = waiting_in(list, 0, 0)[1] or ''
        local reference, previous = string.match(head, '^(%S+ %d+) (%S+)$')
        if reference == ARGV[step.events[ARGV[queue.at + 3] + 1].at] then
          leased[#leased + 1], leased[#leased + 2] = j - 1, previous
        end
      end
    end
  elseif version ~= expected and string.sub(found, 1, #expected - #bytes) .. bytes ~= expected then
    answer = -1
  elseif
    not deadlines[i]
    or (deadline ~= '' and deadlines[i] ~= deadline and not was_woken(deadlines[i], deadline))
  then
    answer = -2
  else
    is_done = true
    if deadline ~= '' then
      if deadlines[i] ~= deadline then -- it was woken meanwhile
        due = math.min(due, woken_at(string.sub(state, 18)))
      end
      next_polls[#next_polls + 1] = due
      next_polls[#next_polls + 1] = account
      first = math.min(first, tonumber(due))
    end
  end
  reply[2 * i - 1], reply[2 * i] = answer, leased
end
if not is_done then return reply end

local now = now_ms()
local logged, taken, values = 0, 0, {}
for i = 1, #steps do
  if reply[2 * i - 1] == 1 then
    local list = KEYS[steps[i].key]
    local deadline, state = ARGV[steps[i].at + 1], ARGV[steps[i].at + 5]
    if deadline ~= '' then
      fixed[#fixed + 1] = accounts[i]
    else
      local last = string.match(string.sub(state, 33, 53), '^%d+ $') and 51 or 30 -- has it a height, too?
      local touched, never = redis.call('GETRANGE', list, 17, last), '00000000000000'
      if touched == '' or string.sub(state, 18, 31) == never then -- it begins, or begins anew
        touched = never .. string.sub(state, 32, last + 1)
      end
      state = string.sub(state, 1, 17) .. touched .. string.sub(state, last + 2)
    end
    values[#values + 1] = list
    values[#values + 1] = state
  end
end
redis.call('MSET', unpack(values)) -- of states: the first write
values = {}

for i = 1, #steps do
  if reply[2 * i - 1] == 1 then
    local step, leased, account = steps[i], reply[2 * i], accounts[i]
    local follows, notes = ARGV[step.at + 6], ARGV[step.at + 7]
    local last, events = {}, step.events
    for j = 1, #step.queues do
      local queue = step.queues[j]
      local list = lists[queue.list]
      local subscription, lease, deliveries = unpack(ARGV, queue.at, queue.at + 2)
      local one, previous, waiting = queue.filled, step.previous[j] or '-', {}
      -- What was stored of an event before may say it in other bytes: begin_queue reads those.
      local is_ours = was_empty[queue.list] and (tonumber(lease) or 0) > now
      for k = 1, deliveries do
        local event = events[ARGV[queue.at + 2 + k] + 1]
        local reference, count = ARGV[event.at], event.count + 1
        waiting[k] = reference .. ' ' .. previous
        event.count, event.queued[count] = count, subscription .. ' ' .. previous
        previous = string.sub(reference, string.find(reference, ' ', 1, true) + 1)
        is_ours = is_ours and not stored_before[event.place]
      end
      last[#last + 1] = subscription
      last[#last + 1] = previous
      if was_empty[queue.list] and deliveries == '1' then
        values[#values + 1] = list
        values[#values + 1] = waiting[1]
      else
        append(list, alone[queue.list], was_empty[queue.list], waiting)
      end
      one.queued = one.queued + #waiting
      if not one.times[queue.place] then -- else it waits for its retry, or is leased, and keeps its time
        local due = is_ours and lease or now
        one.due[#one.due + 1] = due
        one.due[#one.due + 1] = account
        one.first = math.min(one.first, tonumber(due))
        if is_ours then leased[#leased + 1], leased[#leased + 2] = j - 1, step.previous[j] or '-' end
      end
    end
    if last[1] then redis.call('HSET', KEYS[step.key + 1], unpack(last)) end
    for j = step.at + 8, step.at + 7 + notes do
      local entry = follows .. ' ' .. ARGV[j]
      redis.call('XADD', log, '*', 'account', account, 'entry', entry)
      logged, taken = logged + 1, taken + #account + #entry + 80
    end
    for j = 1, #events do
      local event = events[j]
      local reference, stored, is_logged = unpack(ARGV, event.at, event.at + 2)
      local count = event.count
      if is_logged == '1' or count > 0 then
        local entry = follows .. ' ' .. reference
        if count > 0 then
          local queued = table.concat(event.queued, '\n')
          redis.call('XADD', log, '*', 'account', account, 'entry', entry, 'queued', queued)
          taken = taken + #queued
        else
          redis.call('XADD', log, '*', 'account', account, 'entry', entry)
        end
        logged, taken, count = logged + 1, taken + #account + #entry + #stored + 1 + 80, count + 1
      end
      if count > 0 and not stored_before[event.place] then
        new_bodies[#new_bodies + 1] = reference
        new_bodies[#new_bodies + 1] = count .. ' ' .. stored
      else
        for _ = 1, count do hold(bodies, reference, stored) end
      end
    end
  end
end

for i = 1, #values, 1000 do redis.call('MSET', unpack(values, i, math.min(i + 999, #values))) end
if next_polls[1] then
  redis.call('ZADD', polls, unpack(next_polls))
  redis.call('ZADD', due_providers, 'LT', first, provider)
end
if has_failing and fixed[1] then redis.call('HDEL', failing, unpack(fixed)) end
for i = 1, #new_bodies, 1000 do
  redis.call('HSET', bodies, unpack(new_bodies, i, math.min(i + 999, #new_bodies)))
end
local counts = {}
for i, one in ipairs(filled) do
  if one.due[1] then
    redis.call('ZADD', KEYS[one.at], unpack(one.due))
    redis.call('ZADD', due_subscriptions, 'LT', one.first, one.subscription)
  end
  if one.queued > 0 then
    counts[#counts + 1] = one.subscription
    counts[#counts + 1] = math.max(0, tonumber(waiting_before[i] or 0) or 0) + one.queued
  end
end
if counts[1] then redis.call('HSET', backlogs, unpack(counts)) end

-- What is logged pushes out the oldest, a few more than came, until the log is within its bound.
if logged > 0 then
  log_size = math.max(0, log_size) + taken
  if log_size > log_bytes then
    local gone = {}
    for _, record in ipairs(redis.call('XRANGE', log, '-', '+', 'COUNT', math.min(2 * logged + 8, 1000))) do
      if log_size <= log_bytes then break end
      local fields = record[2]
      local entry = fields[4] or '' -- a person may have put something else there
      local reference = string.match(entry, '^%d+ (evt_%S+ %d+)$')
      log_size = log_size - #fields[2] - #entry - #(fields[6] or '') - 80
      if reference then log_size = log_size - drop(bodies, reference) end
      gone[#gone + 1] = record[1]
    end
    if gone[1] then
      redis.call('XDEL', log, unpack(gone))
      redis.call('HSET', sizes, 'trimmed', gone[#gone])
    end
  end
  redis.call('HSET', sizes, 'log', string.format('%d', math.max(0, log_size)))
end
return reply
