-- Keeps what was given up, within bounds: each subscription's newest eight in any case, so that one that fills the
-- bytes takes nothing from the others. This is no script of its own: see references.

local function check_types(dead, bodies, sizes, given_up, backlogs) -- a key of another type fails the script
  redis.call('XLEN', dead)
  redis.call('HLEN', bodies)
  redis.call('HLEN', sizes)
  redis.call('XLEN', given_up)
  redis.call('HLEN', backlogs)
end

local function is_in_hand(due, now) -- a queue's lease ends in the future, at a whole millisecond: a retry has a half
  return due > now and due % 1 == 0
end

local function letter_size(fields, body) -- what a dead letter takes with its body; a person may have put less there
  return #fields[2] + #(fields[4] or '') + #(fields[6] or '') + body + 150
end

local function note_dead(sizes, dead, subscription) -- so that what has none need not be looked at
  local count = redis.call('XLEN', dead)
  if count > 0 then
    redis.call('HSET', sizes, 'dead ' .. subscription, count)
  else
    redis.call('HDEL', sizes, 'dead ' .. subscription)
  end
end

local function note_given_up(given_up, bytes, subscription, account, reason, entry) -- without its body
  local most = math.max(8, math.min(10000, math.floor(bytes / 256)))
  redis.call('XADD', given_up, 'MAXLEN', '~', most, '*', 'subscription', subscription, 'account', account,
    'reason', reason, 'delivery', entry)
end

local function bury(dead, bodies, sizes, given_up, subscription, account, reason, entry, length, bytes)
  local _, stored = counted(redis.call('HGET', bodies, reference_of(entry)) or '')
  local new = {'account', account, 'reason', reason, 'delivery', entry}
  redis.call('XADD', dead, '*', unpack(new))
  local total = grow(sizes, 'dead', letter_size(new, #stored))
  local left = redis.call('XLEN', dead)
  local function is_too_much() return left > length or (left > 8 and total > bytes) end
  -- A few at a time, so that it takes no longer than it must.
  for _, letter in ipairs(is_too_much() and redis.call('XRANGE', dead, '-', '+', 'COUNT', 8) or {}) do
    if not is_too_much() then break end
    local fields = letter[2]
    local whose, why, old = fields[2], fields[4] or '', fields[6] or ''
    redis.call('XDEL', dead, letter[1])
    total = grow(sizes, 'dead', -letter_size(fields, drop(bodies, reference_of(old))))
    left = left - 1
    note_given_up(given_up, bytes, subscription, whose, why, old)
  end
  note_dead(sizes, dead, subscription)
end
