-- Keeps what was given up, within bounds. This is no script of its own: see references.

local function bury(dead, bodies, sizes, given_up, subscription, account, reason, entry, length, bytes)
  local function size_of(letter, body) return #letter[2] + #letter[4] + #letter[6] + body + 150 end
  local _, stored = counted(redis.call('HGET', bodies, reference_of(entry)) or '')
  local new = redis.call('XADD', dead, '*', 'account', account, 'reason', reason, 'delivery', entry)
  local size = size_of({'', account, '', reason, '', entry}, #stored)
  local total = grow(sizes, 'dead', size)
  local left = redis.call('XLEN', dead)
  if total <= bytes and left <= length then return end
  -- A few at a time, so that it takes no longer than it must; the new one stays.
  for _, letter in ipairs(redis.call('XRANGE', dead, '-', '+', 'COUNT', 8)) do
    if letter[1] == new or (total <= bytes and left <= length) then return end
    local fields = letter[2]
    redis.call('XDEL', dead, letter[1])
    total = grow(sizes, 'dead', -size_of(fields, drop(bodies, reference_of(fields[6]))))
    left = left - 1
    redis.call('XADD', given_up, 'MAXLEN', '~', length, '*', 'subscription', subscription, 'account', fields[2],
      'reason', fields[4], 'delivery', fields[6])
  end
end
