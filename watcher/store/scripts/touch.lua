-- Note successful polls that found nothing new, and say when their accounts are due next: at once, if they were woken
-- meanwhile. Each is a step.
-- uses leases, groups
-- KEYS    1 polls   2 failing   3 due providers   then for each step: its state
-- ARGV    1 provider   then for each step: account, deadline, expected version, polled at ms (14 digits; behind it,
--         if the state has a height, that of the poll, which has twenty), next poll due ms
-- returns for each step: 1 done, -1 the state moved on (or is at no height, or a higher one), -2 the lease was lost
-- All is read before the first write, or is the first write: a key of another type fails every step, and changes
-- nothing.
local polls, failing, due_providers = unpack(KEYS, 1, 3)
local provider = ARGV[1]
local accounts, polled_at = {}, {}
for i = 1, #KEYS - 3 do accounts[i] = ARGV[i * 5 - 3] end
local deadlines = redis.call('ZMSCORE', polls, unpack(accounts))
local has_failing = redis.call('HLEN', failing) > 0
local reply, due, fixed, first = {}, {}, {}, math.huge
for i, account in ipairs(accounts) do
  local _, deadline, expected, polled, next_due = unpack(ARGV, i * 5 - 3, i * 5 + 1)
  local has_height = #polled > 14
  local found = redis.call('GETRANGE', KEYS[3 + i], 0, has_height and 52 or 15)
  local version, height = string.sub(found, 1, 16), has_height and string.match(string.sub(found, 33), '^(%d+) $')
  if expected == '' or (version ~= expected and string.match(version, '^%S*') ~= expected) then
    reply[i] = -1
  elseif has_height and (not height or height > string.sub(polled, 16)) then
    reply[i] = -1
  elseif deadlines[i] ~= deadline and not was_woken(deadlines[i], deadline) then
    reply[i] = -2
  else
    if deadlines[i] ~= deadline then next_due = math.min(next_due, woken_at(polled)) end
    reply[i], polled_at[i] = 1, polled
    due[#due + 1] = next_due
    due[#due + 1] = account
    fixed[#fixed + 1] = account
    first = math.min(first, tonumber(next_due))
  end
end
if not due[1] then return reply end

redis.call('ZADD', due_providers, 'LT', first, provider)
redis.call('ZADD', polls, unpack(due))
for i = 1, #accounts do
  if polled_at[i] then redis.call('SETRANGE', KEYS[3 + i], 17, polled_at[i]) end
end
if has_failing then redis.call('HDEL', failing, unpack(fixed)) end
return reply
