#!lua
-- Make a gateway's lease of a balance what it wishes, as far as the budget pays for it: part of what the balance holds.
--
-- KEYS  1 cursor  2 shapes  3 leases  4 index  5 the balance
-- ARGV  1 epoch ("": whichever)  2 shape ("": whichever)  3 the lease's field: journal, space, the balance's name
--       4 at least  5 at most  6 limit ("": none)  7 the part of what is left that it may grow by: one in so many
--       8 below this nothing is leased  9 keep the balance until, s  10 keep the leases until, s
--
-- {"leased", the lease, "1" if little is left, spent, held}   {"epoch", epoch}   {"shapes"}
local cursor, shapes, leases, index, balance = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local field = ARGV[3]

if ARGV[1] ~= '' then
  local epoch = redis.call('HGET', cursor, 'epoch')
  if epoch ~= ARGV[1] then return {'epoch', epoch or ''} end
end
if ARGV[2] ~= '' and redis.call('SISMEMBER', shapes, ARGV[2]) == 0 then return {'shapes'} end

local least, most, scarce = amount(ARGV[4]), amount(ARGV[5]), ''
local has = tonumber(redis.call('HGET', leases, field) or '0')
local found = redis.call('HMGET', balance, 'spent', 'held')
local spent, held = tonumber(found[1] or '0'), tonumber(found[2] or '0')
local lease, until_, kept = most, amount(ARGV[9]), amount(ARGV[10])
if ARGV[6] ~= '' then
  local left = amount(ARGV[6]) - spent - held
  if left < amount(ARGV[8]) then
    lease, scarce = least, '1'
  else
    lease = math.max(least, math.min(most, has + math.floor(left / amount(ARGV[7]))))
  end
end

if lease ~= has then
  held = redis.call('HINCRBY', balance, 'held', string.format('%.0f', lease - has))
  if redis.call('EXPIREAT', balance, until_, 'NX') == 1 then
    redis.call('ZADD', index, balance:match(':(%d+)$') / 1000000, balance:match('^.*}:(.*)$'))
    if redis.call('EXPIREAT', index, kept, 'NX') == 0 then redis.call('EXPIREAT', index, kept, 'GT') end
  end
  if lease == 0 then
    redis.call('HDEL', leases, field)
  else
    redis.call('HSET', leases, field, string.format('%.0f', lease))
    if redis.call('EXPIREAT', leases, kept, 'NX') == 0 then redis.call('EXPIREAT', leases, kept, 'GT') end
  end
end
return {'leased', string.format('%.0f', lease), scarce, string.format('%.0f', spent), string.format('%.0f', held)}
