-- Take one step of a move of a shard from one layout to another: write what was read and converted, if no mover has
-- taken a step since it was read.
-- uses references, waiting
-- KEYS    1 layout of the shard   2 nothing (deleted first, see claim)   3 bodies   4.. what is written to
-- ARGV    1 the last step that was taken   2 this one   3.. for each write: the place of its key in KEYS, its command,
--         how many arguments it has, these. Commands are those of the server (the argument of RENAME is the place of
--         the new name), and: HOLD (reference, what is stored of its event), DROP (reference), GROW (field, by),
--         LIST: what waits alone in a queue becomes a LIST, as it is in layout 1
-- returns 1 done, also where a repeat finds it done, -1 another mover has taken a step, or where a key is of another
--         type: -1 less its place in KEYS
local layout, nothing, bodies = unpack(KEYS, 1, 3)
redis.call('DEL', nothing)
local step = redis.call('HGET', layout, 'step')
if step == ARGV[2] then return 1 end
if step ~= ARGV[1] then return -1 end

-- Ask each key something only its own type answers: a damaged one ends the step before the first write.
local asks = {
  ['RPUSH'] = 'LLEN', ['LTRIM'] = 'LLEN', ['HSET'] = 'HLEN', ['HDEL'] = 'HLEN', ['XADD'] = 'XLEN', ['XDEL'] = 'XLEN',
  ['ZADD'] = 'ZCARD', ['ZREM'] = 'ZCARD', ['SET'] = 'GET', ['HOLD'] = 'HLEN', ['DROP'] = 'HLEN', ['GROW'] = 'HLEN',
}
local at = 3
while ARGV[at] do
  local place, command, count = unpack(ARGV, at, at + 2)
  local ask = asks[command]
  local answer = ask and redis.pcall(ask, KEYS[tonumber(place)])
  if type(answer) == 'table' and answer.err then return -1 - place end
  at = at + 3 + count
end

at = 3
while ARGV[at] do
  local place, command, count = unpack(ARGV, at, at + 2)
  local key, first, second = KEYS[tonumber(place)], ARGV[at + 3], ARGV[at + 4]
  if command == 'HOLD' then
    hold(bodies, first, second)
  elseif command == 'DROP' then
    drop(bodies, first)
  elseif command == 'GROW' then
    grow(key, first, tonumber(second))
  elseif command == 'LIST' then
    local alone = alone_in({key})[1]
    if alone then append(key, alone, false, {}) end
  elseif command == 'RENAME' then
    redis.call('RENAME', key, KEYS[tonumber(first)])
  else
    redis.call(command, key, unpack(ARGV, at + 3, at + 2 + count))
  end
  at = at + 3 + count
end
redis.call('HSET', layout, 'step', ARGV[2])
return 1
