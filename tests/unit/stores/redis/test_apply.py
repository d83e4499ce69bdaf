"""tollkeeper.stores.redis.apply with apply.lua on a real Redis: each row counts once, whatever is repeated or lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.slots import FakeJournal, applier, contents, shared

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import Shape, expired
from tollkeeper.stores.redis.apply import Applier, Doubted, Shared, blocks_of
from tollkeeper.stores.redis.ask import Script
from tollkeeper.stores.redis.batch import Batch, Place, Sums
from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.slots import open_slot
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DIME, a_hold, an_entry
from tollkeeper.values import Entry, Scopes

TAG = tag_of("alpha")
MONTH = Shape("project", "usd", "month", "UTC")
ALL = Shape("all", "usd", "total", "UTC")


@pytest.fixture
def ours(redis_server: RedisServer) -> Iterator[Shared]:
    """A process on the session's Redis."""
    with shared(redis_server) as found:
        yield found


def spent(server: RedisServer) -> dict[str, int]:
    """What the project's hours and balances have: name → nano-dollars."""
    found: dict[str, int] = {}
    with server.client() as client:
        for key in client.scan_iter("*"):
            what = key.decode().rpartition("}:")[2]
            if what.startswith(("cells:hour:project", "balance:")):
                amounts = {field: int(amount) for field, amount in client.hgetall(key).items()}
                found[what.split(":")[0]] = found.get(what.split(":")[0], 0) + sum(
                    amount for field, amount in amounts.items() if field.endswith((b"|amount_nanos", b"spent"))
                )
    return found


def sums(ours: Shared, *amounts: Any) -> Batch:
    """A batch that adds to a cell's fields."""
    place = Place(
        (ours.keys.of(TAG, "cells:day:project::0"),), (2**40,), tuple(f"p|m|{at}" for at in range(len(amounts)))
    )
    return Batch(tag=TAG, cursors=[("j", 0, 1)], shapes=None, sums=[Sums(place, list(amounts))])


def test_once(redis_server: RedisServer, ours: Shared) -> None:
    """B2: rows that were applied are passed over, by this applier and by the next one of the journal."""
    journal = FakeJournal("a", an_entry("1/1"), an_entry("2/1"))
    first = applier(ours, journal)
    first.catch_up()
    before = contents(redis_server)
    first.apply(journal.placed)
    again = applier(ours, journal)
    again.catch_up()
    again.apply(journal.placed)
    assert contents(redis_server) == before
    assert spent(redis_server) == {"cells": 2 * DIME}
    assert again.applied == again.starred == {TAG: 2}


def test_a_lost_reply(redis_server: RedisServer, ours: Shared) -> None:
    """B4: who does not know that its batch was applied is told that the cursor stands elsewhere, and nothing counts twice."""
    journal = FakeJournal("a", an_entry("1/1"))
    applier(ours, journal).catch_up()
    unsure = applier(ours, journal)
    with pytest.raises(Doubted, match="has row 1 of this journal, not 0"):
        unsure.apply(journal.placed)
    unsure.catch_up()
    unsure.apply(journal.book(an_entry("2/1")))
    assert spent(redis_server) == {"cells": 2 * DIME}


def test_an_older_redis(redis_server: RedisServer, ours: Shared) -> None:
    """B4: rows that Redis has forgotten are applied again, from where its cursor stands."""
    journal = FakeJournal("a", an_entry("1/1"))
    steady = applier(ours, journal)
    steady.catch_up()
    with redis_server.client() as client:
        older = {key: client.dump(key) for key in client.scan_iter()}
        steady.apply(journal.book(an_entry("2/1"), an_entry("3/1")))
        client.flushall()
        for key, value in older.items():
            client.restore(key, 0, value)
    with pytest.raises(Doubted, match="has row 1 of this journal, not 3"):
        steady.apply(journal.book(an_entry("4/1")))
    steady.catch_up()
    assert spent(redis_server) == {"cells": 4 * DIME}


def test_an_old_journal(ours: Shared) -> None:
    """B4: a journal that ends before what Redis has of it is an old copy, and is refused with what to do."""
    applier(ours, FakeJournal("a", an_entry("1/1"), an_entry("2/1"))).catch_up()
    with pytest.raises(StoreUnavailable, match="it is an old copy; move it away"):
        applier(ours, FakeJournal("a", an_entry("1/1"))).catch_up()


def test_an_old_journal_that_grows(redis_server: RedisServer, ours: Shared) -> None:
    """B4: one that books as many entries as it lacked is refused as before: its rows are others than Redis has."""
    applier(ours, FakeJournal("a", an_entry("1/1"), an_entry("2/1"))).catch_up()
    old = FakeJournal("a", an_entry("1/1"))
    again = applier(ours, old)
    for number in range(3, 6):
        with pytest.raises(StoreUnavailable, match="it is an old copy"):
            again.catch_up()
        old.book(an_entry(f"{number}/1"))
    assert spent(redis_server) == {"cells": 2 * DIME}


@pytest.mark.parametrize(
    ("second", "counts", "told"),
    [
        (an_entry("1/1"), DIME, False),
        (an_entry("1/1", 3 * DIME), DIME, True),
        (expired(a_hold("1/1", 7 * DIME)), DIME, False),
    ],
    ids=["the same", "other contents", "an estimate"],
)
def test_one_id_in_two_journals(
    redis_server: RedisServer, ours: Shared, caplog: pytest.LogCaptureFixture, second: Entry, counts: int, told: bool
) -> None:
    """B2: an id that two processes have booked counts once; other contents are told, never silent."""
    applier(ours, FakeJournal("a", an_entry("1/1"))).catch_up()
    applier(ours, FakeJournal("b", second)).catch_up()
    assert spent(redis_server) == {"cells": counts}
    assert ("booked elsewhere with other contents" in caplog.text) is told


