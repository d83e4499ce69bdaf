#!lua
-- Which places that calls go to asked to be left alone, and until when: told and heard at once. What is over goes.
--
-- KEYS  1 open
-- ARGV  1 now, ms  2 places at most  3 keep until, s  then  place, until in ms, … that are told: the later instant holds
--
-- {place, until in ms, …}
local open, now, most, keep = KEYS[1], amount(ARGV[1]), amount(ARGV[2]), amount(ARGV[3])
for at = 4, #ARGV, 2 do amount(ARGV[at + 1]) end

local until_ms, places, all = {}, {}, redis.call('HGETALL', open)
for at = 1, #all, 2 do
  if #all[at + 1] < 16 and (tonumber(all[at + 1]:match('^%d+$') or '0')) > now then
    until_ms[all[at]] = all[at + 1]
    places[#places + 1] = all[at]
  else
    redis.call('HDEL', open, all[at])
  end
end

for at = 4, #ARGV, 2 do
  local place, told = ARGV[at], ARGV[at + 1]
  local known = until_ms[place]
  if tonumber(told) > tonumber(known or now) and (known or #places < most) then
    redis.call('HSET', open, place, told)
    if redis.call('EXPIREAT', open, keep, 'NX') == 0 then redis.call('EXPIREAT', open, keep, 'GT') end
    until_ms[place] = told
    if not known then places[#places + 1] = place end
  end
end

local found = {}
for _, place in ipairs(places) do
  found[#found + 1] = place
  found[#found + 1] = until_ms[place]
end
return found
