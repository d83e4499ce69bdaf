#!lua
-- Open a slot in this epoch, and begin to keep the balances of a shape there: with what its entries add.
--
-- KEYS  1 cursor  2 shapes  3 index  4… balances
-- ARGV  1 epoch  2 keep until, s  3 shape ("": only open the slot)  4 batches applied when the entries were read
--       then per balance  keep until, name in the index, start in s, amount
--       then  "more": others follow, and until then nobody looks at these
--
-- {"filled"} also where the shape was kept before   {"moved"} something was applied meanwhile   {"more"}
local cursor, shapes, index = KEYS[1], KEYS[2], KEYS[3]

local keep, shape = amount(ARGV[2]), ARGV[3]

local function stay(key)
  if redis.call('EXPIREAT', key, keep, 'NX') == 0 then redis.call('EXPIREAT', key, keep, 'GT') end
end

if shape ~= '' and redis.call('SISMEMBER', shapes, shape) == 0 then
  if tonumber(redis.call('HGET', cursor, 'batch') or '0') ~= amount(ARGV[4]) then return {'moved'} end
  local balances = {}
  for number = 4, #KEYS do
    local at = 5 + (number - 4) * 4
    local spent = ARGV[at + 3] -- stands as it is told: what is beyond a double is more than any limit
    if #spent > 18 or not (spent == '0' or spent:find('^%-?[1-9]%d*$')) then error('not a sum: ' .. spent:sub(1, 32)) end
    balances[#balances + 1] = {KEYS[number], amount(ARGV[at]), ARGV[at + 1], amount(ARGV[at + 2], true), spent}
  end
  for _, balance in ipairs(balances) do
    redis.call('HSET', balance[1], 'spent', balance[5])
    redis.call('EXPIREAT', balance[1], balance[2], 'NX')
    redis.call('ZADD', index, balance[4], balance[3])
  end
  if ARGV[5 + #balances * 4] == 'more' then
    stay(index)
    return {'more'}
  end
  redis.call('SADD', shapes, shape)
end
redis.call('HSET', cursor, 'epoch', ARGV[1])
stay(cursor)
stay(shapes)
stay(index)
return {'filled'}
