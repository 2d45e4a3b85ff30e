-- Notes what changes in the directory of a shard. This is no script of its own: it stands in front of those that say
-- `-- uses changes`. A change is named `version-first`: the first is the time of the shard's first change, which is
-- another one where a store has lost them all. Versions are microseconds (a double holds them exactly), as many writes
-- happen in one millisecond: they never run ahead of the clock, so that a store that went back gives none a second time.

local function next_change(changes) -- returns the lowest version it may have, the first one's, and the time (ms)
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local last = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
  local version, first = string.match(last and last[1] or '', '^(%d+)-(%d+)$')
  return math.max(now, tonumber(version or 0) + 1), first or string.format('%d', now), math.floor(now / 1000)
end

local function note_change(changes, kept, version, first, ...) -- then its kind, its name, perhaps `written` and when
  redis.call('XADD', changes, 'MAXLEN', '~', kept, string.format('%d-', version) .. first, ...)
end
