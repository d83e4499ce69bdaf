"""What stands in a Redis, looked at from outside: copies of all keys, and what must be true of them at any time."""

from __future__ import annotations

from typing import Any

import redis

Copy = dict[bytes, tuple[bytes, int]]
"""Key → its DUMP and its deadline, UTC ms."""

#: What is wrong with the keys of a Tollkeeper, a line each. One script: nothing changes while it looks.
PROBLEMS = r"""
local wrong, held, taken = {}, {}, {}
local function say(...) wrong[#wrong + 1] = table.concat({...}, ' ') end
for _, key in ipairs(redis.call('KEYS', '*')) do
  local what = key:match('}:([^:]+)')
  if redis.call('TTL', key) < 0 then say('no deadline:', key) end
  if what == 'balance' or what == 'cells' or what == 'others' then
    local all = redis.call('HGETALL', key)
    for at = 1, #all, 2 do
      if not all[at + 1]:find('^%d+$') then say('not a sum:', key, all[at], all[at + 1]) end
      if what == 'balance' and all[at] == 'held' then held[key] = tonumber(all[at + 1]) end
    end
  elseif what == 'holds' then
    local due = key:gsub(':holds$', ':due')
    local all = redis.call('HGETALL', key)
    if #all ~= 2 * redis.call('ZCARD', due) then say('not as many deadlines as holds:', key) end
    for at = 1, #all, 2 do
      if not redis.call('ZSCORE', due, all[at]) then say('a hold without a deadline:', key, all[at]) end
      for balance, amount in all[at + 1]:match('^[^\n]*'):gmatch('(%S+) (%d+)') do
        taken[balance] = (taken[balance] or 0) + amount
      end
    end
  elseif what == 'due' and redis.call('EXISTS', (key:gsub(':due$', ':holds'))) == 0 then
    say('deadlines of no hold:', key)
  elseif what == 'index' then
    local tag = key:match('^(.*}:)')
    for _, name in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      if redis.call('EXISTS', tag .. name) == 0 then say('not there, but in the index:', name) end
    end
  end
  if what == 'balance' or what == 'cells' or what == 'others' or what == 'entries' then
    local tag, name = key:match('^(.*}:)(.*)$')
    local start = redis.call('ZSCORE', tag .. 'index', name)
    if not start then say('not in the index:', key) end
    if start and start ~= string.format('%.0f', math.floor(tonumber(name:match('%d+$')) / 1000000)) then
      say('elsewhere in the index:', key, start)
    end
  end
end
for key, amount in pairs(held) do
  if amount ~= (taken[key] or 0) then say('held', string.format('%.0f, not what holds take:', amount), key) end
  taken[key] = nil
end
for key, amount in pairs(taken) do
  if amount ~= 0 then say('holds take of a balance that holds nothing:', key) end
end
return wrong
"""


def problems(client: redis.Redis) -> list[str]:
    """Keys without a deadline, balances that hold something else than their holds, sums below zero, gaps in an index."""
    found: Any = client.eval(PROBLEMS, 0)
    return [each.decode(errors="replace") for each in found]


def copy_of(client: redis.Redis) -> Copy:
    """All keys."""
    keys: Any = client.keys("*")
    with client.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.dump(key)
            pipe.pexpiretime(key)
        found = pipe.execute()
    return dict(zip(keys, zip(found[::2], found[1::2], strict=True), strict=True))


def put_back(client: redis.Redis, copy: Copy) -> None:
    """All keys as they were, and no others, in one step."""
    with client.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for key, (data, until_ms) in copy.items():
            pipe.restore(key, max(0, until_ms), data, absttl=until_ms >= 0)
        pipe.execute()


def holds_in(client: redis.Redis) -> set[str]:
    """Ids of the holds that stand."""
    found = set()
    keys: Any = client.keys("*:holds")
    for key in keys:
        fields: Any = client.hkeys(key)
        found |= {field.decode() for field in fields} if b"{*}" not in key else {
            field.decode().partition("/")[2] for field in fields
        }  # fmt: skip
    return found
