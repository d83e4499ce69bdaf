#!lua
-- Before which instants rows may have been pruned; never back.
-- KEYS  1 since     ARGV  keep until, s; then kind of row, instant in us, …
local function whole(value)
  if #value > 16 or not (value:find('^[1-9]%d*$') or value == '0') or tonumber(value) > 9007199254740991 then
    error('not an amount: ' .. value:sub(1, 32))
  end
  return tonumber(value)
end

local keep = whole(ARGV[1])
for at = 2, #ARGV, 2 do whole(ARGV[at + 1]) end
for at = 2, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[at])
  if not known or tonumber(known) < tonumber(ARGV[at + 1]) then redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1]) end
end
redis.call('EXPIREAT', KEYS[1], keep)
return 1