def test_an_estimate_is_replaced(redis_server: RedisServer, ours: Shared) -> None:
    """C2: a settlement that another process has takes the place of an estimate, also in the list of entries."""
    applier(ours, FakeJournal("a", expired(a_hold("1/1", 7 * DIME)))).catch_up()
    applier(ours, FakeJournal("b", an_entry("1/1"))).catch_up()
    assert spent(redis_server) == {"cells": DIME}
    assert [(each.sign, each.revision) for block in blocks_of(ours, TAG) for _, each in block.rows] == [
        (1, 0),
        (-1, 0),
        (1, 1),
    ]


def test_balances_follow(redis_server: RedisServer, ours: Shared) -> None:
    """P3: a batch counts in every balance that its slot keeps, also in one that this process has not heard of."""
    journal = FakeJournal("a", an_entry("1/1"))
    ours.register(["beta"])
    steady = applier(ours, journal)
    steady.catch_up()
    with shared(redis_server) as other:
        open_slot(other, TAG, "epoch-1", [MONTH])
        open_slot(other, GLOBAL, "epoch-1", [ALL])
    steady.apply(journal.book(an_entry("2/1"), an_entry("3/1", scopes=Scopes(project="beta"))))
    assert spent(redis_server) == {"cells": 3 * DIME, "balance": 2 * DIME + 3 * DIME}


@pytest.mark.parametrize(
    "amount", [0.5, float("nan"), float("inf"), 2**53, -(2**53), 2**63, "7", "0x10", True, None, [1]], ids=str
)
def test_a_hostile_amount(redis_server: RedisServer, ours: Shared, amount: Any) -> None:
    """F4: what is no whole number that a double counts exactly moves nothing, not even the cursor."""
    before = contents(redis_server)
    keys, (packed,) = sums(ours, 1, 1).arguments(ours.keys)
    batch = msgspec.msgpack.decode(packed)
    ((_, _, (amounts,)),) = batch[10]
    amounts[1] = amount
    with pytest.raises(StoreUnavailable, match="not an amount"):
        ours.link.run(Script("apply")(keys, [msgspec.msgpack.encode(batch)]))
    assert contents(redis_server) == before


@pytest.mark.parametrize(
    ("stands", "adds", "then"),
    [
        (b"9007199254740993", 1, b"9007199254740994"),
        (b"999999999999999", 9007199254740991, b"10007199254740990"),
        (b"-5", 5, b"0"),
        (b"9223372036854775807", 1, None),
        (b"abc", 1, None),
        (b"0x10", 1, None),
        (b"1.5", 1, None),
        (b"nan", 1, None),
    ],
)
def test_counters(redis_server: RedisServer, ours: Shared, stands: bytes, adds: int, then: bytes | None) -> None:
    """F4: counters are exact up to 2^63; one that is full or none is named, and stops no other."""
    batch = sums(ours, 3, adds, 4)
    (key,) = batch.sums[0].place.keys
    with redis_server.client() as client:
        client.hset(key, "p|m|1", stands)
        answer = ours.link.run(ours.ask(batch))[0]
        assert client.hgetall(key) == {b"p|m|0": b"3", b"p|m|1": then or stands, b"p|m|2": b"4"}
    assert answer == [b"applied"] + ([] if then else [f"{key} p|m|1".encode()])


def test_a_key_of_another_kind(redis_server: RedisServer, ours: Shared) -> None:
    """A key that is no hash fails alone, and the batch is applied."""
    batch = sums(ours, 3, 4)
    (key,) = batch.sums[0].place.keys
    with redis_server.client() as client:
        client.set(key, "x")
        assert ours.link.run(ours.ask(batch)) == [[b"applied", f"{key} p|m|0".encode(), f"{key} p|m|1".encode()]]
        assert client.hget(ours.keys.cursor(TAG), "j") == b"1"


def test_every_key_ends(redis_server: RedisServer, ours: Shared) -> None:
    """F3: each key has a deadline, and the dated ones are listed under the start of their period."""
    open_slot(ours, TAG, "epoch-1", [MONTH])
    applier(ours, FakeJournal("a", an_entry("1/1"), an_entry("2/1"))).catch_up()
    with redis_server.client() as client:
        assert [key for key in client.scan_iter() if client.ttl(key) <= 0] == []
        listed = dict(client.zrange(ours.keys.index(TAG), 0, -1, withscores=True))
    dated = {key.rpartition(b"}:")[2] for key in contents(redis_server) if b":{" + TAG.encode() in key}
    assert listed.keys() == {name for name in dated if name.startswith((b"cells:", b"balance:", b"entries:"))}
    assert {int(start) for start in listed.values()} == {int(name.rpartition(b":")[2]) // 10**6 for name in listed}
    assert all(start <= AT_US // 10**6 for start in listed.values())


def test_many_at_once(redis_server: RedisServer, ours: Shared) -> None:
    """B3: 10,000 scopes of one journal are applied whole."""
    entries = [
        an_entry(f"{at}/1", scopes=Scopes(project="alpha", session=f"s{at}")) for at in range(10_000)
    ]  # fmt: skip
    found: Applier = applier(ours, FakeJournal("a", *entries))
    found.catch_up()
    assert spent(redis_server) == {"cells": 10_000 * DIME}
    with redis_server.client() as client:
        assert sum(b":cells:day:session:" in key for key in client.scan_iter(count=5000)) == 10_000
