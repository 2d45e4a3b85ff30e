-- Note what assets are called, where that is not noted yet. What was noted first stays: states rely on it.
-- KEYS    1 names (asset -> JSON [symbol, name, decimals])
-- ARGV    1 most names in the table   2.. for each asset: its id, JSON [symbol, name, decimals]
-- returns for each asset what is noted now (nil: the table is full)
local names = KEYS[1]
local most = tonumber(ARGV[1])
local assets = {}
for i = 2, #ARGV, 2 do assets[#assets + 1] = ARGV[i] end
local noted = redis.pcall('HMGET', names, unpack(assets))
if noted.err then -- of another type: what it holds is not needed
  redis.call('DEL', names)
  noted = redis.call('HMGET', names, unpack(assets))
end
local room = most - redis.call('HLEN', names)
for i, asset in ipairs(assets) do
  if not noted[i] and room > 0 then
    noted[i] = ARGV[i * 2 + 1]
    redis.call('HSET', names, asset, noted[i])
    room = room - 1
  end
end
return noted
