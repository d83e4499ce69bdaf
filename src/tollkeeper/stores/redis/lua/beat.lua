#!lua
-- A gateway says that it lives, and hears who else does. All of it is under the global tag.
--
-- KEYS  1 epoch  2 members  3 projects
-- ARGV  1 the epoch to begin where there is none: Redis was emptied, or is new   2 keep until, s
--       3 journal  4 what it says of itself  5 for how many ms a member may be silent
--       then  tag, project, … that it has begun to keep
--
-- {epoch, journal, what it says, …}   what a member says stands behind the instant (UTC ms, of this server's clock) and a space
local keep, silent_ms = amount(ARGV[2]), amount(ARGV[5])
local epoch = redis.call('GET', KEYS[1])
if not epoch and ARGV[1] == '' then return {''} end
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[1], epoch)
end
redis.call('EXPIREAT', KEYS[1], keep)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], ARGV[3], string.format('%.0f %s', now, ARGV[4])) end
for at = 6, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1]) end
redis.call('EXPIREAT', KEYS[2], keep)
redis.call('EXPIREAT', KEYS[3], keep)

local members, silent = {epoch}, now - silent_ms
local all = redis.call('HGETALL', KEYS[2])
for number = 1, #all, 2 do
  local at = tonumber(all[number + 1]:match('^%d+')) or 0
  if at < silent then
    redis.call('HDEL', KEYS[2], all[number])
  else
    members[#members + 1] = all[number]
    members[#members + 1] = all[number + 1]
  end
end
return members
