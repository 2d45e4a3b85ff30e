-- Reads and fills queues. A queue is a LIST, or a STRING while one delivery waits alone that found it empty: on Redis 7
-- a LIST takes 90 bytes more. This is no script of its own: it stands in front of those that say `-- uses waiting`.

local function alone_in(lists) -- by place: the delivery that waits alone there, or false
  if lists[1] and not lists[1001] then return redis.call('MGET', unpack(lists)) end
  local found = {}
  for i = 1, #lists, 1000 do
    local some = redis.call('MGET', unpack(lists, i, math.min(i + 999, #lists)))
    for j = 1, #some do found[i + j - 1] = some[j] end
  end
  return found
end

local function empty_in(lists, alone) -- by place: whether nothing waits there; `alone` is what alone_in found
  local left, found = 0, {}
  for i = 1, #lists, 1000 do
    left = left + redis.call('EXISTS', unpack(lists, i, math.min(i + 999, #lists)))
  end
  for i = 1, #lists do left = left - (alone[i] and 1 or 0) end
  for i = 1, #lists do found[i] = not alone[i] and (left == 0 or redis.call('LLEN', lists[i]) == 0) end
  return found
end

local function length_of(list)
  return redis.call('MGET', list)[1] and 1 or redis.call('LLEN', list)
end

local function waiting_in(list, from, to) -- places count from zero, and from the end where they are below
  local alone = redis.call('MGET', list)[1]
  if not alone then return redis.call('LRANGE', list, from, to) end
  return (from == 0 or from == -1) and {alone} or {}
end

local function append(list, alone, is_empty, deliveries)
  if is_empty and not deliveries[2] then
    redis.call('SET', list, deliveries[1])
    return
  end
  if alone then
    redis.call('DEL', list)
    redis.call('RPUSH', list, alone)
  end
  for i = 1, #deliveries, 1000 do
    redis.call('RPUSH', list, unpack(deliveries, i, math.min(i + 999, #deliveries)))
  end
end

local function take_oldest(list, count) -- returns them
  local alone = redis.call('MGET', list)[1]
  if not alone then return redis.call('LPOP', list, count) end
  redis.call('DEL', list)
  return {alone}
end
