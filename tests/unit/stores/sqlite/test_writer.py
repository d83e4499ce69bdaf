"""The ledger's writer when its disk fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs
from tests.unit.stores.sqlite.disk import Disk, Failing

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import FOREVER_US, Shape
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.stores.sqlite.writer import ROLL_EVERY, Write, Writer
from tollkeeper.testing.samples import (
    AT_US,
    DAY_US,
    DIME,
    KEEP_ALL,
    USD,
    a_hold,
    an_entry,
    booked,
    month_of,
    standing,
    total,
    usd,
)

EVERYTHING = {"after": 0, "last": 2**62, "from_us": 0, "to_us": FOREVER_US, "project": None, "most": 1000}


@pytest.mark.parametrize("what", ["sync", "write"])
async def test_the_disk_fails(store: SqliteStore, disk: Disk, path: Path, what: Failing) -> None:
    """B6: on a full disk or a failing fsync nothing is acknowledged or half done; then it works again, all of it there."""
    await store.reserve(a_hold("a/1"))
    await store.reserve(a_hold("b/1"))
    disk.failing.add(what)
    for work in (store.settle(an_entry("a/1")), store.reserve(a_hold("c/1")), store.void("b/1"), store.expire(2**60)):
        with pytest.raises(StoreUnavailable, match="check the disk"):
            await work
    assert store.trouble is not None
    assert "ledger.sqlite" in store.trouble
    assert sorted(hold.id for hold in await store.live()) == ["a/1", "b/1"]
    assert ((await standing(store)).spent, (await standing(store)).held) == (0, 2 * DIME)
    disk.failing.clear()
    assert await store.settle(an_entry("a/1")) in ("booked", "repeated")
    await store.void("b/1")
    assert store.trouble is None
    assert [entry.id for entry in await booked(store)] == ["a/1"]
    assert ((await standing(store)).spent, (await standing(store)).held) == (DIME, 0)
    assert await store.verify() == []
    await store.close()
    again = SqliteStore(path)
    assert [entry.id for entry in await booked(again)] == ["a/1"]
    assert await again.verify() == []
    await again.close()


async def test_a_failed_settlement_that_reached_the_file(store: SqliteStore, disk: Disk, path: Path) -> None:
    """B6: a settlement refused for its fsync may be in the file at the next start, once, and then counts as repeated."""
    disk.failing.add("sync")
    with pytest.raises(StoreUnavailable):
        await store.settle(an_entry("a/1"))
    await store.close()
    disk.failing.clear()
    again = SqliteStore(path, [usd(USD)])
    there = len(await booked(again))
    assert await again.settle(an_entry("a/1")) == ("repeated" if there else "booked")
    assert [entry.id for entry in await booked(again)] == ["a/1"]
    assert (await standing(again)).spent == DIME
    assert await again.verify() == []
    await again.close()


@pytest.mark.parametrize("what", ["sync", "write"])
def test_the_disk_fails_at_start(disk: Disk, path: Path, what: Failing) -> None:
    """B6: a disk that cannot be written at start is told as that, and the next start with space succeeds."""
    disk.failing.add(what)
    with pytest.raises(StoreUnavailable, match="check the disk"):
        SqliteStore(path, [usd(USD)])
    disk.failing.clear()
    asyncio.run(SqliteStore(path, [usd(USD)]).close())


async def test_limits_stay_when_they_cannot_be_saved(store: SqliteStore, disk: Disk) -> None:
    """Changed budgets whose balances could not be written are not in force."""
    disk.failing.add("write")
    with pytest.raises(StoreUnavailable):
        await store.set_budgets([usd(0, window="day")])
    disk.failing.clear()
    assert (await standing(store)).budget == usd(USD)
    with pytest.raises(ZeroDivisionError):
        await store.set_budgets(usd(1 // 0) for _ in range(1))
    with pytest.raises(KeyError, match="Mars"):
        await store.set_budgets([usd(0, window="day"), usd(0, timezone="Mars/Phobos")])
    assert (await standing(store)).budget == usd(USD)
    assert await store.settle(an_entry("a/1")) == "booked"


async def test_a_quiet_ledger_gets_well(store: SqliteStore, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """I3: after a failure the ledger finds out by itself that its disk works again, also when nobody writes."""
    monkeypatch.setattr("tollkeeper.stores.sqlite.store.PROBE_MS", 1)
    disk.failing.add("sync")
    with pytest.raises(StoreUnavailable):
        await store.settle(an_entry("a/1"))
    disk.failing.clear()
    async with asyncio.timeout(30):
        while store.trouble is not None:  # noqa: ASYNC110 the writer's thread has no event to wait for
            await asyncio.sleep(0)
    assert await store.settle(an_entry("a/1")) in ("booked", "repeated")


async def test_a_place_is_never_used_again(path: Path) -> None:
    """B7, B4: after a prune of every entry new ones stand behind all that ever were, also for the next owner; cells have all."""
    later_us = AT_US + 400 * DAY_US
    for places in ((1, 2), (3, 4)):
        store = SqliteStore(path, [usd(USD)])
        for place in places:
            await store.settle(an_entry(f"{place}/1", at_us=AT_US + place * DAY_US))
        found = [entry async for entry in store.entries(0, FOREVER_US)]
        assert [entry.id for entry in found] == [f"{place}/1" for place in places]
        assert [row[0] for row in store.query("entries", **EVERYTHING)] == list(places)
        assert total(await month_of(store), "calls") == places[-1]
        assert await store.prune(later_us, structs.replace(KEEP_ALL, entries_s=0)) > 0
        assert await booked(store) == []
        assert await store.verify() == []
        await store.close()


async def test_places_when_the_disk_fails(store: SqliteStore, disk: Disk) -> None:
    """B6: a batch that failed, or was written one by one for a bad one in it, leaves places that still go on by one."""
    await store.settle(an_entry("a/1", 1))
    disk.failing.add("write")
    with pytest.raises(StoreUnavailable):
        await store.settle(an_entry("b/1", 1))
    disk.failing.clear()
    tasks = [store.settle(an_entry(f"{id}/1", nanos)) for id, nanos in (("c", 1), ("bad", -1), ("a", 1), ("d", 1))]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer if isinstance(answer, str) else type(answer) for answer in answers] == [
        "booked", ValueError, "repeated", "booked",
    ]  # fmt: skip
    found = store.query("entries", **EVERYTHING)
    assert [(row[0], row[2]) for row in found] == [(1, "a/1"), (2, "c/1"), (3, "d/1")]


def write(*entries: str) -> Write:
    return Write(waiters=[], done=lambda safe: None, entries=tuple(an_entry(f"{id}/1", 1) for id in entries))


def test_cells_follow_behind(path: Path) -> None:
    """B7: cells are brought up when they are far enough behind, at a prune, and for no other reason; none is counted twice."""
    writer = Writer(path)

    def rolled() -> int:
        return int(dict(writer._connection.execute("SELECT name, value FROM mark").fetchall())["rolled"])

    writer.apply([write(*(f"a{number}" for number in range(ROLL_EVERY - 1)))])
    writer.roll(behind=ROLL_EVERY)
    assert rolled() == 0
    writer.apply([write("b")])
    writer.roll(behind=ROLL_EVERY)
    assert rolled() == ROLL_EVERY
    writer.apply([write("c")])
    assert writer.prune(AT_US, KEEP_ALL) == 0
    assert rolled() == ROLL_EVERY + 1
    writer.roll()
    sums = writer._connection.execute("SELECT period, calls FROM cell ORDER BY period").fetchall()
    assert sums == [("day", ROLL_EVERY + 1), ("hour", ROLL_EVERY + 1), ("month", ROLL_EVERY + 1)]
    writer.close()


def test_shapes_are_kept_and_dropped(path: Path) -> None:
    """A shape's balances begin with what the entries say and go with the shape."""
    writer = Writer(path)
    shapes = {Shape("project", "usd", window, "UTC") for window in ("day", "total")}  # type: ignore[arg-type]
    writer.apply([write("a", "b")])
    for want, balances in ((shapes, [2, 2]), (set(), []), (shapes, [2, 2])):
        writer.set_shapes(want)
        found = writer._connection.execute("SELECT spent FROM balance").fetchall()
        assert [spent for (spent,) in found] == balances
    writer.close()
