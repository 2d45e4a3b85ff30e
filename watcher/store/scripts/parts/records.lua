-- Reads what scripts need of a record of the directory: `version edited plain`, a newline and the encrypted part; or
-- `version edited written plain` if Redis had lost a record that was written before, as the version `written`. This is
-- no script of its own: it stands in front of those that say `-- uses records`.

local function version_of(record) -- 0 where there is none, or it is damaged
  return tonumber(string.match(record or '', '^%d+') or 0)
end

local function written_of(record) -- when it was written first, where a store had lost it: perhaps by another clock
  return tonumber(string.match(record or '', '^%d+ %d+ (%d+) {') or version_of(record))
end

local function allows(rule, record) -- '': whatever lies there, N: that version (0: none), <N: what was written before N
  if rule == '' then return true end
  local before = string.match(rule, '^<(%d+)$')
  if not before then return version_of(record) == tonumber(rule) end
  return written_of(record) < tonumber(before)
end

local function provider_of(record) -- of an account; nil where it cannot be read
  return string.match(record or '', '^%d+ %d+ [%d ]*{"provider":"([^"]+)"}\n')
end
