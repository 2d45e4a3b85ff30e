-- Settle attempts, each a step: take a queue's head away (delivered, or dead), or say when to try it again.
-- Fenced by the head, so that a repeat or a late worker takes nothing twice, and by the queue's lease.
-- uses clock, references, dead_letters, groups
-- KEYS    1 queues   2 due subscriptions   3 tries   4 dead letters   5 attempts   6 nothing (see claim)   7 bodies
--         8 sizes   9 given up   10 backlogs   11 results   12 row   then for each step: its queue
-- ARGV    1 subscription   2 dead letters length   3 dead letters bytes   4 attempts length   5 attempts bytes
--         then for each step: account, deadline, delivery (the head, as it was queued), outcome (delivered, dead,
--         retry, or again: a retry that is not counted for the head), the queue's new deadline (delivered, dead) or
--         wait ms (retry, again), reason, attempt to remember ('': none), how a failure counts for the breaker
--         (failed, unavailable, or '': not at all)
-- returns for each step: 1 done, -1 another head, -2 the lease was lost; then the queue's new deadline (0: it
--         is free)
local queues, due_subscriptions, all_tries, dead, attempts, nothing = unpack(KEYS, 1, 6)
local bodies, sizes, given_up, backlogs, results, row_key = unpack(KEYS, 7, 12)
local subscription, dead_length, dead_bytes, attempts_length, attempts_bytes = unpack(ARGV, 1, 5)
dead_length, dead_bytes = tonumber(dead_length), tonumber(dead_bytes)
attempts_length, attempts_bytes = tonumber(attempts_length), tonumber(attempts_bytes)
redis.call('DEL', nothing)
local function step(i) return unpack(ARGV, 8 * i - 2, 8 * i + 5) end
local accounts, may_bury, may_wait, may_remember = {}, false, false, false
for i = 1, #KEYS - 12 do
  local account, _, _, outcome, _, _, attempt = step(i)
  accounts[i] = account
  may_bury = may_bury or outcome == 'dead'
  may_wait = may_wait or outcome == 'retry' or outcome == 'again'
  may_remember = may_remember or attempt ~= ''
end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))

-- As in commit: a key of another type fails all steps before the first of them takes a head away.
local tries = redis.call('HMGET', all_tries, unpack(accounts))
local waiting = redis.call('HGET', backlogs, subscription)
if may_wait then redis.call('ZCARD', due_subscriptions) end
if may_remember then
  redis.call('XLEN', attempts)
  redis.call('HLEN', sizes)
end
if may_bury then check_types(dead, bodies, sizes, given_up, backlogs) end
-- While all is well nothing is counted: results begin with a failure. What was counted may be lost: keys of another
-- type are made anew, so that they hold up no delivery.
local noted = redis.pcall('ZCARD', results)
if type(noted) == 'table' then
  redis.call('DEL', results)
  noted = 0
