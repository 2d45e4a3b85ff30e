-- Read the states of accounts, and where the event log ends at that moment: its records up to there are
-- those, and all those, that led to these states.
-- KEYS    1 log   2.. states
-- returns the id of the log's last record ('0-0': there is none), then for each state its version,
--         sequence, polled_at and body ('' for what is not there; a key of another type has the error as body)
-- pcall: one key of another type must not hide all others.
local last = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local reply = {last and last[1] or '0-0'}
for i = 2, #KEYS do
  local fields = redis.pcall('HMGET', KEYS[i], 'version', 'sequence', 'polled_at', 'body')
  if fields.err then fields = {'', '', '', fields.err} end
  for j = 1, 4 do reply[#reply + 1] = fields[j] or '' end
end
return reply
