-- Read the log on from a place: the records of events that are wanted, and where the next look goes on. A place is the
-- id of a record; what that says is returned, as in a store that was set back the same id may name another record.
-- uses references
-- KEYS    1 log   2 bodies   3 sizes
-- ARGV    1 the place: an id, or '' for the oldest record that is held   2 '~': go on behind the last record that is no
--         later ('': the place itself must be held)   3 account ('': any)   4 subscription that it was queued for ('':
--         any; '*': records that are about no event, too)   5 records looked at, at most   6 returned, at most
--         7 bytes returned, about, at most
-- returns one (zero: what followed the place is no longer held; then nothing else), the place as an id, what its record
--         says ('': it has none), the place that was reached, what that says, one if that is the end; then for each
--         record its id, its fields (a list), and what is stored of its event ('': nothing)
local log, bodies, sizes = unpack(KEYS, 1, 3)
local place, mode, account, subscription, looks, most, most_bytes = unpack(ARGV, 1, 7)
looks, most, most_bytes = tonumber(looks), tonumber(most), tonumber(most_bytes)

local function said_by(record)
  return record and (record[2][2] or '') .. ' ' .. (record[2][4] or '') or ''
end

local function parts_of(id)
  local ms, count = string.match(id, '^(%d+)-?(%d*)$')
  return tonumber(ms), tonumber(count) or 0
end

local function is_before(one, other)
  local ms, count = parts_of(one)
  local other_ms, other_count = parts_of(other)
  return ms < other_ms or (ms == other_ms and count < other_count)
end

local trimmed = string.match(redis.call('HGET', sizes, 'trimmed') or '', '^%d+-%d+$') or '0-0'
local last
if mode == '~' then
  last = redis.call('XREVRANGE', log, place, '-', 'COUNT', 1)[1]
  if last and is_before(last[1], trimmed) then last = nil end -- a record of 0.1, which does not say what was queued
  place = last and last[1] or trimmed
elseif place == '' then
  place = trimmed
elseif place ~= trimmed then
  last = not is_before(place, trimmed) and redis.call('XRANGE', log, place, place)[1]
  if not last then return {0} end
end

local reply = {1, place, said_by(last)}
local records, bytes, seen, is_end = {}, 0, 0, false
while looks > 0 and #records < 3 * most and bytes < most_bytes and seen < 4 * most_bytes do
  local part = math.min(looks, 100) -- a record that went to thousands is long
  local found = redis.call('XRANGE', log, '(' .. place, '+', 'COUNT', part)
  looks, is_end = looks - part, #found < part
  for _, record in ipairs(found) do
    if #records >= 3 * most or bytes >= most_bytes then
      is_end = false
      break
    end
    local id, fields = record[1], record[2]
    place, last = id, record
    local reference, queued = reference_in(fields), '\n' .. (fields[6] or '')
    seen = seen + #queued
    if
      (account == '' or fields[2] == account)
      and (reference or subscription == '*')
      and (subscription == '' or subscription == '*' or string.find(queued, '\n' .. subscription .. ' ', 1, true))
    then
      local stored = reference and redis.call('HGET', bodies, reference) or ''
      bytes = bytes + #stored + #queued
      records[#records + 1] = id
      records[#records + 1] = fields
      records[#records + 1] = stored
    end
  end
  if is_end then break end
end
reply[4], reply[5], reply[6] = place, said_by(last), is_end and 1 or 0
for i = 1, #records do reply[6 + i] = records[i] end
return reply
