-- Read a part of the directory's records of one kind, and which change of the shard was the last at that moment.
-- KEYS    1 records   2 changes
-- ARGV    1 where the part begins (0: at the start)   2 about how many
-- returns the last change ('': none), where the next part begins (0: this was the last), then names and records
local records, changes = unpack(KEYS, 1, 2)
local last = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
local part = redis.call('HSCAN', records, ARGV[1], 'COUNT', ARGV[2])
local reply = {last and last[1] or '', part[1]}
for i = 1, #part[2] do reply[2 + i] = part[2][i] end
return reply
