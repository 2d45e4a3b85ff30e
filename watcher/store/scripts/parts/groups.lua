-- Takes the steps of several shards in one call. The script that says `-- uses groups` stands in the middle of this and
-- knows the keys and arguments of one group only: what the steps of one shard, and of one provider or subscription,
-- have in common, then those of each step. It reads all that may fail before it writes, so that a group that fails has
-- done nothing; no other fails with it.
-- ARGV    1 number of groups   then for each: its number of keys, its number of arguments   then all of these
-- returns what the script returns of the only group; of several, for each of them, and nil where it failed
local function take(KEYS, ARGV)
  -- (the script)
end

local function part_of(list, from, count)
  if count < 7000 then return {unpack(list, from + 1, from + count)} end
  local part = {} -- which is more than unpack takes
  for i = 1, count do part[i] = list[from + i] end
  return part
end

local groups, reply = tonumber(ARGV[1]), {}
local key, argument = 0, 1 + 2 * groups
for i = 1, groups do
  local keys, arguments = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local of_keys, of_arguments = part_of(KEYS, key, keys), part_of(ARGV, argument, arguments)
  if groups == 1 then return take(of_keys, of_arguments) end
  local is_done, answer = pcall(take, of_keys, of_arguments)
  reply[i] = is_done and not answer.err and answer
  key, argument = key + keys, argument + arguments
end
return reply
