-- Note that a worker is there, and forget those that have not been seen for long.
-- uses clock
-- KEYS    1 workers (worker -> `seen_ms what it says of itself`)
-- ARGV    1 worker   2 what it says of itself   3 forget workers not seen for so many ms
-- returns how many others are known
local now = now_ms()
local known = redis.pcall('HGETALL', KEYS[1])
if known.err then -- of another type: what it holds is not needed
  redis.call('DEL', KEYS[1])
  known = {}
end
redis.call('HDEL', KEYS[1], ARGV[1]) -- first: a full server is no reason to look dead
local others = 0
for i = 1, #known, 2 do
  local seen = tonumber(string.match(known[i + 1], '^(%d+) '))
  if not seen or now - seen > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], known[i])
  elseif known[i] ~= ARGV[1] then
    others = others + 1
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d ', now) .. ARGV[2])
return others
