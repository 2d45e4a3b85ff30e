-- Read the log on from a place: the records of events that are wanted, and where the next look goes on. A place is the
-- id of a record with a check of what it says, so that a store that was set back is noticed, where the same id may
-- name another record.
-- uses references
-- KEYS    1 log   2 bodies   3 sizes
-- ARGV    1 the place: an id, or '' for the oldest record that is held   2 its check ('': it is not compared; '~': go on
--         behind the last record that is no later)   3 account ('': any)   4 subscription that it was queued for ('':
--         any; '*': records that are about no event, too)   5 records looked at, at most   6 returned, at most
--         7 bytes returned, about, at most
-- returns one (zero: what followed the place is no longer held, or the store was set back; then nothing else), the
--         place as an id, its check, the place that was reached, its check, one if that is the end; then for each
--         record its id, its check, its fields (a list), and what is stored of its event ('': nothing)
local log, bodies, sizes = unpack(KEYS, 1, 3)
local place, check, account, subscription, looks, most, most_bytes = unpack(ARGV, 1, 7)
looks, most, most_bytes = tonumber(looks), tonumber(most), tonumber(most_bytes)

local function check_of(record)
  return string.sub(redis.sha1hex((record[2][2] or '') .. ' ' .. (record[2][4] or '')), 1, 4)
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
if check == '~' then
  local last = redis.call('XREVRANGE', log, place, '-', 'COUNT', 1)[1]
  place, check = last and last[1] or trimmed, last and check_of(last) or ''
elseif place == '' then
  place, check = trimmed, ''
elseif place ~= trimmed then
  local found = not is_before(place, trimmed) and redis.call('XRANGE', log, place, place)[1]
  if not found or (check ~= '' and check ~= check_of(found)) then return {0} end
  check = check_of(found)
end

local reply = {1, place, check}
local records, bytes, seen, is_end, last = {}, 0, 0, false, nil
while looks > 0 and #records < 4 * most and bytes < most_bytes and seen < 4 * most_bytes do
  local part = math.min(looks, 100) -- a record that went to thousands is long
  local found = redis.call('XRANGE', log, '(' .. place, '+', 'COUNT', part)
  looks, is_end = looks - part, #found < part
  for _, record in ipairs(found) do
    if #records >= 4 * most or bytes >= most_bytes then
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
      records[#records + 1] = check_of(record)
      records[#records + 1] = fields
      records[#records + 1] = stored
    end
  end
  if is_end then break end
end
reply[4], reply[5], reply[6] = place, last and check_of(last) or check, is_end and 1 or 0
for i = 1, #records do reply[6 + i] = records[i] end
return reply
