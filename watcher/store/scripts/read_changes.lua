-- Read what changed in the directory of a shard since a reader's last look, each name once, with its record as it lies
-- there now.
-- KEYS    1 records of accounts   2 records of subscriptions   3 changes
-- ARGV    1 the last change that the reader knows ('': none)   2 how many changes to read at most
-- returns where the reader stands: on (these changes followed), behind (they are kept no longer), back (the store has
--         lost the reader's last change, and these followed the one that is named next) or lost (it has lost all, and
--         those since are kept no longer, or there are none);
--         the last change that both have; the last that is read now; 1 if there are more; then for each name: its kind,
--         as records are numbered in KEYS; itself; the version of its change; that of a deletion that was made
--         before ('': this one); its record ('': deleted)
local accounts, subscriptions, changes = unpack(KEYS, 1, 3)
local known, most = unpack(ARGV, 1, 2)
local function number_of(id) return tonumber(string.match(id, '^%d+')) end
local last = redis.call('XREVRANGE', changes, '+', '-', 'COUNT', 1)[1]
last = last and last[1] or ''
if known == last then return {'on', known, known, 0} end
if known == '' then return {'behind', '', last, 0} end
if last == '' then return {'lost', '', last, 0} end
local stands = 'on'
local oldest = redis.call('XRANGE', changes, '-', '+', 'COUNT', 1)[1][1]
if string.match(last, '-.*') ~= string.match(known, '-.*') then
  if string.match(oldest, '^(%d+)-') ~= string.match(oldest, '-(%d+)$') then return {'lost', '', last, 0} end
  stands, known = 'back', '0-0' -- everything since is there
elseif not redis.call('XRANGE', changes, known, known)[1] then
  if number_of(oldest) > number_of(known) then return {'behind', '', last, 0} end
  stands, known = 'back', redis.call('XREVRANGE', changes, '(' .. known, '-', 'COUNT', 1)[1][1]
end
local found = redis.call('XRANGE', changes, '(' .. known, '+', 'COUNT', most)
local newest, reply = {}, {stands, known, found[1] and found[#found][1] or known, #found == tonumber(most) and 1 or 0}
for i, change in ipairs(found) do newest[change[2][1] .. ' ' .. change[2][2]] = i end
for i, change in ipairs(found) do
  local kind, name = unpack(change[2], 1, 2)
  if newest[kind .. ' ' .. name] == i then
    reply[#reply + 1] = kind
    reply[#reply + 1] = name
    reply[#reply + 1] = number_of(change[1])
    reply[#reply + 1] = change[2][4] or ''
    reply[#reply + 1] = redis.call('HGET', KEYS[tonumber(kind)], name) or ''
  end
end
return reply
