#!lua
-- Hold a quote against every balance of one slot that covers a call, or against none.
--
-- KEYS  1 cursor  2 shapes  3 holds  4 due  5 index  6… the balances
-- ARGV  1 epoch  2 journal  3 last row that the caller knows to be applied  4 id of the hold  5 the hold as text
--       6 deadline, ms  7 keep until, s  8 "1": hold it whatever the limits say, of these balances if it lives with others
--       9 who holds it: "#" and a process's name
--       then per balance: shape, asked ("": unknown), limit ("": none), keep until
--
-- {"held" | "known", spent, held, …}  {"refused", number of the balance, spent, held, …}  numbers as they stand afterwards
-- {"conflict"}  {"epoch", epoch}  {"behind", row}  {"shapes"}
local cursor, shapes, holds, due, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, text = ARGV[4], ARGV[5]
local FIRST, WIDTH = 10, 4

-- Everything is read and checked before the first write: a script that ends early keeps what it has written.
local epoch, row = unpack(redis.call('HMGET', cursor, 'epoch', ARGV[2]))
if epoch ~= ARGV[1] then return {'epoch', epoch or ''} end
if tonumber(row or '0') < amount(ARGV[3]) then return {'behind', row or '0'} end
local due_ms, keep = amount(ARGV[6]), amount(ARGV[7])

local legs, numbers, refused = {}, {}, nil
for number = 1, #KEYS - 5 do
  local at = FIRST + (number - 1) * WIDTH
  local shape, asked, limit = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if redis.call('SISMEMBER', shapes, shape) == 0 then return {'shapes'} end
  local found = redis.call('HMGET', KEYS[5 + number], 'spent', 'held')
  local spent, held = found[1] or '0', found[2] or '0'
  numbers[#numbers + 1] = spent
  numbers[#numbers + 1] = held
  local wanted = asked ~= '' and amount(asked) or nil
  if limit ~= '' and wanted ~= 0 and not refused then
    if not wanted or not (tonumber(spent) + tonumber(held) + wanted <= amount(limit)) then refused = number end
  end
  legs[number] = {KEYS[5 + number], asked ~= '' and asked or '0', amount(ARGV[at + 3]), not found[1] and not found[2]}
end

-- The legs stand before the first newline, with the owner, and may have been taken under other budgets.
local lived, before = redis.call('HGET', holds, id), {}
if lived then
  local head = lived:find('\n', 1, true)
  if lived:sub(head + 1) ~= text then return {'conflict'} end
  if ARGV[8] ~= '1' then return {'known', unpack(numbers)} end
  for key, amount in lived:sub(1, head - 1):gmatch('(%S+) (%d+)') do
    redis.call('EXISTS', key) -- a cluster that is moving it says so before any write
    before[#before + 1] = {key, amount}
  end
elseif refused and ARGV[8] ~= '1' then
  return {'refused', refused, unpack(numbers)}
end

for _, leg in ipairs(before) do redis.call('HINCRBY', leg[1], 'held', '-' .. leg[2]) end
local held = {}
for number, leg in ipairs(legs) do
  if leg[2] ~= '0' then
    numbers[number * 2] = string.format('%.0f', redis.call('HINCRBY', leg[1], 'held', leg[2]))
    if leg[4] then -- new: listed by its name, under its window's start
      redis.call('EXPIREAT', leg[1], leg[3])
      redis.call('ZADD', index, leg[1]:match(':(%d+)$') / 1000000, leg[1]:match('^.*}:(.*)$'))
    end
    held[#held + 1] = leg[1] .. ' ' .. leg[2]
  end
end
held[#held + 1] = ARGV[9]
redis.call('HSET', holds, id, table.concat(held, ' ') .. '\n' .. text)
redis.call('ZADD', due, due_ms, id)
-- A day longer than asked for, so that the next ones need not change it.
for _, key in ipairs({holds, due, index}) do
  if redis.call('EXPIRETIME', key) < keep then redis.call('EXPIREAT', key, keep + 86400) end
end
return {'held', unpack(numbers)}
