#!lua
-- Apply a batch of a journal's rows to one slot, once: the cursor moves with the sums, or nothing does.
-- A slot is what shares a hash tag. Its cursor also counts the batches, so that a reader knows whether one came between.
--
-- KEYS  1 cursor  2 shapes  3 holds  4 due  5 index  6… what the batch changes
-- ARGV  keep until (of the cursor)
--       n, then n times  cursor's field, from row, to row
--       n, then the n shapes that the sums are of ("*" instead of n: the slot keeps no balances yet, or the batch has none)
--       n, keep until, then n times  number of the key, m, then m fields, then what stands there ("": nothing) in each, then
--                                    what shall stand there in each
--       n, then n ids of holds that end
--       n, then n times  number of the key, keep until, name in the index, start in s, m, then m fields, then m amounts
--       n, then n times  number of the key, keep until, name in the index, start in s, block of entries
--
-- {"applied", fields that could not be counted up}
-- {"cursor", row, …} as they stand   {"shapes", shape, …}   {"ids", number, what stands there, …}
local cursor, shapes, holds, due, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local ARGV, find, format, call, pcall = ARGV, string.find, string.format, redis.call, redis.pcall
local at = 1

local function take()
  at = at + 1
  return ARGV[at]
end

local function whole(value)
  if not value or #value > 17 or not (value:find('^%-?[1-9]%d*$') or value == '0')
    or math.abs(tonumber(value)) > 9007199254740991 then
    error('not an amount: ' .. tostring(value):sub(1, 32))
  end
  return value
end

-- Read and check all of it before the first write.
local rows, moved = {}, {}
for number = 1, tonumber(take()) do
  local field, from, to = take(), whole(take()), whole(take())
  rows[number] = call('HGET', cursor, field) or '0'
  if rows[number] ~= from then moved = nil end
  if moved then
    moved[#moved + 1] = field
    moved[#moved + 1] = to
  end
end
if not moved then return {'cursor', unpack(rows)} end

local many = take()
if many ~= '*' then
  local same = call('SCARD', shapes) == tonumber(many)
  for _ = 1, tonumber(many) do
    if call('SISMEMBER', shapes, take()) == 0 then same = false end
  end
  if not same then return {'shapes', unpack(call('SMEMBERS', shapes))} end
end

-- Most of a batch are names and sums: their arguments are checked where they are, and not copied.
local names, wrong, seen = {}, {}, 0
local many_names, names_until = tonumber(take()), whole(take())
for number = 1, many_names do
  local key, many = KEYS[tonumber(take())], tonumber(take())
  local stands = call('HMGET', key, unpack(ARGV, at + 1, at + many))
  names[number] = {key, at + 1, at + many, at + 2 * many}
  for field = 1, many do
    if (stands[field] or '') ~= ARGV[at + many + field] then
      wrong[#wrong + 1] = seen + field
      wrong[#wrong + 1] = stands[field] or ''
    end
  end
  at, seen = at + 3 * many, seen + many
end
if #wrong > 0 then return {'ids', unpack(wrong)} end

local ended = {}
for number = 1, tonumber(take()) do ended[number] = take() end

local sums = {}
for number = 1, tonumber(take()) do
  local sum = {KEYS[tonumber(take())], whole(take()), take(), whole(take()), tonumber(take()), at + 1}
  for place = at + sum[5], at + 2 * sum[5] - 1 do
    if not find(ARGV[place + 1], '^%-?[1-9]%d*$') or #ARGV[place + 1] > 15 then whole(ARGV[place + 1]) end
  end
  sum[6] = at + 1
  at = at + 2 * sum[5]
  sums[number] = sum
end

local blocks = {}
for number = 1, tonumber(take()) do
  blocks[number] = {KEYS[tonumber(take())], whole(take()), take(), whole(take()), take()}
end
local keep = whole(ARGV[1])

-- Now write.
local function until_(key, deadline)
  if call('EXPIREAT', key, deadline, 'NX') == 1 then return true end
  call('EXPIREAT', key, deadline, 'GT')
  return false
end

call('HSET', cursor, unpack(moved))
call('HINCRBY', cursor, 'batch', 1)
until_(cursor, keep)
until_(shapes, keep)

for _, name in ipairs(names) do
  local key, first, last, shift = name[1], name[2], name[3], name[4] - name[2] + 1
  local set = {}
  for place = first, last do
    set[#set + 1] = ARGV[place]
    set[#set + 1] = ARGV[place + shift]
  end
  call('HSET', key, unpack(set))
  until_(key, names_until)
end

for _, id in ipairs(ended) do
  local lived = call('HGET', holds, id)
  if lived then
    for key, amount in lived:sub(1, (lived:find('\n', 1, true)) - 1):gmatch('(%S+) (%d+)') do
      call('HINCRBY', key, 'held', '-' .. amount)
    end
    call('HDEL', holds, id)
    call('ZREM', due, id)
  end
end

-- Read, add and set all fields of a hash in two calls; what a double cannot count exactly is left to HINCRBY.
local failed = {}
for _, sum in ipairs(sums) do
  local key, many, first = sum[1], sum[5], sum[6]
  local had = pcall('HMGET', key, unpack(ARGV, first, first + many - 1))
  local set = {}
  for number = 1, many do
    local field, add, old = ARGV[first + number - 1], ARGV[first + many + number - 1], had[number]
    if not old and not had.err then
      set[#set + 1] = field
      set[#set + 1] = add
    elseif old and #old < 16 and #add < 16 and find(old, '^%-?%d+$') then
      set[#set + 1] = field
      set[#set + 1] = format('%.0f', old + add)
    -- A counter that is full or is none must not stop the others half-way.
    elseif type(pcall('HINCRBY', key, field, add)) == 'table' then
      failed[#failed + 1] = key .. ' ' .. field
    end
  end
  if #set > 0 then call('HSET', key, unpack(set)) end
  if not had[1] and call('EXPIREAT', key, sum[2], 'NX') == 1 and sum[3] ~= '' then call('ZADD', index, sum[4], sum[3]) end
end
for _, block in ipairs(blocks) do
  call('RPUSH', block[1], block[5])
  if call('EXPIREAT', block[1], block[2], 'NX') == 1 then call('ZADD', index, block[4], block[3]) end
end
until_(index, keep)
return {'applied', unpack(failed)}
