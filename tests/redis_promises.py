"""What each Lua script promises, asked of the scripts alone: with a text that is changed, something here must fail.

One slot {a} of two balances. `Asking.run` calls a script as the stores do and says what it answered; `still` that nothing moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import redis
from tests.redis_state import copy_of, problems

from tollkeeper.stores.redis.ask import Script

TO: Final = 4_000_000_000
CURSOR, SHAPES, HOLDS, DUE, INDEX = SLOT = tuple(
    f"p:{{a}}:{name}" for name in ("cursor", "shapes", "holds", "due", "index")
)
ONE, TWO = (f"p:{{a}}:balance:project:{measure}:total:UTC::0" for measure in ("usd", "requests"))
LEASES, IDS, OLDER, CELLS, BLOCKS = (
    f"p:{{a}}:{name}" for name in ("leases", "ids:1", "ids:0", "cells:hour:project::3000000", "entries:0")
)
Text = Callable[[str], str]


def shipped(name: str) -> str:
    return Script(name).text


class Asking:
    """The scripts on an empty Redis."""

    def __init__(self, client: redis.Redis, text: Text = shipped) -> None:
        self.client, self.text = client, text

    def run(self, name: str, keys: tuple[str, ...], *args: Any) -> Any:
        return self.client.eval(self.text(name), len(keys), *keys, *args)

    @contextmanager
    def still(self) -> Iterator[None]:
        before = copy_of(self.client)
        yield
        assert copy_of(self.client) == before

    def number(self, key: str, field: str) -> int | None:
        found: Any = self.client.hget(key, field)
        return None if found is None else int(found)

    def open(self) -> None:
        """A slot of epoch e, with both balances; 10 of the first is spent."""
        self.client.flushall()
        for shape, name, spent in (("s", ONE, 10), ("t", TWO, 0)):
            listed = (TO, name.partition("}:")[2], 0, spent)
            assert self.run("fill", (CURSOR, SHAPES, INDEX, name), "e", TO, shape, self.batch(), *listed) == [b"filled"]

    def batch(self) -> int:
        return self.number(CURSOR, "batch") or 0

    def reserve(
        self, id: str, asked: Any = 5, limit: Any = "", *, epoch: str = "e", row: int = 0, text: str = "{}", whatever: str = "",
        shape: str = "s", deadline_s: int = TO,
    ) -> Any:  # fmt: skip
        legs = (shape, asked, limit, deadline_s, "t", 1, "", deadline_s)
        return self.run("reserve", (*SLOT, ONE, TWO), epoch, "j", row, id, text, 5000, TO, whatever, "#me", *legs)

    def apply(
        self, seq: tuple[int, int], *, shapes: Any = None, names: Any = ((), (), ()), ended: Any = (), sums: Any = (),
        blocks: Any = (), leased: Any = (), keys: tuple[str, ...] = (),
    ) -> Any:  # fmt: skip
        batch = (TO, [("j", *seq)], shapes, 2, 1, TO, *names, ended, sums, [TO] * len(blocks), leased)
        return self.run("apply", (*SLOT, IDS, OLDER, *keys), msgspec.msgpack.encode(batch), *blocks)


def reserves(ask: Asking) -> None:
    """In its epoch, not behind, in every balance or none, up to the limit, once; whatever the limits say after a recovery."""
    ask.open()
    with ask.still():
        assert ask.reserve("a", epoch="d") == [b"epoch", b"e"]
        assert ask.reserve("a", row=1) == [b"behind", b"0"]
        assert ask.reserve("a", shape="u") == [b"shapes"]
        assert ask.reserve("a", 5, 14) == [b"refused", 1, b"10", b"0", b"0", b"0"]
        assert ask.reserve("a", "", 100)[0] == b"refused"
    assert ask.reserve("a", 5, 15) == [b"held", b"10", b"5", b"0", b"1"]
    assert (ask.number(ONE, "held"), ask.number(TWO, "held")) == (5, 1)
    with ask.still():
        assert ask.reserve("a", 5, 15) == [b"known", b"10", b"5", b"0", b"1"]
        assert ask.reserve("a", text="{1}") == [b"conflict"]
        assert ask.reserve("b", 1, 15)[0] == b"refused"
    assert ask.reserve("b", 0, 9) == [b"held", b"10", b"5", b"0", b"2"]
    assert ask.reserve("c", "", "") == [b"held", b"10", b"5", b"0", b"3"]
    assert ask.reserve("d", 7, 15, whatever="1") == [b"held", b"10", b"12", b"0", b"4"]
    assert ask.client.zrange(DUE, 0, -1, withscores=True) == [(id, 5000) for id in (b"a", b"b", b"c", b"d")]
    for asked in (3, 3):  # of other balances than before, and as much as is asked now
        ask.run("reserve", (*SLOT, ONE), "e", "j", 0, "d", "{}", 5000, TO, "1", "#me", "s", asked, 1, TO)
        assert (ask.number(ONE, "held"), ask.number(TWO, "held")) == (8, 3)
    assert problems(ask.client) == []
    ask.client.delete(ONE)
    assert ask.reserve("e", 7)[0] == b"held"
    assert ask.client.expiretime(ONE) == TO


def voids(ask: Asking) -> None:
    """A hold, and what it holds; once, and none that is not there."""
    ask.open()
    for id in "abc":
        ask.reserve(id)
    assert ask.run("void", (HOLDS, DUE), "a", "a", "x", "b") == 2
    assert (ask.number(ONE, "held"), ask.number(TWO, "held")) == (5, 1)
    assert problems(ask.client) == []
    assert ask.run("void", (HOLDS, DUE), "x") == 0


def applies(ask: Asking) -> None:
    """A batch once, at its cursor, with the shapes and names that it was computed for; every part of it."""
    ask.open()
    for id in "abc":
        ask.reserve(id)
    name = (["0=x", "0=y"], ["", ""], ["mark", "other"])
    sums = [(["p|m|calls", "p|m|output"], (TO,), [(2, 3)]), (["spent"], (TO,), [(7,)])]
    keys = (CELLS, ONE, BLOCKS)
    batch = {
        "shapes": ["s", "t"],
        "names": name,
        "ended": ["a", "a", "b"],
        "sums": sums,
        "blocks": [b"1"],
        "keys": keys,
    }
    with ask.still():
        assert ask.apply((1, 2), **batch) == [b"cursor", b"0"]
        assert set(ask.apply((0, 2), **batch | {"shapes": ["s"]})) == {b"shapes", b"s", b"t"}
        assert set(ask.apply((0, 2), **batch | {"shapes": ["s", "u"]})) == {b"shapes", b"s", b"t"}
        stale = (name[0], ["", "z"], name[2])
        assert ask.apply((0, 2), **batch | {"names": stale}) == [b"ids", 2, b""]
    ask.client.hset(OLDER, mapping={"0=x": "old", "0=z": "old"})
    ask.client.expireat(OLDER, TO)
    with ask.still():
        assert ask.apply((0, 2), **batch) == [b"ids", 1, b"old"]
    name[1][0] = "old"
    batches = ask.batch()
    assert ask.apply((0, 2), **batch) == [b"applied"]
    with ask.still():
        assert ask.apply((0, 2), **batch) == [b"cursor", b"2"]
        assert ask.apply((2, 4), **batch) == [b"ids", 1, b"mark", 2, b"other"]  # what is newer stands
    begun = ask.number(CURSOR, "begun")
    assert (ask.number(CURSOR, "j"), ask.batch()) == (2, begun)
    assert batches < ask.batch()
    assert ask.client.hgetall(IDS) == {b"0=x": b"mark", b"0=y": b"other"}
    assert (ask.number(ONE, "spent"), ask.number(ONE, "held"), ask.number(TWO, "held")) == (17, 5, 1)
    assert ask.client.hkeys(HOLDS) == [b"c"]
    assert ask.apply((2, 3), sums=sums[:1], blocks=[b"2"], keys=(CELLS, BLOCKS)) == [b"applied"]
    assert (ask.number(CELLS, "p|m|calls"), ask.number(CELLS, "p|m|output")) == (4, 6)
    assert begun is not None
    assert (ask.number(CURSOR, "begun"), ask.batch() > begun) == (begun, True)
    assert ask.client.lrange(BLOCKS, 0, -1) == [b"1", b"2"]
    assert problems(ask.client) == []
    ask.client.hset(CELLS, "p|m|calls", 2**63 - 1)
    assert ask.apply((3, 4), sums=sums[:1], keys=(CELLS,)) == [b"applied", f"{CELLS} p|m|calls".encode()]
    assert ask.number(CELLS, "p|m|output") == 9
    ask.client.hset(CELLS, "p|m|calls", 2**53 - 1)
    ask.apply((4, 5), sums=sums[:1], keys=(CELLS,))
    assert ask.number(CELLS, "p|m|calls") == 2**53 + 1
    ask.client.hset(CELLS, "p|m|calls", 10**15 - 2)
    ask.apply((5, 6), sums=[(["p|m|calls"], (TO,), [(2**53 - 1,)])], keys=(CELLS,))
    assert ask.number(CELLS, "p|m|calls") == 10**15 + 2**53 - 3
    ask.client.set(CELLS, "no hash")
    stuck = [f"{CELLS} p|m|{name}".encode() for name in ("calls", "output")]
    assert ask.apply((6, 7), sums=sums, keys=(CELLS, ONE)) == [b"applied", *stuck]
    assert ask.number(ONE, "spent") == 24


def dates(ask: Asking) -> None:
    """An id is written into the day that is told, and what a newer day says of it counts."""
    ask.open()
    ask.client.hset(IDS, "0=x", "newer")
    ask.client.hset(OLDER, mapping={"0=x": "older", "0=y": "older"})
    batch = (TO, [("j", 0, 1)], None, 2, 2, TO, ["0=x", "0=y"], ["newer", "older"], ["a", "b"], [], [], [], [])
    assert ask.run("apply", (*SLOT, IDS, OLDER), msgspec.msgpack.encode(batch)) == [b"applied"]
    assert ask.client.hgetall(IDS) == {b"0=x": b"newer"}
    assert ask.client.hgetall(OLDER) == {b"0=x": b"a", b"0=y": b"b"}
    assert ask.client.expiretime(OLDER) == TO


def ends(ask: Asking) -> None:
    """What many large holds held is taken off to the last digit."""
    ask.open()
    for id, amount in (("a", 7), ("b", 2**53 - 1), ("c", 2)):
        ask.reserve(id, amount)
    assert ask.apply((0, 1), ended=["b", "c"]) == [b"applied"]
    assert (ask.number(ONE, "held"), ask.number(TWO, "held")) == (7, 1)
    assert problems(ask.client) == []


def leases(ask: Asking) -> None:
    """As far as the budget pays; part of what the balance holds; what is spent of it is given back with the entry."""

    def lease(least: int, most: int, limit: Any, epoch: str = "e", shape: str = "s") -> Any:
        args = (epoch, shape, "j b", least, most, limit, 2, 3, TO, TO)
        return ask.run("lease", (CURSOR, SHAPES, LEASES, INDEX, ONE), *args)

    ask.open()
    with ask.still():
        assert lease(1, 50, 100, epoch="d") == [b"epoch", b"e"]
        assert lease(1, 50, 100, shape="u") == [b"shapes"]
    assert lease(1, 50, 100) == [b"leased", b"45", b"", b"10", b"45"]
    assert lease(1, 50, 100) == [b"leased", b"50", b"", b"10", b"50"]
    assert lease(3, 50, 62) == [b"leased", b"3", b"1", b"10", b"3"]
    assert (ask.number(ONE, "held"), ask.number(LEASES, "j b")) == (3, 3)
    ask.apply((0, 1), leased=[("j b", ONE, 2)])
    assert (ask.number(ONE, "held"), ask.number(LEASES, "j b")) == (1, 1)
    ask.apply((1, 2), leased=[("j b", ONE, 9)])
    assert (ask.number(ONE, "held"), ask.number(LEASES, "j b")) == (0, None)
    ask.reserve("a", 5)
    assert lease(0, 0, "") == [b"leased", b"0", b"", b"10", b"5"]
    lease(4, 4, "")
    assert [key for key in ask.client.scan_iter() if ask.client.ttl(key) < 0] == []


def fills(ask: Asking) -> None:
    """A balance between two batches, once; a slot is opened in the epoch that is told."""
    ask.open()
    listed = (TO, ONE.partition("}:")[2], 0)
    with ask.still():
        assert ask.run("fill", (CURSOR, SHAPES, INDEX, ONE), "f", TO, "new", 7, *listed, 40) == [b"moved"]
    assert ask.run("fill", (CURSOR, SHAPES, INDEX, ONE), "f", TO, "s", 0, *listed, 40) == [b"filled"]
    assert (ask.number(ONE, "spent"), ask.client.hget(CURSOR, "epoch")) == (10, b"f")
    assert ask.client.smembers(SHAPES) == {b"s", b"t"}
    assert problems(ask.client) == []


def lives(ask: Asking) -> None:
    """An epoch begins once; gateways that are silent are dropped, others heard; marks never go back; a cap caps."""
    ask.client.flushall()
    keys = tuple(f"p:{{a}}:{name}" for name in ("epoch", "members", "projects"))
    assert ask.run("beat", keys, "", TO, "", "", 0) == [b""]
    assert ask.run("beat", keys, "e", TO, "j", "ready", 5000, "tag", "alpha")[0] == b"e"
    ask.client.hset(keys[1], "old", "5 ready")
    epoch, journal, said = ask.run("beat", keys, "f", TO, "", "", 5000)
    assert (epoch, journal, said.partition(b" ")[2]) == (b"e", b"j", b"ready")
    assert (ask.client.hkeys(keys[1]), ask.client.hgetall(keys[2])) == ([b"j"], {b"tag": b"alpha"})
    seen = (IDS,)
    assert ask.run("census", seen, 2, TO, "a", "b", "c", "a") == [1, 1, 0, 1]
    since = ("p:{a}:since",)
    for at in (5, 9, 7):
        ask.run("since", since, TO, "hour", at)
    assert ask.number(since[0], "hour") == 9
    assert ask.run("renew", keys[:1], "d", "g", TO) == b"e"
    assert ask.run("renew", keys[:1], "e", "g", TO) == b"g"
    assert (ask.client.get(keys[0]), problems(ask.client)) == (b"g", [])


def moves(ask: Asking) -> None:
    """What is newer stands; the hour is gone, and the day has a deadline only where it has ids."""
    ask.client.flushall()
    ask.client.hset(OLDER, mapping={"0=x": "old", "0=z": "old"})
    ask.client.hset(IDS, "0=x", "new")
    assert ask.run("move", (OLDER, IDS), TO) == 1
    assert ask.client.hgetall(IDS) == {b"0=x": b"new", b"0=z": b"old"}
    assert ask.run("move", (OLDER, IDS), TO - 1) == 0
    assert problems(ask.client) == []
    assert ask.client.expiretime(IDS) == TO


PROMISES: Final = (reserves, voids, applies, dates, ends, leases, fills, lives, moves)
