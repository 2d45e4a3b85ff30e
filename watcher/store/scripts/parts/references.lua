-- Moves the counts of bodies: a body lives as long as a record of the log, a queue or a dead letter refers to it.
-- This is no script of its own: it stands in front of those that say `-- uses references`. What the log, dead letters
-- and attempts take is noted in sizes, with what each body takes, however many refer to it; how many deliveries wait
-- is noted in backlogs.

local function reference_of(entry) -- of what waits, or is dead: `reference previous`
  local first = string.find(entry, ' ', 1, true) or 0 -- a pattern would look at each character
  local second = string.find(entry, ' ', first + 1, true) or 1
  return string.sub(entry, 1, second - 1)
end

local function reference_in(fields) -- of a record of the log, or of a dead letter; nil: it is about no event
  for i = 1, #fields, 2 do
    if fields[i] == 'entry' then return string.match(fields[i + 1], '^%d+ (evt_%S+ %d+)$') end
    if fields[i] == 'delivery' then return string.match(fields[i + 1], '^(%S+ %d+) ') end
  end
end

local function counted(body) -- returns the count of a body, and what stands behind it; 0 for one that is damaged
  local space = string.find(body, ' ', 1, true) or 1
  return tonumber(string.sub(body, 1, space - 1)) or 0, string.sub(body, space)
end

local function hold(bodies, reference, stored)
  local count, rest = counted(redis.call('HGET', bodies, reference) or '')
  if count == 0 then rest = ' ' .. stored end
  redis.call('HSET', bodies, reference, count + 1 .. rest)
end

local function drop(bodies, reference) -- returns how long it is
  local body = redis.call('HGET', bodies, reference)
  if not body then return 0 end
  local count, rest = counted(body)
  if count > 1 then
    redis.call('HSET', bodies, reference, count - 1 .. rest)
  else
    redis.call('HDEL', bodies, reference)
  end
  return #rest
end

local function drop_all(bodies, references) -- as drop, of some that differ, in as few commands as it takes
  local stored, kept, gone = redis.call('HMGET', bodies, unpack(references)), {}, {}
  for i = 1, #references do
    local body = stored[i] or ''
    local digits = string.match(body, '^%d+')
    local left = digits == '2' and '1' or string.format('%d', (tonumber(digits or 0) or 0) - 1) -- mostly two
    if digits and tonumber(left) > 0 then
      kept[#kept + 1] = references[i]
      kept[#kept + 1] = string.gsub(body, '^%d+', left, 1) -- a cut and a join would be two long texts
    else
      gone[#gone + 1] = references[i]
    end
  end
  if kept[1] then redis.call('HSET', bodies, unpack(kept)) end
  if gone[1] then redis.call('HDEL', bodies, unpack(gone)) end
end

-- Move what is noted in sizes or backlogs; returns how much it is now. What is damaged counts from 0.
local function grow(sizes, part, by, noted)
  noted = noted or redis.call('HGET', sizes, part)
  local size = math.max(0, (tonumber(noted or 0) or 0) + by)
  if size > 0 then
    redis.call('HSET', sizes, part, string.format('%d', size))
  else
    redis.call('HDEL', sizes, part)
  end
  return size
end
