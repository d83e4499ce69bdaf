"""Hostile amounts, sent straight to every script: each is refused, and nothing in Redis has moved."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.redis_state import copy_of

from tollkeeper.stores.redis.ask import Script
from tollkeeper.testing.redis_server import RedisServer

TO: Final = "4000000000"  #: a deadline
SLOT: Final = ["{a}:cursor", "{a}:shapes", "{a}:holds", "{a}:due", "{a}:index"]
BALANCE: Final = "p:{a}:balance:project:usd:total:UTC::0"
TEXTS: Final = (
    "nan", "-nan", "inf", "1e400", "1e3", "0x10", "-0", "-1", "+1", "00", "01", "1.0", "1.5", "", " ", " 1", "1 ", "1\n", "\n1",
    "1\0", "\x001", "-", "9007199254740992", "9223372036854775807", "9223372036854775808", "18446744073709551616", "१", "1_0",
)  # fmt: skip
NUMBERS: Final = (
    float("nan"), float("inf"), -float("inf"), 1e300, 0.5, -0.0, 2**53, -(2**53), 2**63, -(2**63), "1", "nan", "0x10",
    b"1", True, None, [1], {"a": 1},
)  # fmt: skip


class Call(NamedTuple):
    """One that works. `amounts`: the places of its amounts among the arguments; `empty`: where "" means none."""

    script: str
    keys: list[str]
    args: list[Any]
    amounts: tuple[int, ...]
    empty: tuple[int, ...] = ()
    below: tuple[int, ...] = ()  #: where a number below zero is one


CALLS: Final = (
    Call(
        "reserve", [*SLOT, BALANCE, BALANCE.replace(":0", ":1")],
        ["e", "j", "7", "id", "{}", "5000", TO, "", "#me", "s", "5", "100", TO, "s", "6", "100", TO],
        (2, 5, 6, 10, 11, 12, 14, 15, 16), (10, 11, 14, 15),
    ),
    Call(
        "lease", [*SLOT[:2], "{a}:leases", SLOT[4], BALANCE], ["e", "s", "j b", "1", "20", "100", "2", "3", TO, TO],
        (3, 4, 5, 6, 7, 8, 9), (5,),
    ),
    Call("fill", [*SLOT[:2], SLOT[4], BALANCE], ["e", TO, "new", "3", TO, "balance:0", "0", "40"], (1, 3, 4, 6, 7), (), (6, 7)),
    Call("beat", ["{a}:epoch", "{a}:members", "{a}:projects"], ["new", TO, "j", "ready", "5000", "tag", "project"], (1, 4)),
    Call("census", ["{a}:seen"], ["5", TO, "one", "two"], (0, 1)),
    Call("since", ["{a}:since"], [TO, "hour", "5", "day", "6"], (0, 2, 4)),
    Call("open", ["{a}:open"], ["5", "3", TO, "place", "7"], (0, 1, 2, 4)),
    Call("renew", ["{a}:old"], ["e", "f", TO], (2,)),
    Call("move", ["{a}:ids:1", "{a}:ids:2"], [TO], (0,)),
)  # fmt: skip
BATCH: Final[list[Any]] = [
    4000000000, [["j", 7, 9]], ["s"], 1, 1, 4000000000, ["0=x"], [""], ["mark"], ["held"],
    [[["p|m|calls", "p|m|usd"], [4000000000], [[1, 2]]]], [4000000000], [["j b", BALANCE, 4]],
]  # fmt: skip
#: Where amounts stand in it.
PLACES: Final = (
    (0,), (1, 0, 1), (1, 0, 2), (3,), (4,), (5,), (10, 0, 1, 0), (10, 0, 2, 0, 0), (10, 0, 2, 0, 1), (11, 0), (12, 0, 2),
)  # fmt: skip


@pytest.fixture
def client(redis_server: RedisServer) -> Any:
    """A slot in which each of the calls would do something."""
    with redis_server.client() as client:
        client.hset(SLOT[0], mapping={"epoch": "e", "j": 7, "batch": 3})
        client.sadd(SLOT[1], "s")
        client.hset(SLOT[2], "held", f"{BALANCE} 3 #me\n{{}}")
        client.zadd(SLOT[3], {"held": 5})
        client.hset(BALANCE, mapping={"spent": 1, "held": 7})
        client.hset("{a}:leases", "j b", 4)
        client.set("{a}:old", "e")
        client.hset("{a}:open", mapping={"over": 4, "place": 6})
        client.hset("{a}:ids:1", "0=y", "mark")
        for key in client.scan_iter():
            client.expireat(key, 3999999999)
        yield client


def refused(client: redis.Redis, script: str, keys: list[str], args: list[Any]) -> None:
    before = copy_of(client)
    with pytest.raises(redis.ResponseError):
        client.eval(Script(script).text, len(keys), *keys, *args)
    assert copy_of(client) == before, (script, args)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.script)
def test_a_hostile_amount(client: redis.Redis, call: Call) -> None:
    """F4: whatever it is and wherever it stands, no counter, hold, cursor or deadline moves; the call as it is works."""
    for place in call.amounts:
        for text in TEXTS:
            if (text == "" and place in call.empty) or (text == "-1" and place in call.below):
                continue
            if call.script == "fill" and place in call.below and re.fullmatch("-?[1-9][0-9]{,16}", str(text)):
                continue  # what a balance begins with may be more than a double counts
            args = [*call.args[:place], text, *call.args[place + 1 :]]
            refused(client, call.script, call.keys, args)
    before = copy_of(client)
    client.eval(Script(call.script).text, len(call.keys), *call.keys, *call.args)
    assert copy_of(client) != before


def batch_with(place: tuple[int, ...], amount: Any) -> bytes:
    batch = msgspec.msgpack.decode(msgspec.msgpack.encode(BATCH))
    within = batch
    for at in place[:-1]:
        within = within[at]
    within[place[-1]] = amount
    return msgspec.msgpack.encode(batch)


KEYS: Final = [*SLOT, "{a}:ids:0", "{a}:cells:hour:project::0", "{a}:entries:0"]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_hostile_batch(client: redis.Redis, place: tuple[int, ...]) -> None:
    """F4: the same in a batch of entries: all of it is checked before the first write."""
    for amount in NUMBERS:
        refused(client, "apply", KEYS, [batch_with(place, amount), b"block"])
    assert client.eval(Script("apply").text, len(KEYS), *KEYS, msgspec.msgpack.encode(BATCH), b"block") == [b"applied"]
    assert client.hgetall(BALANCE) == {b"spent": b"1", b"held": b"0"}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_anything_for_an_amount(redis_server: RedisServer, data: st.DataObject) -> None:
    """F4: any text that is not a whole number from 0 to 2^53 - 1, written as such, is refused by the reservation."""
    text = data.draw(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
        | st.from_regex(r"[-+.0-9eExXnaif\s]{1,18}", fullmatch=True)
    )
    good = text == "" or (text.isascii() and text.isdigit() and str(int(text)) == text and int(text) < 2**53)
    call = CALLS[0]
    with redis_server.client() as client:
        client.flushall()
        client.hset(SLOT[0], mapping={"epoch": "e", "j": 7})
        client.sadd(SLOT[1], "s")
        place = data.draw(st.sampled_from(call.amounts))
        args = [*call.args[:place], text, *call.args[place + 1 :]]
        if not good or (text == "" and place not in call.empty):
            refused(client, "reserve", call.keys, args)
