-- Read the states of accounts, and where the event log ends at that moment: its records up to there are
-- those, and all those, that led to these states.
-- KEYS    1 log   2.. states
-- returns the id of the log's last record ('0-0': there is none), then each state ('' for what is not there, the
--         error for a key of another type)
-- pcall: one key of another type must not hide all others.
local last = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local reply = {last and last[1] or '0-0'}
for i = 2, #KEYS do
  local state = redis.pcall('GET', KEYS[i])
  if type(state) == 'table' then state = state.err end
  reply[i] = state or ''
end
return reply
