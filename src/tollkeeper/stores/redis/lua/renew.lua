#!lua
-- Begin a new epoch, in which every gateway checks all that it has here: if nobody has begun one yet.
-- KEYS  1 epoch     ARGV  1 the epoch so far  2 the new one  3 keep until, s
-- The epoch that it is now
local keep = amount(ARGV[3])
local epoch = redis.call('GET', KEYS[1])
if epoch ~= ARGV[1] then return epoch or '' end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('EXPIREAT', KEYS[1], keep)
return ARGV[2]