end
local is_counting = noted > 0
local row = is_counting and redis.pcall('GET', row_key) or ''
if type(row) == 'table' then row = '' end
local reply, ends, delivered, taken = {}, {}, {}, 0
for i = 1, #accounts do
  local _, ours, head, outcome, new = step(i)
  local answer, deadline = 1, 0
  local is_taken = outcome == 'delivered' or outcome == 'dead'
  if is_taken and deadlines[i] == new then
    -- A repeat after a lost answer: only the first of them can have set this very deadline.
    deadline = tonumber(new)
  elseif deadlines[i] ~= ours then
    answer = -2
  else
    ends[i] = redis.call('LRANGE', KEYS[12 + i], 0, 1)
    if ends[i][1] ~= head then
      answer, ends[i] = -1, nil
    elseif is_taken then
      taken = taken + 1
      if outcome == 'delivered' then delivered[#delivered + 1] = reference_of(head) end
    end
  end
  reply[i * 2 - 1], reply[i * 2] = answer, deadline
end
if delivered[1] then drop_all(bodies, delivered) end -- which reads them first

local function remember(attempt)
  redis.call('XADD', attempts, '*', 'attempt', attempt)
  local total, left = grow(sizes, 'attempts', #attempt + 80), redis.call('XLEN', attempts)
  local function is_too_much() return left > attempts_length or (left > 8 and total > attempts_bytes) end
  if not is_too_much() then return end
  for _, old in ipairs(redis.call('XRANGE', attempts, '-', '+', 'COUNT', 8)) do
    if not is_too_much() then return end
    redis.call('XDEL', attempts, old[1])
    total, left = grow(sizes, 'attempts', -#old[2][2] - 80), left - 1
  end
end

local has_failed, has_counted = false, false
local figures, misses = {}, {}
for line in string.gmatch(row, '[^\n]+') do misses[#misses + 1] = line end
for figure in string.gmatch(table.remove(misses, 1) or '', '%d+') do figures[#figures + 1] = tonumber(figure) end
for i = #figures + 1, 6 do figures[i] = 0 end
local delivered_at, second, passed, failed, passed_before, failed_before = unpack(figures, 1, 6)

-- Count how an attempt ended. The first failure of a shard is in the row alone: no result before it was noted, and so
-- it would be all there is.
local function count(account, is_delivered, kind)
  if is_delivered and not is_counting then return end
  local now = now_ms()
  local this_second = math.floor(now / 1000)
  if second ~= this_second then
    if second ~= this_second - 1 then passed, failed = 0, 0 end
    second, passed, failed, passed_before, failed_before = this_second, 0, 0, passed, failed
  end
  if is_delivered then
    redis.call('ZADD', results, string.format('%d', now), account)
    delivered_at, passed, misses = now, passed + 1, {}
  else
    redis.call('ZADD', results, is_counting and string.format('%d', 1e15 + now) or 0, is_counting and account or '')
    if is_counting then failed = failed + 1 end
    has_failed, is_counting = true, true
    if misses[5] then table.remove(misses, 1) end
    misses[#misses + 1] = string.format('%d %s %s', now, kind, account)
  end
  has_counted = true
end

local kept, free, settled = {}, {}, {}
for i = 1, #accounts do
  if ends[i] then
    local account, _, head, outcome, ms, reason, attempt, kind = step(i)
    if attempt ~= '' then remember(attempt) end
    if outcome == 'delivered' or kind ~= '' then count(account, outcome == 'delivered', kind) end
    if outcome == 'retry' or outcome == 'again' then
      local later = now_ms() + ms
      if outcome == 'retry' then
        local times, tried = string.match(tries[i] or '', '^(%d+) (.*)$')
        times = tried == head and times + 1 or 1
        redis.call('HSET', all_tries, account, times .. ' ' .. head)
      end
      -- The half distinguishes it from a lease: make_due may take it, and a repeat is refused.
      redis.call('ZADD', queues, string.format('%d.5', later), account)
      redis.call('ZADD', due_subscriptions, 'LT', later, subscription)
    else
      redis.call('LPOP', KEYS[12 + i])
      if tries[i] then settled[#settled + 1] = account end
      if outcome == 'dead' then
        bury(dead, bodies, sizes, given_up, subscription, account, reason, head, dead_length, dead_bytes)
      end
      if ends[i][2] then
        kept[#kept + 1] = ms
        kept[#kept + 1] = account
        reply[i * 2] = tonumber(ms)
      else
        free[#free + 1] = account
      end
    end
  end
end
if taken > 0 then grow(backlogs, subscription, -taken, waiting) end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
if free[1] then redis.call('ZREM', queues, unpack(free)) end
if has_counted then
  local form = '%d %d %d %d %d %d'
  table.insert(misses, 1, string.format(form, delivered_at, second, passed, failed, passed_before, failed_before))
  redis.call('SET', row_key, table.concat(misses, '\n'), 'PX', 600000)
end
if has_failed then
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', results, '(0', string.format('%d', now - 10000))
  redis.call('ZREMRANGEBYSCORE', results, 1e15, string.format('%d', 1e15 + now - 10000))
  redis.call('PEXPIRE', results, 600000)
end
if settled[1] then redis.call('HDEL', all_tries, unpack(settled)) end
return reply
