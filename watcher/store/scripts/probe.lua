-- Take probes of a half-open subscription: attempts that may be out at the same time, over all workers.
-- uses clock
-- KEYS    1 probes (probe -> when its lease ends, in ms)
-- ARGV    1 probes at a time, at most   2 lease ms   3.. names of probes to take, if there is room
-- returns the names that are taken: those of a repeat, too
local probes, most, lease_ms = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local now = now_ms()
if type(redis.pcall('ZCARD', probes)) == 'table' then redis.call('DEL', probes) end -- of another type
local left = most - redis.call('ZCOUNT', probes, string.format('(%d', now), '+inf')
local taken, ends = {}, {}
for i = 3, #ARGV do
  local until_ms = tonumber(redis.call('ZSCORE', probes, ARGV[i]) or 0)
  if until_ms > now then
    taken[#taken + 1] = ARGV[i]
  elseif left > 0 then
    left = left - 1
    taken[#taken + 1] = ARGV[i]
    ends[#ends + 1] = string.format('%d', now + lease_ms)
    ends[#ends + 1] = ARGV[i]
  end
end
redis.call('ZREMRANGEBYSCORE', probes, '-inf', string.format('%d', now)) -- first: a full server still drains
if ends[1] then
  redis.call('ZADD', probes, unpack(ends))
  redis.call('PEXPIRE', probes, 2 * lease_ms)
end
return taken
