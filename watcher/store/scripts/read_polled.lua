-- Read when accounts were last polled successfully: it stands at a fixed place of their states.
-- KEYS    1.. states
-- returns for each the time as 14 digits, '' where there is no state
-- pcall: one key of another type must not hide all others.
local reply = {}
for i = 1, #KEYS do
  local polled = redis.pcall('GETRANGE', KEYS[i], 17, 30)
  reply[i] = type(polled) == 'table' and '' or polled
end
return reply
