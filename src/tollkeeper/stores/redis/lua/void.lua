#!lua
-- Let go of holds for which nothing is owed; unknown ids are ignored.
-- KEYS  1 holds  2 due     ARGV  ids
--
-- How many there were. Which balances they hold of is only in their text: a cluster that is moving one says so before any write.
local held, gone, over = {}, {}, {}
for _, id in ipairs(ARGV) do
  local lived = not over[id] and redis.call('HGET', KEYS[1], id)
  if lived then
    over[id] = true
    gone[#gone + 1] = id
    for key, amount in lived:sub(1, (lived:find('\n', 1, true)) - 1):gmatch('(%S+) (%d+)') do
      redis.call('EXISTS', key)
      held[#held + 1] = {key, amount}
    end
  end
end
for _, leg in ipairs(held) do redis.call('HINCRBY', leg[1], 'held', '-' .. leg[2]) end
if #gone > 0 then
  redis.call('HDEL', KEYS[1], unpack(gone))
  redis.call('ZREM', KEYS[2], unpack(gone))
end
return #gone
