#!lua
-- Let go of holds for which nothing is owed; unknown ids are ignored.
-- KEYS  1 holds  2 due     ARGV  ids
local gone = 0
for _, id in ipairs(ARGV) do
  local lived = redis.call('HGET', KEYS[1], id)
  if lived then
    for key, amount in lived:sub(1, (lived:find('\n', 1, true)) - 1):gmatch('(%S+) (%d+)') do
      redis.call('HINCRBY', key, 'held', '-' .. amount)
    end
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    gone = gone + 1
  end
end
return gone
