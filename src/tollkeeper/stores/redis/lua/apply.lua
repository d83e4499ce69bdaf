#!lua
-- Apply a batch of a journal's rows to one slot, once: the cursor moves with the sums, or nothing does.
-- A slot is what shares a hash tag. Its cursor also has the instant of the last batch, no two the same, so that a reader knows
-- whether one came between, also where the slot was emptied or went back meanwhile; and of the first one.
--
-- KEYS  1 cursor  2 shapes  3 holds  4 due  5 index  6… where ids may stand  …what the batch changes, in the order in which the batch tells of it
-- ARGV  1 the batch in MessagePack, which is cheaper to take apart than as many arguments. An array of
--         keep until, s (of the cursor)
--         [[cursor's field, from row, to row], …]
--         [shape that the sums are of, …], or nil: the slot keeps no balances yet, or the batch has none
--         in how many hashes ids may stand: the first that has one counts; and into which of them they are written
--         keep until, s (of the ids)
--         [id, …], [what stands under each ("": nothing), …], [what shall stand there, …]
--         [id of a hold that ends, …]
--         [[fields, [keep until, s, …], [[amount to add to each field, …], …]], …]: of all amounts a key for each deadline
--         [keep until, s, …]: a key for each, of a block
--         [[field of a lease, key of its balance, how much of it is spent now], …]
--       2… blocks of entries
--
-- {"applied", fields that could not be counted up}
-- {"cursor", row, …} as they stand   {"shapes", shape, …}   {"ids", number, what stands there, …}
local cursor, shapes, holds, due, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local find, format, call, pcall = string.find, string.format, redis.call, redis.pcall
local FIRST, EXACT = 5, 9007199254740992

local function whole(value)
  if type(value) ~= 'number' or value % 1 ~= 0 or value >= EXACT or value <= -EXACT or value == 0 and 1 / value < 0 then
    error('not an amount: ' .. tostring(value):sub(1, 32))
  end
  return value
end

-- Read and check all of it before the first write.
local keep, cursors, kept, days, into, ids_until, ids, supposed, marks, ended, sums, blocks_until, leased =
  unpack(cmsgpack.unpack(ARGV[1]), 1, 13)
local rows, moved = {}, {}
for number, each in ipairs(cursors) do
  rows[number] = call('HGET', cursor, each[1]) or '0'
  if rows[number] ~= format('%.0f', whole(each[2])) then moved = nil end
  if moved then
    moved[#moved + 1] = each[1]
    moved[#moved + 1] = whole(each[3])
  end
end
if not moved then return {'cursor', unpack(rows)} end

if kept then
  local same = call('SCARD', shapes) == #kept
  for _, shape in ipairs(kept) do
    if call('SISMEMBER', shapes, shape) == 0 then same = false end
  end
  if not same then return {'shapes', unpack(call('SMEMBERS', shapes))} end
end

local at, wrong, today = FIRST + whole(days), {}, KEYS[FIRST + whole(into)]
if #ids > 0 then
  local stands = call('HMGET', KEYS[FIRST + 1], unpack(ids))
  for day = 2, days do
    for number, older in ipairs(call('HMGET', KEYS[FIRST + day], unpack(ids))) do
      stands[number] = stands[number] or older
    end
  end
  for number, text in ipairs(supposed) do
    if (stands[number] or '') ~= text then
      wrong[#wrong + 1] = number
      wrong[#wrong + 1] = stands[number] or ''
    end
  end
end
if #wrong > 0 then return {'ids', unpack(wrong)} end

for _, alike in ipairs(sums) do
  for _, deadline in ipairs(alike[2]) do whole(deadline) end
  for _, amounts in ipairs(alike[3]) do
    for number = 1, #alike[1] do whole(amounts[number]) end
  end
  at = at + #alike[2] * #alike[3]
end
for _, deadline in ipairs(blocks_until) do whole(deadline) end
if at + #blocks_until ~= #KEYS or 1 + #blocks_until ~= #ARGV then error('not as many keys as a batch tells of') end
for _, lease in ipairs(leased) do whole(lease[3]) end
whole(keep)
whole(ids_until)

-- What the ended holds held of each balance. Which balances that are only their text says: a cluster that is moving one of them
-- must say so now, and not when half of the batch is written.
local leases, freed, gone, over = holds:match('^(.*}:)') .. 'leases', {}, {}, {}
for number, lived in ipairs(#ended > 0 and call('HMGET', holds, unpack(ended)) or {}) do
  if lived and not over[ended[number]] then -- one may be told of twice
    over[ended[number]] = true
    gone[#gone + 1] = ended[number]
    for key, amount in lived:sub(1, (lived:find('\n', 1, true)) - 1):gmatch('(%S+) (%d+)') do
      if not freed[key] then call('EXISTS', key) end
      freed[key] = freed[key] or {0}
      local sums = freed[key]
      if sums[#sums] + amount >= EXACT then sums[#sums + 1] = 0 end
      sums[#sums] = sums[#sums] + amount
    end
  end
end
for _, lease in ipairs(leased) do
  call('EXISTS', leases)
  call('EXISTS', lease[2])
end

-- Now write.
local function until_(key, deadline)
  if call('EXPIREAT', key, deadline, 'NX') == 1 then return true end
  call('EXPIREAT', key, deadline, 'GT')
  return false
end

-- A new key whose name ends with the start of its period, UTC microseconds, is listed under that.
local function dated(key, deadline)
  local start_us = key:match(':(%d+)$')
  if call('EXPIREAT', key, deadline, 'NX') == 1 and start_us then
    call('ZADD', index, start_us / 1000000, key:match('^.*}:(.*)$'))
  end
end

call('HSET', cursor, unpack(moved))
local time, last = call('TIME'), call('HGET', cursor, 'batch')
local now = format('%.0f', math.max(time[1] * 1000000 + time[2], (last or 0) + 1))
call('HSET', cursor, 'batch', now, unpack(last and {} or {'begun', now}))
until_(cursor, keep)
until_(shapes, keep)

if #ids > 0 then
  local set = {}
  for number, id in ipairs(ids) do
    set[2 * number - 1], set[2 * number] = id, marks[number]
  end
  call('HSET', today, unpack(set))
  until_(today, ids_until)
end

if #gone > 0 then
  for key, sums in pairs(freed) do
    for _, sum in ipairs(sums) do call('HINCRBY', key, 'held', format('-%.0f', sum)) end
  end
  call('HDEL', holds, unpack(gone))
  call('ZREM', due, unpack(gone))
end

for _, lease in ipairs(leased) do
  local field, balance = lease[1], lease[2]
  local has = tonumber(call('HGET', leases, field) or '0')
  local part = format('%.0f', math.min(has, lease[3]))
  if part ~= '0' then
    if call('HINCRBY', leases, field, '-' .. part) == 0 then call('HDEL', leases, field) end
    call('HINCRBY', balance, 'held', '-' .. part)
  end
end

-- All fields of a hash are read, added to and set in two calls; where a double cannot count one exactly, or one is no number,
-- each is left to HINCRBY. `set` has the fields already, each before the place of its value.
local failed = {}
at = FIRST + days
local function count_up(key, fields, amounts, set)
  local had, exact = pcall('HMGET', key, unpack(fields)), true
  for number = 1, #fields do
    local add, old = amounts[number], had[number]
    local total = not old and add or #old < 16 and find(old, '^%-?%d+$') and old + add
    if total and total < EXACT and total > -EXACT then
      set[2 * number] = format('%d', total)
    else
      exact = false
    end
  end
  if exact and not had.err then
    call('HSET', key, unpack(set))
  else -- A counter that is full or is none must not stop the others half-way.
    for number, add in ipairs(amounts) do
      if type(pcall('HINCRBY', key, fields[number], add)) == 'table' then failed[#failed + 1] = key .. ' ' .. fields[number] end
    end
  end
  return not had[1]
end

for _, alike in ipairs(sums) do
  local fields, deadlines, set = alike[1], alike[2], {}
  for number, field in ipairs(fields) do set[2 * number - 1], set[2 * number] = field, 0 end
  for _, amounts in ipairs(alike[3]) do
    for _, deadline in ipairs(deadlines) do
      at = at + 1
      if count_up(KEYS[at], fields, amounts, set) then dated(KEYS[at], deadline) end
    end
  end
end
for number, deadline in ipairs(blocks_until) do
  call('RPUSH', KEYS[at + number], ARGV[1 + number])
  dated(KEYS[at + number], deadline)
end
until_(index, keep)
return {'applied', unpack(failed)}
