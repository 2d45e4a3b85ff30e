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
--         number of deliveries, the places of their events, counted from one
-- returns for each step: 1 done, 0 done before, -1 the state moved on, -2 the lease was lost; then a list of the queues
--         that are leased, also where a repeat finds them so: place among the step's queues, counted from one, and the
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
local steps, references, filled, filled_by_schedule, names = {}, {}, {}, {}, {}
local lists = {}
local key, at = 9, 3
while KEYS[key] do
  local account, deadline, expected, new, due, state, follows, notes = unpack(ARGV, at, at + 7)
  local is_poll, notes_at = deadline ~= '', at + 8
  local step = {
    account = account, deadline = deadline, expected = expected, new = new, is_poll = is_poll, due = due,
    state = state, follows = follows, key = key, notes = notes, notes_at = notes_at, events = {}, queues = {},
  }
  steps[#steps + 1] = step
  at = notes_at + notes
  local events = ARGV[at]
  for i = 1, events do
    local reference, stored, is_logged = unpack(ARGV, at + 3 * i - 2, at + 3 * i)
    references[#references + 1] = reference
    step.events[i] = {
      reference = reference, stored = stored, is_logged = is_logged == '1', queued = {}, count = 0, place = #references,
    }
  end
  at = at + 1 + 3 * events
  local queues = ARGV[at]
  key, at = key + 2, at + 1
  for i = 1, queues do
    local list, schedule = unpack(KEYS, key, key + 1)
    local subscription, lease, deliveries = unpack(ARGV, at, at + 2)
    local one = filled_by_schedule[schedule]
    if not one then
      one = {at = key + 1, subscription = subscription, accounts = {}, due = {}, first = math.huge, queued = 0}
      filled_by_schedule[schedule], filled[#filled + 1], names[#names + 1] = one, one, subscription
    end
    local place = #one.accounts + 1
    one.accounts[place] = account
    lists[#lists + 1] = list
    step.queues[i] = {
      list = #lists, at = at + 3, deliveries = deliveries, subscription = subscription, lease = lease, filled = one,
      place = place,
    }
    key, at = key + 2, at + 3 + deliveries
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

local accounts = {}
for i, step in ipairs(steps) do
  accounts[i] = step.account
  local found = redis.call('GET', KEYS[step.key]) or ''
  step.version = string.match(string.sub(found, 1, 16), '^%S*')
  local bytes = ' ' .. #found
  step.found = string.sub(found, 1, #step.expected - #bytes) .. bytes
  if step.queues[1] then
    local own = {}
    for j, queue in ipairs(step.queues) do own[j] = queue.subscription end
    step.previous = redis.call('HMGET', KEYS[step.key + 1], unpack(own))
    for j in ipairs(own) do
      local previous = step.previous[j]
      if previous and previous ~= '0' and (#previous > 14 or not string.match(previous, '^[1-9]%d*$')) then
        return {['err'] = 'WRONGTYPE no sequence under ' .. KEYS[step.key + 1]}
      end
    end
  end
end
local deadlines = redis.call('ZMSCORE', polls, unpack(accounts))
local reply, next_polls, fixed, first, is_done = {}, {}, {}, math.huge, false
for i, step in ipairs(steps) do
  local answer, leased = 1, {}
  if step.version == step.new then
    answer = 0
    for j, queue in ipairs(step.queues) do -- what was leased the first time, unless a worker has begun since
      if queue.lease ~= '' and queue.filled.times[queue.place] == queue.lease then
        local list = lists[queue.list]
        local head = waiting_in(list, 0, 0)[1] or ''
        local reference, previous = string.match(head, '^(%S+ %d+) (%S+)$')
        if reference == step.events[tonumber(ARGV[queue.at])].reference then
          leased[#leased + 1], leased[#leased + 2] = j, previous
        end
      end
    end
  elseif step.version ~= step.expected and step.found ~= step.expected then
    answer = -1
  elseif
    not deadlines[i]
    or (step.is_poll and deadlines[i] ~= step.deadline and not was_woken(deadlines[i], step.deadline))
  then
    answer = -2
  else
    is_done = true
    if step.is_poll then
      local due = step.due
      if deadlines[i] ~= step.deadline then -- it was woken meanwhile
        due = math.min(due, woken_at(string.sub(step.state, 18)))
      end
      next_polls[#next_polls + 1] = due
      next_polls[#next_polls + 1] = step.account
      first = math.min(first, tonumber(due))
    end
  end
  reply[2 * i - 1], reply[2 * i] = answer, leased
end
if not is_done then return reply end

local now = now_ms()
local logged, taken = 0, 0
for i, step in ipairs(steps) do
  if reply[2 * i - 1] == 1 then
    local leased = reply[2 * i]
    local state = step.state
    if step.is_poll then
      fixed[#fixed + 1] = step.account
    else
      local last = string.match(string.sub(state, 33, 53), '^%d+ $') and 51 or 30 -- has it a height, too?
      local touched, never = redis.call('GETRANGE', KEYS[step.key], 17, last), '00000000000000'
      if touched == '' or string.sub(state, 18, 31) == never then -- it begins, or begins anew
        touched = never .. string.sub(state, 32, last + 1)
      end
      state = string.sub(state, 1, 17) .. touched .. string.sub(state, last + 2)
    end
    redis.call('SET', KEYS[step.key], state)
    local last = {}
    for j, queue in ipairs(step.queues) do
      local list = lists[queue.list]
      local one, previous, waiting = queue.filled, step.previous[j] or '-', {}
      -- What was stored of an event before may say it in other bytes: begin_queue reads those.
      local is_ours = was_empty[queue.list] and (tonumber(queue.lease) or 0) > now
      for k = 1, queue.deliveries do
        local event = step.events[tonumber(ARGV[queue.at + k - 1])]
        waiting[k] = event.reference .. ' ' .. previous
        event.count = event.count + 1
        event.queued[event.count] = queue.subscription .. ' ' .. previous
        previous = string.match(event.reference, ' (%d+)$')
        is_ours = is_ours and not stored_before[event.place]
      end
      last[#last + 1] = queue.subscription
      last[#last + 1] = previous
      append(list, alone[queue.list], was_empty[queue.list], waiting)
      one.queued = one.queued + #waiting
      if not one.times[queue.place] then -- else it waits for its retry, or is leased, and keeps its time
        local due = is_ours and queue.lease or now
        one.due[#one.due + 1] = due
        one.due[#one.due + 1] = step.account
        one.first = math.min(one.first, tonumber(due))
        if is_ours then leased[#leased + 1], leased[#leased + 2] = j, step.previous[j] or '-' end
      end
    end
    if last[1] then redis.call('HSET', KEYS[step.key + 1], unpack(last)) end
    for j = step.notes_at, step.notes_at + step.notes - 1 do
      local entry = step.follows .. ' ' .. ARGV[j]
      redis.call('XADD', log, '*', 'account', step.account, 'entry', entry)
      logged, taken = logged + 1, taken + #step.account + #entry + 80
    end
    for _, event in ipairs(step.events) do
      local count = event.count
      if event.is_logged or count > 0 then
        local entry = step.follows .. ' ' .. event.reference
        if count > 0 then
          local queued = table.concat(event.queued, '\n')
          redis.call('XADD', log, '*', 'account', step.account, 'entry', entry, 'queued', queued)
          taken = taken + #queued
        else
          redis.call('XADD', log, '*', 'account', step.account, 'entry', entry)
        end
        logged, taken, count = logged + 1, taken + #step.account + #entry + #event.stored + 1 + 80, count + 1
      end
      if count > 0 and not stored_before[event.place] then
        new_bodies[#new_bodies + 1] = event.reference
        new_bodies[#new_bodies + 1] = count .. ' ' .. event.stored
      else
        for _ = 1, count do hold(bodies, event.reference, event.stored) end
      end
    end
  end
end

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
