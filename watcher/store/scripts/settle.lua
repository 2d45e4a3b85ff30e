-- Settle attempts, each a step: take a queue's head away (delivered, or dead), or say when to try it again.
-- Fenced by the head, so that a repeat or a late worker takes nothing twice, and by the queue's lease.
-- KEYS    1 queues   2 due subscriptions   3 tries   4 dead letters   5 attempts   6 nothing (see claim)
--         then for each step: its queue
-- ARGV    1 subscription   2 dead letters length   3 attempts length
--         then for each step: account, deadline, delivery head (its first line), outcome (delivered, dead or
--         retry), the queue's new deadline (delivered, dead) or wait ms (retry), reason, attempt to remember
--         ('': none)
-- returns for each step: 1 done, -1 another head, -2 the lease was lost; then the queue's new deadline (0: it
--         is free)
local queues, due_subscriptions, all_tries, dead, attempts, nothing = unpack(KEYS, 1, 6)
local subscription, dead_length, attempts_length = unpack(ARGV, 1, 3)
redis.call('DEL', nothing)
local accounts, at_of = {}, {}
for i = 1, #KEYS - 6 do
  at_of[i] = 7 * i - 3
  accounts[i] = ARGV[at_of[i]]
end
local deadlines = redis.call('ZMSCORE', queues, unpack(accounts))

-- As in commit: a key of another type fails all steps before the first of them takes a head away.
local tries = redis.call('HMGET', all_tries, unpack(accounts))
redis.call('ZCARD', due_subscriptions)
redis.call('XLEN', dead)
redis.call('XLEN', attempts)
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
    ends[i] = redis.call('LRANGE', KEYS[6 + i], 0, 1)
    if string.sub(ends[i][1] or '', 1, #head) ~= head then answer, ends[i] = -1, nil end
  end
  reply[i * 2 - 1], reply[i * 2] = answer, deadline
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept, free, settled = {}, {}, {}
for i = 1, #accounts do
  if ends[i] then
    local account, _, head, outcome, ms, reason, attempt = unpack(ARGV, at_of[i], at_of[i] + 6)
    if attempt ~= '' then redis.call('XADD', attempts, 'MAXLEN', '~', attempts_length, '*', 'attempt', attempt) end
    if outcome == 'retry' then
      local later = now + ms
      local count, tried = string.match(tries[i] or '', '^(%d+) (.*)$')
      count = tried == head and count + 1 or 1
      redis.call('HSET', all_tries, account, string.format('%d %s', count, head))
      -- The half distinguishes it from a lease: make_due may take it, and a repeat is refused.
      redis.call('ZADD', queues, string.format('%d.5', later), account)
      redis.call('ZADD', due_subscriptions, 'LT', later, subscription)
    else
      redis.call('LPOP', KEYS[6 + i])
      if tries[i] then settled[#settled + 1] = account end
      if outcome == 'dead' then
        redis.call('XADD', dead, 'MAXLEN', '~', dead_length, '*',
          'account', account, 'reason', reason, 'delivery', ends[i][1])
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
if kept[1] then redis.call('ZADD', queues, unpack(kept)) end
if free[1] then redis.call('ZREM', queues, unpack(free)) end
if settled[1] then redis.call('HDEL', all_tries, unpack(settled)) end
return reply
