-- Tells the server's time, which is asked for once in a call. This is no script of its own: it stands in front of those
-- that say `-- uses clock`.

local asked_at
local function now_ms()
  if not asked_at then
    local time = redis.call('TIME')
    asked_at = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return asked_at
end

