-- Note for which URL each subscription's queues are filled from now on, unless a worker noted another meanwhile.
-- KEYS    1 marks (subscription -> `url configuration`, digests)
-- ARGV    1.. for each subscription: its name, the mark that is expected there ('': none), the new one
-- returns for each subscription the mark that stands there now
local known = redis.pcall('HGET', KEYS[1], ARGV[1])
if known and known.err then redis.call('DEL', KEYS[1]) end -- of another type: what it holds is not needed
local reply = {}
for i = 1, #ARGV, 3 do
  local now = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if now == ARGV[i + 1] then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
    now = ARGV[i + 2]
  end
  reply[#reply + 1] = now
end
return reply
