-- Take, keep or leave the one place of whoever asks a failing subscription whether it is back.
-- KEYS    1 probe   (deleted first: a full server still drains)
-- ARGV    1 who asks   2 how long the place is kept, in ms (0: leave it)
-- returns 1 if the place is the asker's (or free again), 0 if somebody else has it
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
