-- Tells of what kind a time on the schedule of polls is. This is no script of its own: it stands in front of those that
-- say `-- uses leases`. A quarter of a millisecond says that a worker has the account in hand until then (claim writes
-- it), three eighths that it was woken meanwhile: the poll under way may have asked before, so one more follows it. A
-- half says that the account waits for a retry (see make_retries_due).

local function is_lease(score)
  local part = score % 1
  return part == 0.25 or part == 0.375
end

local function was_woken(score, deadline) -- whether it is this lease, and its account was woken
  return score and tonumber(score) == deadline + 0.125
end

local function woken_at(polled) -- when an account that is woken may be polled again: once a second. 14 digits, and more
  return (tonumber(string.sub(polled, 1, 14)) or 0) + 1000
end
