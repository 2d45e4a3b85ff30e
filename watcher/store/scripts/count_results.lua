-- Count the last results of a subscription's queues, and let all these shards note them from now on: none does while
-- all is well.
-- uses clock
-- KEYS    for each shard: nothing (deleted first, see claim), results, row
-- ARGV    1 count nothing up to this ms (the breaker was closed then)   2 ms that count at most
-- returns the ms from which on it counted, and up to which; then for each shard: queues that were tried, those that
--         failed, the row
local closed_at, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()
local from = math.max(closed_at, now - window)
local function after(ms) return string.format('(%d', ms) end
local reply = {from, now}
for i = 2, #KEYS, 3 do
  if type(redis.pcall('ZCARD', KEYS[i])) == 'table' then redis.call('DEL', KEYS[i]) end -- of another type: see settle
  local delivered = redis.call('ZCOUNT', KEYS[i], after(from), string.format('%d', 1e15 - 1))
  local failed = redis.call('ZCOUNT', KEYS[i], after(1e15 + from), '+inf')
  local row = redis.pcall('GET', KEYS[i + 1]) or ''
  if type(row) == 'table' then row = '' end
  reply[#reply + 1] = delivered + failed
  reply[#reply + 1] = failed
  reply[#reply + 1] = row
end
for i = 2, #KEYS, 3 do
  if redis.call('ZCARD', KEYS[i]) == 0 then
    redis.call('DEL', KEYS[i - 1])
    redis.call('ZADD', KEYS[i], 0, '')
    redis.call('PEXPIRE', KEYS[i], 600000)
  end
end
return reply
