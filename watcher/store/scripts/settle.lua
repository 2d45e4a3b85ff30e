-- Settle attempts, each a step: take a queue's head away (delivered, or dead), or say when to try it again. What was
-- delivered in one message is taken away together, all of it or nothing.
-- Fenced by the head, so that a repeat or a late worker takes nothing twice, and by the queue's lease.
-- uses clock, references, waiting, dead_letters, groups
-- KEYS    1 queues   2 tries   3 nothing (see claim)   4 bodies   5 backlogs   6 results   7 row
--         of any outcome: 8 due subscriptions   9 dead letters   10 attempts   11 sizes   12 given up
--         then for each step: its queue
-- ARGV    1 subscription   2 smooth (all were delivered, and there is nothing to remember), or any
--         of any outcome: 3 dead letters length   4 dead letters bytes   5 attempts length   6 attempts bytes
--         then for each step: account, deadline, delivery (the head, as it was queued; delivered: and what went with
--         it, a line each), the queue's new deadline (delivered, dead) or wait ms (retry, again);
--         of any outcome: outcome (delivered, dead, retry, or again: a retry that is not counted for the head), reason,
--         attempt to remember ('': none), how a failure counts for the breaker (failed, unavailable, or '': not at all)
-- returns for each step: 1 done, the queue is kept until its new deadline, 0 done, it is free, -1 another head, -2 the
--         lease was lost
local queues, all_tries, nothing, bodies, backlogs, results, row_key = unpack(KEYS, 1, 7)
local due_subscriptions, dead, attempts, sizes, given_up = unpack(KEYS, 8, 12)
local subscription, is_smooth = ARGV[1], ARGV[2] == 'smooth'
redis.call('DEL', nothing)
local key, before, width = 12, 6, 8
if is_smooth then key, before, width = 7, 2, 4 end
local lists = {unpack(KEYS, key + 1)}
local accounts = {unpack(lists)} -- as many: a table that grows step by step costs more
local may_bury, may_wait, may_remember = false, false, false
for i = 1, #lists do
  local at = before + width * (i - 1)
  accounts[i] = ARGV[at + 1]
  if not is_smooth then
    local outcome, _, attempt = unpack(ARGV, at + 5, at + 7)
    may_bury = may_bury or outcome == 'dead'
    may_wait = may_wait or outcome == 'retry' or outcome == 'again'
    may_remember = may_remember or attempt ~= ''
  end
end

-- As in commit: a key of another type fails all steps before the first of them takes a head away.
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))
local has_failed_lately = redis.call('EXISTS', all_tries, results) > 0
local tries = has_failed_lately and redis.call('HMGET', all_tries, unpack(accounts)) or {}
local waiting = redis.call('HGET', backlogs, subscription)
if may_wait then redis.call('ZCARD', due_subscriptions) end
if may_remember then
  redis.call('XLEN', attempts)
  redis.call('HLEN', sizes)
end
if may_bury then check_types(dead, bodies, sizes, given_up, backlogs) end
-- While all is well nothing is counted: results begin with a failure. What was counted may be lost: keys of another
-- type are made anew, so that they hold up no delivery.
local noted = has_failed_lately and redis.pcall('ZCARD', results) or 0
if type(noted) == 'table' then
  redis.call('DEL', results)
  noted = 0
