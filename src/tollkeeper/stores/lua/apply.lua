#!lua
-- Apply a batch of a journal's rows to one slot, once: the cursor moves with the sums, or nothing does.
-- A slot is what shares a hash tag. Its cursor also counts the batches, so that a reader knows whether one came between.
--
-- KEYS  1 cursor  2 shapes  3 holds  4 due  5 index  6… what the batch changes
-- ARGV  keep until (of the cursor)
--       n, then n times  cursor's field, from row, to row
--       n, then the n shapes that the sums are of ("*" instead of n: the slot keeps no balances yet, or the batch has none)
--       n, keep until, then n times  number of the key, field, what stands there ("": nothing), what shall stand there
--       n, then n ids of holds that end
--       n, then n times  number of the key, keep until, name in the index, start in s, m, then m times field, amount
--       n, then n times  number of the key, keep until, name in the index, start in s, block of entries
--
-- {"applied", fields that could not be counted up}
-- {"cursor", row, …} as they stand   {"shapes", shape, …}   {"ids", number, what stands there, …}
local cursor, shapes, holds, due, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
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
  rows[number] = redis.call('HGET', cursor, field) or '0'
  if rows[number] ~= from then moved = nil end
  if moved then
    moved[#moved + 1] = field
    moved[#moved + 1] = to
  end
end
if not moved then return {'cursor', unpack(rows)} end

local many = take()
if many ~= '*' then
  local same = redis.call('SCARD', shapes) == tonumber(many)
  for _ = 1, tonumber(many) do
    if redis.call('SISMEMBER', shapes, take()) == 0 then same = false end
  end
  if not same then return {'shapes', unpack(redis.call('SMEMBERS', shapes))} end
end

local names, wrong = {}, {}
local many_names, names_until = tonumber(take()), whole(take())
for number = 1, many_names do
  local key, field, old, new = KEYS[tonumber(take())], take(), take(), take()
  local stands = redis.call('HGET', key, field) or ''
  if stands ~= old then
    wrong[#wrong + 1] = number
    wrong[#wrong + 1] = stands
  elseif new ~= old then
    names[#names + 1] = {key, field, new}
  end
end
if #wrong > 0 then return {'ids', unpack(wrong)} end

local ended = {}
for number = 1, tonumber(take()) do ended[number] = take() end

local sums = {}
for number = 1, tonumber(take()) do
  local sum = {KEYS[tonumber(take())], whole(take()), take(), whole(take())}
  for _ = 1, tonumber(take()) do
    sum[#sum + 1] = take()
    sum[#sum + 1] = whole(take())
  end
  sums[number] = sum
end

local blocks = {}
for number = 1, tonumber(take()) do
  blocks[number] = {KEYS[tonumber(take())], whole(take()), take(), whole(take()), take()}
end
local keep = whole(ARGV[1])

-- Now write.
local function until_(key, deadline)
  if redis.call('EXPIREAT', key, deadline, 'NX') == 1 then return true end
  redis.call('EXPIREAT', key, deadline, 'GT')
  return false
end

redis.call('HSET', cursor, unpack(moved))
redis.call('HINCRBY', cursor, 'batch', 1)
until_(cursor, keep)
until_(shapes, keep)

local dated = {}
for _, name in ipairs(names) do
  redis.call('HSET', name[1], name[2], name[3])
  dated[name[1]] = true
end
for key in pairs(dated) do until_(key, names_until) end

for _, id in ipairs(ended) do
  local lived = redis.call('HGET', holds, id)
  if lived then
    for key, amount in lived:sub(1, (lived:find('\n', 1, true)) - 1):gmatch('(%S+) (%d+)') do
      redis.call('HINCRBY', key, 'held', '-' .. amount)
    end
    redis.call('HDEL', holds, id)
    redis.call('ZREM', due, id)
  end
end

local failed = {}
for _, sum in ipairs(sums) do
  local key = sum[1]
  for number = 5, #sum, 2 do
    -- A counter that is full or is none must not stop the others half-way.
    local done = redis.pcall('HINCRBY', key, sum[number], sum[number + 1])
    if type(done) == 'table' then failed[#failed + 1] = key .. ' ' .. sum[number] end
  end
  if redis.call('EXPIREAT', key, sum[2], 'NX') == 1 and sum[3] ~= '' then redis.call('ZADD', index, sum[4], sum[3]) end
end
for _, block in ipairs(blocks) do
  redis.call('RPUSH', block[1], block[5])
  if redis.call('EXPIREAT', block[1], block[2], 'NX') == 1 then redis.call('ZADD', index, block[4], block[3]) end
end
until_(index, keep)
return {'applied', unpack(failed)}
