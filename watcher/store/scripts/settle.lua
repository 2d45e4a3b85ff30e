-- Settle attempts, each a step: take a queue's head away (delivered, or dead), or say when to try it again.
-- Fenced by the head, so that a repeat or a late worker takes nothing twice, and by the queue's lease.
-- uses references, dead_letters
-- KEYS    1 queues   2 due subscriptions   3 tries   4 dead letters   5 attempts   6 nothing (see claim)   7 bodies
--         8 sizes   9 given up   10 backlogs   then for each step: its queue
-- ARGV    1 subscription   2 dead letters length   3 dead letters bytes   4 attempts length   5 attempts bytes
--         then for each step: account, deadline, delivery (the head, as it was queued), outcome (delivered, dead or
--         retry), the queue's new deadline (delivered, dead) or wait ms (retry), reason, attempt to remember
--         ('': none)
-- returns for each step: 1 done, -1 another head, -2 the lease was lost; then the queue's new deadline (0: it
--         is free)
local queues, due_subscriptions, all_tries, dead, attempts, nothing, bodies, sizes, given_up, backlogs = unpack(KEYS, 1, 10)
local subscription, dead_length, dead_bytes, attempts_length, attempts_bytes = unpack(ARGV, 1, 5)
dead_length, dead_bytes = tonumber(dead_length), tonumber(dead_bytes)
attempts_length, attempts_bytes = tonumber(attempts_length), tonumber(attempts_bytes)
redis.call('DEL', nothing)
local accounts, at_of = {}, {}
for i = 1, #KEYS - 10 do
  at_of[i] = 7 * i - 1
  accounts[i] = ARGV[at_of[i]]
end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))

-- As in commit: a key of another type fails all steps before the first of them takes a head away.
local tries = redis.call('HMGET', all_tries, unpack(accounts))
redis.call('ZCARD', due_subscriptions)
redis.call('XLEN', dead)
redis.call('XLEN', attempts)
redis.call('HLEN', bodies)
redis.call('HLEN', sizes)
redis.call('XLEN', given_up)
redis.call('HLEN', backlogs)
local reply, ends = {}, {}
for i = 1, #accounts do
  local _, ours, head, outcome, new = unpack(ARGV, at_of[i], at_of[i] + 4)
  local answer, deadline = 1, 0
  if outcome ~= 'retry' and deadlines[i] == new then
    -- A repeat after a lost answer: only the first of them can have set this very deadline.
    deadline = tonumber(new)
  elseif deadlines[i] ~= ours then
    answer = -2
  else
    ends[i] = redis.call('LRANGE', KEYS[10 + i], 0, 1)
    if ends[i][1] ~= head then answer, ends[i] = -1, nil end
  end
  reply[i * 2 - 1], reply[i * 2] = answer, deadline
end

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

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept, free, settled, taken = {}, {}, {}, 0
for i = 1, #accounts do
  if ends[i] then
    local account, _, head, outcome, ms, reason, attempt = unpack(ARGV, at_of[i], at_of[i] + 6)
    if attempt ~= '' then remember(attempt) end
    if outcome == 'retry' then
      local later = now + ms
      local count, tried = string.match(tries[i] or '', '^(%d+) (.*)$')
      count = tried == head and count + 1 or 1
      redis.call('HSET', all_tries, account, string.format('%d %s', count, head))
      -- The half distinguishes it from a lease: make_due may take it, and a repeat is refused.
      redis.call('ZADD', queues, string.format('%d.5', later), account)
      redis.call('ZADD', due_subscriptions, 'LT', later, subscription)
    else
      redis.call('LPOP', KEYS[10 + i])
      taken = taken + 1
      if tries[i] then settled[#settled + 1] = account end
      if outcome == 'dead' then
        bury(dead, bodies, sizes, given_up, subscription, account, reason, head, dead_length, dead_bytes)
      else
        drop(bodies, reference_of(head))
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
if taken > 0 then grow(backlogs, subscription, -taken) end
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
if free[1] then redis.call('ZREM', queues, unpack(free)) end
if settled[1] then redis.call('HDEL', all_tries, unpack(settled)) end
return reply
