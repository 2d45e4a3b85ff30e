-- Note a failed attempt of a subscription, or only pause it: how many failed in a row, since when, until
-- when it is left alone, and whether it is paused from now on. A failure that comes while it is left alone
-- is of an attempt that had begun before, so it counts no further: thirty at the same moment are one.
-- KEYS    1 standings (subscription -> `failures since_ms held_until_ms paused_at_ms reason`; until somebody has
--         told of a pause, `!` and from when on anybody is to stand behind paused_at_ms, see tell)
-- ARGV    1 subscription   2 reason   3 pause it now (1 or 0)   4 pause after failing for so many ms
--         5 the subscriber's own wish in ms (0: none)   6 ms in which who pauses it is to tell of that
--         7.. ms to leave it alone after the first failure in
--         a row, the second, ..., then level (absent: there was no attempt)
-- returns the standing; 1 if this paused it; 1 if it counted
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standing = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local failures, since, held, paused, untold, reason =
  string.match(standing, '^(%d+) (%d+) (%d+) (%d+)(!?%d*) (.*)$')
failures, since = tonumber(failures) or 0, tonumber(since) or now
held, paused = tonumber(held) or 0, tonumber(paused) or 0

local counts, rest = 0, tonumber(ARGV[5])
if ARGV[7] and now >= held then
  counts, failures = 1, failures + 1
  rest = math.max(rest, tonumber(ARGV[math.min(6 + failures, #ARGV)]))
end
if rest > 0 then held = math.max(held, now + rest) end

local is_new = 0
if paused == 0 then
  reason = ARGV[2]
  if ARGV[3] == '1' or now - since >= tonumber(ARGV[4]) then
    paused, untold, is_new = now, string.format('!%d', now + ARGV[6]), 1
  end
end
standing = string.format('%d %d %d %d%s ', failures, since, held, paused, untold or '') .. reason
redis.call('HDEL', KEYS[1], ARGV[1]) -- first: a full server still drains
redis.call('HSET', KEYS[1], ARGV[1], standing)
return {standing, is_new, counts}
