-- Reads records of the directory, `version edited plain`, a newline and what is sealed, as far as scripts need that. This
-- is no script of its own: it stands in front of those that say `-- uses records`.

local function version_of(record) -- 0 where there is none, or it is damaged
  return tonumber(string.match(record or '', '^%d+') or 0)
end

local function allows(rule, there) -- '': whatever lies there, N: that version alone (0: none), <N: what is below
  if rule == '' then return true end
  local below = string.match(rule, '^<(%d+)$')
  if below then return there < tonumber(below) end
  return there == tonumber(rule)
end

local function provider_of(record) -- of an account; nil where it cannot be read
  return string.match(record or '', '^%d+ %d+ {"provider":"([^"]+)"}\n')
end
