"""Small mistakes in the Lua scripts, seeded to see whether the tests notice: (script, what stands in it, what shall)."""

from __future__ import annotations

from typing import Final, NamedTuple


class Mutation(NamedTuple):
    script: str
    old: str  #: stands in the script once
    new: str
    walks: bool = False  #: the machine finds it too

    def text(self, text: str) -> str:
        """The script with the mistake in it."""
        assert text.count(self.old) == 1, (
            f"{self.script}.lua has {self.old!r} {text.count(self.old)} times: say it anew"
        )
        return text.replace(self.old, self.new)


MUTATIONS: Final = (
    # reserve
    Mutation("reserve", "+ wanted <= amount(limit)", "+ wanted < amount(limit)", walks=True),
    Mutation("reserve", "+ wanted <= amount(limit)", "+ wanted - 1 <= amount(limit)", walks=True),
    Mutation("reserve", "tonumber(spent) + tonumber(held) + wanted", "tonumber(spent) + wanted", walks=True),
    Mutation("reserve", "tonumber(spent) + tonumber(held) + wanted", "tonumber(held) + wanted", walks=True),
    Mutation("reserve", "if not wanted or not (", "if wanted and not (", walks=True),
    Mutation("reserve", "and wanted ~= 0 and not refused", "and not refused", walks=True),
    Mutation("reserve", "if epoch ~= ARGV[1] then", "if false then"),
    Mutation("reserve", "if tonumber(row or '0') < amount(ARGV[3]) then", "if false then"),
    Mutation("reserve", "if redis.call('SISMEMBER', shapes, shape) == 0 then", "if false then"),
    Mutation("reserve", "if lived then", "if false then", walks=True),
    Mutation("reserve", "~= text then return {'conflict'} end", "~= text then return {'known', unpack(numbers)} end"),
    Mutation("reserve", "elseif refused and ARGV[8] ~= '1' then", "elseif refused then"),
    Mutation("reserve", "elseif refused and ARGV[8] ~= '1' then", "elseif false then", walks=True),
    Mutation("reserve", "~= '1' then return {'known'", "then return {'known'", walks=True),
    Mutation("reserve", "if ARGV[8] ~= '1' then return {'known', unpack(numbers)} end", ""),
    Mutation("reserve", "redis.call('HINCRBY', leg[1], 'held', '-' .. leg[2])", "", walks=True),
    Mutation("reserve", "redis.call('ZADD', due, due_ms, id)", "", walks=True),
    Mutation("reserve", "redis.call('ZADD', due, due_ms, id)", "redis.call('ZADD', due, keep, id)"),
    Mutation("reserve", "redis.call('HINCRBY', leg[1], 'held', leg[2]))", "tonumber(numbers[number * 2]) + leg[2])", walks=True),
    Mutation("reserve", "held[#held + 1] = leg[1] .. ' ' .. leg[2]", "held[1] = leg[1] .. ' ' .. leg[2]", walks=True),
    Mutation("reserve", "redis.call('EXPIREAT', leg[1], leg[3])", "", walks=True),
    Mutation("reserve", "for _, key in ipairs({holds, due, index}) do", "for _, key in ipairs({holds, index}) do", walks=True),
    # void
    Mutation("void", "redis.call('ZREM', KEYS[2], unpack(gone))", "", walks=True),
    Mutation("void", "redis.call('HDEL', KEYS[1], unpack(gone))", "", walks=True),
    Mutation("void", "redis.call('HINCRBY', leg[1], 'held', '-' .. leg[2])", "", walks=True),
    Mutation("void", "'held', '-' .. leg[2]", "'spent', '-' .. leg[2]", walks=True),
    Mutation("void", "not over[id] and", "true and"),
    # apply
    Mutation("apply", "if not moved then return", "if false then return"),
    Mutation("apply", "format('%.0f', whole(each[2])) then moved = nil end", "'x' then end"),
    Mutation("apply", "call('HSET', cursor, unpack(moved))", "", walks=True),
    Mutation("apply", "call('HSET', cursor, 'batch', now, unpack(last and {} or {'begun', now}))", ""),
    Mutation("apply", "unpack(last and {} or {'begun', now})", "'begun', now"),
    Mutation("apply", "unpack(last and {} or {'begun', now})", "unpack({})"),
    Mutation("apply", "if not same then return", "if false then return", walks=True),
    Mutation("apply", "local same = call('SCARD', shapes) == #kept", "local same = true", walks=True),
    Mutation("apply", "if #wrong > 0 then return", "if false then return", walks=True),
    Mutation("apply", "stands[number] = stands[number] or older", ""),
    Mutation("apply", "stands[number] or older", "older or stands[number]"),
    Mutation("apply", "KEYS[FIRST + whole(into)]", "KEYS[FIRST + 1]"),
    Mutation("apply", "call('HSET', today, unpack(set))", "", walks=True),
    Mutation("apply", "until_(today, ids_until)", "", walks=True),
    Mutation("apply", "if lived and not over[ended[number]] then", "if lived then"),
    Mutation("apply", "call('HDEL', holds, unpack(gone))", "", walks=True),
    Mutation("apply", "call('ZREM', due, unpack(gone))", "", walks=True),
    Mutation("apply", "call('HINCRBY', key, 'held', format('-%.0f', sum))", "", walks=True),
    Mutation("apply", "if sums[#sums] + amount >= EXACT then", "if false then"),
    Mutation("apply", "and old + add", "and add + 0", walks=True),
    Mutation("apply", "if total and total < EXACT", "if total"),
    Mutation("apply", "exact = false", ""),
    Mutation("apply", "if exact and not had.err then", "if exact then"),
    Mutation("apply", "return not had[1]", "return false", walks=True),
    Mutation("apply", "call('RPUSH', KEYS[at + number], ARGV[1 + number])", "call('LPUSH', KEYS[at + number], ARGV[1 + number])"),
    Mutation("apply", "call('RPUSH', KEYS[at + number], ARGV[1 + number])", "call('SET', KEYS[at + number], '')", walks=True),
    Mutation("apply", "call('ZADD', index, start_us / 1000000, key:match", "call('ZADD', index, start_us, key:match", walks=True),
    Mutation("apply", "math.min(has, lease[3])", "lease[3]"),
    Mutation("apply", "call('HINCRBY', balance, 'held', '-' .. part)", ""),
    # fill
    Mutation("fill", "~= amount(ARGV[4]) then return {'moved'} end", "~= amount(ARGV[4]) then end"),
    Mutation("fill", "if shape ~= '' and redis.call('SISMEMBER', shapes, shape) == 0 then", "if shape ~= '' then"),
    Mutation("fill", "redis.call('SADD', shapes, shape)", "", walks=True),
    Mutation("fill", "redis.call('HSET', cursor, 'epoch', ARGV[1])", "", walks=True),
    Mutation("fill", "redis.call('EXPIREAT', balance[1], balance[2], 'NX')", "", walks=True),
    Mutation("fill", "'spent', balance[5])", "'spent', 0)", walks=True),
    # beat, census, since, renew
    Mutation("beat", "if not epoch then\n", "if ARGV[1] ~= '' then\n"),
    Mutation("beat", "redis.call('EXPIREAT', KEYS[2], keep)", "", walks=True),
    Mutation("beat", "if at < silent then", "if false then"),
    Mutation("census", "< cap then", "<= cap then", walks=True),
    Mutation("census", "redis.call('EXPIREAT', KEYS[1], keep, 'NX')", "", walks=True),
    Mutation("since", "tonumber(known) < tonumber(ARGV[at + 1])", "tonumber(known) > tonumber(ARGV[at + 1])"),
    Mutation("renew", "if epoch ~= ARGV[1] then return", "if false then return"),
    Mutation("move", "if not redis.call('HGET', KEYS[2], hour[number]) then", "if true then"),
    Mutation("move", "if #hour > 0 then redis.call('EXPIREAT', KEYS[2], keep) end", ""),
    # lease
    Mutation("lease", "- spent - held", "- spent"),
    Mutation("lease", "if left < amount(ARGV[8]) then", "if false then"),
    Mutation("lease", "math.max(least, math.min(most, has +", "math.max(least, math.max(most, has +"),
    Mutation("lease", "string.format('%.0f', lease - has))\n", "string.format('%.0f', lease))\n"),
    Mutation("lease", "if epoch ~= ARGV[1] then return", "if false then return"),
)  # fmt: skip
#: A few that are tried each time.
QUICK: Final = (MUTATIONS[0], MUTATIONS[13], MUTATIONS[22], MUTATIONS[27], MUTATIONS[37], MUTATIONS[48])
