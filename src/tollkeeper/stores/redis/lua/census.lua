#!lua
-- Which ids have cells of their own: those seen before, and new ones while there are fewer than the cap.
-- KEYS  1 the ids seen     ARGV  1 cap  2 keep until, s  3… ids
-- A 1 or a 0 for each id
local cap, keep, fits = amount(ARGV[1]), amount(ARGV[2]), {}
for number = 3, #ARGV do
  local fit = redis.call('SISMEMBER', KEYS[1], ARGV[number])
  if fit == 0 and redis.call('SCARD', KEYS[1]) < cap then
    redis.call('SADD', KEYS[1], ARGV[number])
    fit = 1
  end
  fits[#fits + 1] = fit
end
redis.call('EXPIREAT', KEYS[1], keep, 'NX')
return fits
