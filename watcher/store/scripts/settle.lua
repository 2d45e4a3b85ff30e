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
redis.call('DEL', KEYS[6])
local accounts = {}
for i = 1, #KEYS - 6 do accounts[i] = ARGV[i * 7 - 3] end
local deadlines = redis.call('ZMSCORE', KEYS[1], unpack(accounts))

-- As in commit: a key of another type fails all steps before the first of them takes a head away.
local tries = redis.call('HMGET', KEYS[3], unpack(accounts))
redis.call('ZCARD', KEYS[2])
redis.call('XLEN', KEYS[4])
redis.call('XLEN', KEYS[5])
local reply, ends = {}, {}
for i = 1, #accounts do
  local at, answer, deadline = 7 * i - 3, 1, 0
  if ARGV[at + 3] ~= 'retry' and deadlines[i] == ARGV[at + 4] then
    -- A repeat after a lost answer: only the first of them can have set this very deadline.
    deadline = tonumber(deadlines[i])
  elseif deadlines[i] ~= ARGV[at + 1] then
    answer = -2
  else
    ends[i] = redis.call('LRANGE', KEYS[6 + i], 0, 1)
    if string.sub(ends[i][1] or '', 1, #ARGV[at + 2]) ~= ARGV[at + 2] then answer, ends[i] = -1, nil end
  end
  reply[i * 2 - 1], reply[i * 2] = answer, deadline
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept, free, settled = {}, {}, {}
for i = 1, #accounts do
  local at = 7 * i - 3
  if ends[i] then
    if ARGV[at + 6] ~= '' then redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[3], '*', 'attempt', ARGV[at + 6]) end
    if ARGV[at + 3] == 'retry' then
      local later = now + tonumber(ARGV[at + 4])
      local count, tried = string.match(tries[i] or '', '^(%d+) (.*)$')
      count = tried == ARGV[at + 2] and count + 1 or 1
      redis.call('HSET', KEYS[3], accounts[i], string.format('%d %s', count, ARGV[at + 2]))
      -- The half tells it from a lease: make_due may take it, and a repeat is refused.
      redis.call('ZADD', KEYS[1], string.format('%d.5', later), accounts[i])
      redis.call('ZADD', KEYS[2], 'LT', later, ARGV[1])
    else
      redis.call('LPOP', KEYS[6 + i])
      if tries[i] then settled[#settled + 1] = accounts[i] end
      if ARGV[at + 3] == 'dead' then
        redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[2], '*',
          'account', accounts[i], 'reason', ARGV[at + 5], 'delivery', ends[i][1])
      end
      if ends[i][2] then
        kept[#kept + 1] = ARGV[at + 4]
        kept[#kept + 1] = accounts[i]
        reply[i * 2] = tonumber(ARGV[at + 4])
      else
        free[#free + 1] = accounts[i]
      end
    end
  end
end
if kept[1] then redis.call('ZADD', KEYS[1], unpack(kept)) end
if free[1] then redis.call('ZREM', KEYS[1], unpack(free)) end
if settled[1] then redis.call('HDEL', KEYS[3], unpack(settled)) end
return reply
