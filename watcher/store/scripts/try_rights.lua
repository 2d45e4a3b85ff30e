-- Try every command that watcher's scripts use, on keys that are gone at the end; no other client sees them meanwhile.
-- KEYS    1 hash   2 list   3 sorted set   4 stream   5 string
-- returns the names of the commands that the server's user may not use
local trials = {
    {'TIME', redis.pcall('TIME')},
    {'HSET', redis.pcall('HSET', KEYS[1], 'field', '1')},
    {'HGET', redis.pcall('HGET', KEYS[1], 'field')},
    {'HMGET', redis.pcall('HMGET', KEYS[1], 'field')},
    {'HGETALL', redis.pcall('HGETALL', KEYS[1])},
    {'HLEN', redis.pcall('HLEN', KEYS[1])},
    {'HSCAN', redis.pcall('HSCAN', KEYS[1], '0', 'COUNT', 1)},
    {'HDEL', redis.pcall('HDEL', KEYS[1], 'field')},
    {'RPUSH', redis.pcall('RPUSH', KEYS[2], '1')},
    {'LLEN', redis.pcall('LLEN', KEYS[2])},
    {'LINDEX', redis.pcall('LINDEX', KEYS[2], 0)},
    {'LRANGE', redis.pcall('LRANGE', KEYS[2], 0, -1)},
    {'LTRIM', redis.pcall('LTRIM', KEYS[2], 0, -1)},
    {'RENAME', redis.pcall('RENAME', KEYS[2], KEYS[2])},
    {'LPOP', redis.pcall('LPOP', KEYS[2])},
    {'ZADD', redis.pcall('ZADD', KEYS[3], 1, 'member')},
    {'ZCARD', redis.pcall('ZCARD', KEYS[3])},
    {'ZCOUNT', redis.pcall('ZCOUNT', KEYS[3], 0, 1)},
    {'ZRANGE', redis.pcall('ZRANGE', KEYS[3], 0, -1)},
    {'ZRANGEBYSCORE', redis.pcall('ZRANGEBYSCORE', KEYS[3], 0, 1)},
    {'ZMSCORE', redis.pcall('ZMSCORE', KEYS[3], 'member')},
    {'ZSCORE', redis.pcall('ZSCORE', KEYS[3], 'member')},
    {'ZREM', redis.pcall('ZREM', KEYS[3], 'member')},
    {'ZREMRANGEBYSCORE', redis.pcall('ZREMRANGEBYSCORE', KEYS[3], 0, 1)},
    {'PEXPIRE', redis.pcall('PEXPIRE', KEYS[3], 1000)},
    {'XADD', redis.pcall('XADD', KEYS[4], '1-1', 'field', '1')},
    {'XLEN', redis.pcall('XLEN', KEYS[4])},
    {'XRANGE', redis.pcall('XRANGE', KEYS[4], '-', '+')},
    {'XREVRANGE', redis.pcall('XREVRANGE', KEYS[4], '+', '-')},
    {'XDEL', redis.pcall('XDEL', KEYS[4], '1-1')},
    {'SET', redis.pcall('SET', KEYS[5], '1', 'PX', 1000)},
    {'GETRANGE', redis.pcall('GETRANGE', KEYS[5], 0, 0)},
    {'SETRANGE', redis.pcall('SETRANGE', KEYS[5], 0, '1')},
    {'GET', redis.pcall('GET', KEYS[5])},
    {'MGET', redis.pcall('MGET', KEYS[5])},
    {'MSET', redis.pcall('MSET', KEYS[5], '1')},
    {'EXISTS', redis.pcall('EXISTS', KEYS[5])},
    {'DEL', redis.pcall('DEL', KEYS[5])},
    {'UNLINK', redis.pcall('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])},
}
local refused = {}
for _, trial in ipairs(trials) do
    local reply = type(trial[2]) == 'table' and trial[2].err
    if reply and (string.find(reply, 'can.t') or string.find(reply, 'ermission') or string.find(reply, 'NOPERM')) then
        refused[#refused + 1] = trial[1]
    end
end
return refused
