#!lua
-- Ids of one hour into the hash of the day on which they are moved: what stands there already is newer.
--
-- KEYS  1 ids of an hour  2 ids of a day
-- ARGV  1 keep until, s
--
-- How many were moved
local keep, moved, hour = amount(ARGV[1]), 0, redis.call('HGETALL', KEYS[1])
for number = 1, #hour, 2 do
  if not redis.call('HGET', KEYS[2], hour[number]) then
    moved = moved + redis.call('HSET', KEYS[2], hour[number], hour[number + 1])
  end
end
if #hour > 0 then redis.call('EXPIREAT', KEYS[2], keep) end
redis.call('DEL', KEYS[1])
return moved
