#!lua
-- Begin a new epoch, in which every gateway checks all that it has here: if nobody has begun one yet.
-- KEYS  1 epoch     ARGV  1 the epoch so far  2 the new one  3 keep until, s
-- The epoch that it is now
local function whole(value)
  if #value > 16 or not (value:find('^[1-9]%d*$') or value == '0') or tonumber(value) > 9007199254740991 then
    error('not an amount: ' .. value:sub(1, 32))
  end
  return tonumber(value)
end

local keep = whole(ARGV[3])
local epoch = redis.call('GET', KEYS[1])
if epoch ~= ARGV[1] then return epoch or '' end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('EXPIREAT', KEYS[1], keep)
return ARGV[2]
