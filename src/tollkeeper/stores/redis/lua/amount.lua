-- In front of every script that reads amounts: a whole number that a double counts exactly, as decimal digits; below zero
-- only where `below`.
local function amount(value, below)
  local digits = below and value:match('^%-([1-9]%d*)$') or value
  if #digits > 16 or not (digits:find('^[1-9]%d*$') or digits == '0') or tonumber(digits) > 9007199254740991 then
    error('not an amount: ' .. value:sub(1, 32))
  end
  return tonumber(value)
end

