#!lua
-- Before which instants rows may have been pruned; never back.
-- KEYS  1 since     ARGV  keep until, s; then kind of row, instant in us, …
local keep = amount(ARGV[1])
for at = 2, #ARGV, 2 do amount(ARGV[at + 1]) end
for at = 2, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[at])
  if not known or tonumber(known) < tonumber(ARGV[at + 1]) then redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
end
redis.call('EXPIREAT', KEYS[1], keep)
return 1