end
local is_counting = noted > 0
local may_count = is_counting
local alone = alone_in(lists)
local reply, taken, delivered, together, settled, eventful = {unpack(lists)}, {}, {}, {}, {}, {}
for i = 1, #lists do
  local at = before + width * (i - 1)
  local list = KEYS[key + i]
  local ours, head, new = ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local outcome, attempt, kind = 'delivered', '', ''
  if not is_smooth then outcome, attempt, kind = ARGV[at + 5], ARGV[at + 7], ARGV[at + 8] end
  local answer, is_taken = 0, outcome == 'delivered' or outcome == 'dead'
  if is_taken and deadlines[i] == new then
    answer = 1 -- a repeat after a lost answer: only the first of them can have set this very deadline
  elseif deadlines[i] ~= ours then
    answer = -2
  else
    local count, first = 1, alone[i] or redis.call('LINDEX', list, 0)
    if first ~= head and not alone[i] and outcome == 'delivered' then
      local _, more = string.gsub(head, '\n', '')
      local found = more > 0 and redis.call('LRANGE', list, 0, more) or {}
      if found[more + 1] and table.concat(found, '\n') == head then -- then the last of them is as a head alone
        first, head, count = found[more + 1], found[more + 1], more + 1
        for j = 1, more do together[#together + 1] = reference_of(found[j]) end
      end
    end
    if first ~= head then
      answer = -1
    else
      if is_taken then
        if outcome == 'delivered' then delivered[#delivered + 1] = reference_of(head) end
        if tries[i] then settled[#settled + 1] = accounts[i] end
        taken[i] = count
      end
      may_count = may_count or kind ~= ''
      if may_count or outcome ~= 'delivered' or attempt ~= '' then eventful[#eventful + 1] = i end
    end
  end
  reply[i] = answer
end

if delivered[1] then drop_all(bodies, delivered) end -- which reads them first
for _, reference in ipairs(together) do drop(bodies, reference) end
local total, popped, emptied, kept, free = 0, 0, {}, {}, {}
for i = 1, #lists do
  local list = KEYS[key + i]
  local count = taken[i] or 0
  total = total + count
  if count > 0 and alone[i] then
    emptied[#emptied + 1] = list
  elseif count > 0 then
    popped = popped + 1
    if count > 1 then redis.call('LPOP', list, count) else redis.call('LPOP', list) end
  end
end
if emptied[1] then redis.call('DEL', unpack(emptied)) end
local are_left = popped == #lists and redis.call('EXISTS', unpack(lists)) == popped -- mostly in all of them
for i = 1, #lists do
  if taken[i] then
    if are_left or (not alone[i] and redis.call('EXISTS', lists[i]) > 0) then
      reply[i] = 1
      kept[#kept + 1] = ARGV[before + width * (i - 1) + 4]
      kept[#kept + 1] = accounts[i]
    else
      free[#free + 1] = accounts[i]
    end
  end
end
if total > 0 then grow(backlogs, subscription, -total, waiting) end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
if free[1] then redis.call('ZREM', queues, unpack(free)) end
if settled[1] then redis.call('HDEL', all_tries, unpack(settled)) end
if not eventful[1] then return reply end

local now = now_ms()

local function remember(attempt)
  local most, most_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
  redis.call('XADD', attempts, '*', 'attempt', attempt)
  local total, left = grow(sizes, 'attempts', #attempt + 80), redis.call('XLEN', attempts)
  local function is_too_much() return left > most or (left > 8 and total > most_bytes) end
  if not is_too_much() then return end
  for _, old in ipairs(redis.call('XRANGE', attempts, '-', '+', 'COUNT', 8)) do
    if not is_too_much() then return end
    redis.call('XDEL', attempts, old[1])
    total, left = grow(sizes, 'attempts', -#old[2][2] - 80), left - 1
  end
end

local row = is_counting and redis.pcall('GET', row_key) or ''
if type(row) == 'table' then row = '' end
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

for _, i in ipairs(eventful) do
  local at = before + width * (i - 1)
  local account, _, head, ms, outcome, reason, attempt, kind = unpack(ARGV, at + 1, at + width)
  if is_smooth then outcome, attempt, kind = 'delivered', '', '' end
  if attempt ~= '' then remember(attempt) end
  if outcome == 'delivered' or kind ~= '' then count(account, outcome == 'delivered', kind) end
  if outcome == 'dead' then
    local most, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
    bury(dead, bodies, sizes, given_up, subscription, account, reason, head, most, most_bytes)
  elseif outcome ~= 'delivered' then
    if outcome == 'retry' then
      local times, tried = string.match(tries[i] or '', '^(%d+) (.*)$')
      times = tried == head and times + 1 or 1
      redis.call('HSET', all_tries, account, times .. ' ' .. head)
    end
    -- The half distinguishes it from a lease: make_due may take it, and a repeat is refused.
    redis.call('ZADD', queues, string.format('%d.5', now + ms), account)
    redis.call('ZADD', due_subscriptions, 'LT', now + ms, subscription)
  end
end
if has_counted then
  local form = '%d %d %d %d %d %d'
  table.insert(misses, 1, string.format(form, delivered_at, second, passed, failed, passed_before, failed_before))
  redis.call('SET', row_key, table.concat(misses, '\n'), 'PX', 600000)
end
if has_failed then
  redis.call('ZREMRANGEBYSCORE', results, '(0', string.format('%d', now - 10000))
  redis.call('ZREMRANGEBYSCORE', results, 1e15, string.format('%d', 1e15 + now - 10000))
  redis.call('PEXPIRE', results, 600000)
end
return reply
