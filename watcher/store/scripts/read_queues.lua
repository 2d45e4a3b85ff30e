-- Read queues of one subscription, each with its place in the schedule, at the same moment.
-- uses waiting
-- KEYS    1 schedule   2 retries   then for each account: its queue, queued
-- ARGV    1 subscription   2 deliveries at most of each   then the accounts
-- returns for each account: when its queue is due ('': it is in no schedule), `count delivery` of the failed attempts
--         ('': none), the sequence that was queued last ('': none), how many deliveries wait, the oldest (a list)
local schedule, retries = unpack(KEYS, 1, 2)
local reply = {}
for i = 1, #ARGV - 2 do
  local queue, queued = unpack(KEYS, 2 * i + 1, 2 * i + 2)
  local account = ARGV[i + 2]
  reply[#reply + 1] = redis.call('ZSCORE', schedule, account) or ''
  reply[#reply + 1] = redis.call('HGET', retries, account) or ''
  reply[#reply + 1] = redis.call('HGET', queued, ARGV[1]) or ''
  reply[#reply + 1] = length_of(queue)
  reply[#reply + 1] = waiting_in(queue, 0, ARGV[2] - 1)
end
return reply
