"""Reading a ledger while its owner writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import apsw
import pytest

from tollkeeper.errors import StoreCorrupt, StoreUnavailable
from tollkeeper.ledger import FOREVER_US, BalanceKey, Shape
from tollkeeper.stores.opening import open_reader
from tollkeeper.stores.sqlite.file import QUERIES
from tollkeeper.stores.sqlite.reader import SqliteReader, windows_since
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.corrections import corrected, current
from tollkeeper.testing.samples import ALPHA, AT_US, DAY_US, DIME, HOUR_US, USD, an_entry, booked, total, usd
from tollkeeper.values import Scopes, us_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
async def owner(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, [usd(USD), usd(USD, window="day")])
    yield store
    await store.close()


@pytest.fixture
async def reader(owner: SqliteStore, path: Path) -> AsyncIterator[SqliteReader]:
    reader = SqliteReader(path)
    yield reader
    await reader.close()


async def test_a_reader_sees_what_was_acknowledged(owner: SqliteStore, reader: SqliteReader) -> None:
    """What settle has acknowledged is in the next answer of a reader, in cells, tally, entries and balances."""
    for number in range(1, 4):
        await owner.settle(an_entry(f"{number}/1"))
        assert await reader.entry("alpha", f"{number}/1") == an_entry(f"{number}/1")
        assert len(await booked(reader)) == number
        for cells in (
            await reader.cells("project", "hour", 0, FOREVER_US),
            await reader.tally("project", AT_US, AT_US + 1),
        ):
            assert total(cells, "calls") == number
        for window in ("day", "month", "week"):  # no balance is kept for the week
            shape = Shape("project", "usd", window, "UTC")
            start_us = next(windows_since(reader.query, shape, AT_US))[0]
            assert await reader.spent(BalanceKey(shape, "alpha", "", start_us)) == number * DIME


async def test_verify_after_half_an_hour_of_daylight_saving(owner: SqliteStore, reader: SqliteReader) -> None:
    """C4, B7: on Lord Howe the clock turns by half an hour: what is spent before and after stands in windows of its own."""
    await owner.set_budgets([usd(USD, window="hour", timezone="Australia/Lord_Howe")])
    for number, at in enumerate(("2026-04-05T01:45+11:00", "2026-04-05T01:45+10:30", "2026-10-04T01:45+10:30")):
        await owner.settle(an_entry(f"{number}/1", at_us=us_of(datetime.fromisoformat(at))))
    assert await reader.verify() == []


async def test_many_entries_by_name(owner: SqliteStore, reader: SqliteReader) -> None:
    """`known` answers many ids at once, each as it stands after a correction; what is not there is left out."""
    await owner.settle(an_entry("a/1", outcome="expired"))
    await owner.settle(an_entry("a/1", 2 * DIME))
    await owner.settle(an_entry("b/1", scopes=Scopes(project='p"[]')))
    names = [("alpha", "a/1"), ('p"[]', "b/1"), ("alpha", "b/1"), ("alpha", "c/1")]
    for each in (owner, reader):
        found = await each.known(names)
        assert found.keys() == set(names[:2])
        assert found["alpha", "a/1"] == await each.entry("alpha", "a/1")
        assert (found["alpha", "a/1"].revision, found["alpha", "a/1"].sign) == (1, 1)
        assert await each.known([]) == {}


async def test_verify_while_the_owner_writes(owner: SqliteStore, reader: SqliteReader) -> None:
    """B7: verify looks at one instant: it finds no difference while entries, cells and balances change under it."""

    async def write(task: int) -> None:
        for number in range(100):
            await owner.settle(an_entry(f"{task}-{number}/1", 1, at_us=AT_US + number % 3 * DAY_US))

    writing = asyncio.gather(*(write(task) for task in range(8)))
    looked = 0
    while not writing.done():
        assert await reader.verify() == []
        looked += 1
    await writing
    assert looked > 3
    assert len(await booked(reader)) == 800


async def test_a_snapshot_stands_still(owner: SqliteStore, reader: SqliteReader) -> None:
    """Everything asked within a snapshot is of one instant; the next question after it sees the present."""
    await owner.settle(an_entry("a/1"))
    async with reader.snapshot():
        before = await reader.cells("project", "day", 0, FOREVER_US)
        await owner.settle(an_entry("b/1"))
        async with reader.snapshot():
            assert await reader.cells("project", "day", 0, FOREVER_US) == before
        assert [entry.id for entry in await booked(reader)] == ["a/1"]
    assert [entry.id for entry in await booked(reader)] == ["a/1", "b/1"]


async def test_entries_come_in_pages(owner: SqliteStore, reader: SqliteReader) -> None:
    """More entries than a page holds come once each, in the order in which they were booked; none that come meanwhile."""
    await asyncio.gather(*(owner.settle(an_entry(f"{number}/1", 0)) for number in range(2500)))
    seen = []
    async for entry in reader.entries(0, FOREVER_US, "alpha"):
        seen.append(int(entry.call))
        if len(seen) == 1200:
            await owner.settle(an_entry("2500/1", 0))
    assert seen == list(range(2500))
    assert [entry async for entry in reader.entries(0, FOREVER_US, "beta")] == []


async def test_what_stood_when_the_first_page_was_read(
    owner: SqliteStore, reader: SqliteReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8: what is corrected while its page is still to come is read as it stood: each call once, no snapshot held."""
    monkeypatch.setattr("tollkeeper.stores.sqlite.reader._PAGE", 2)
    for number in range(5):
        await owner.settle(an_entry(f"{number}/1"))
    await owner.correct(corrected(an_entry("3/1")))
    seen = []
    async for entry in reader.current(0, FOREVER_US):
        if not seen:
            for other in await current(owner):
                await owner.correct(corrected(other))
        seen.append((entry.id, entry.revision))
    assert seen == [("0/1", 0), ("1/1", 0), ("2/1", 0), ("4/1", 0), ("3/1", 1)]
    assert [(each.id, each.revision) for each in await current(reader)] == [
        ("0/1", 1), ("1/1", 1), ("2/1", 1), ("4/1", 1), ("3/1", 2),
    ]  # fmt: skip


def test_pages_do_not_sort_the_whole_time(path: Path) -> None:
    """Each page of entries is read from where the last one ended: reading a million takes a million steps, not their square."""
    store = SqliteStore(path)
    values = dict.fromkeys(("from_us", "to_us", "project", "after", "last", "most"), 1)
    for name in ("entries", "current"):
        steps = [row[3] for row in store._reader.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", values)]
        assert not any("TEMP B-TREE" in step for step in steps)
        assert "INTEGER PRIMARY KEY" in steps[0]
    asyncio.run(store.close())


async def test_windows_with_entries(owner: SqliteStore, reader: SqliteReader) -> None:
    """windows_since names each window that has an entry, once, from the one of the instant on."""
    for number, at_us in enumerate((AT_US, AT_US + HOUR_US, AT_US + DAY_US, AT_US + 40 * DAY_US)):
        await owner.settle(an_entry(f"{number}/1", at_us=at_us))
    found = {
        (window, from_us): len(list(windows_since(reader.query, Shape("all", "usd", window, "UTC"), from_us)))
        for window in ("hour", "day", "month", "total")
        for from_us in (0, AT_US + HOUR_US)
    }
    assert list(found.values()) == [4, 3, 3, 3, 2, 2, 1, 1]


def test_what_cannot_be_read(path: Path) -> None:
    """A ledger that is not there, is not one, or has another schema is one clear line."""
    url = f"sqlite:///{path}"
    with pytest.raises(StoreUnavailable, match="there is no ledger at"):
        open_reader(url)
    assert not path.exists()
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE mine (a)")
    other.close()
    with pytest.raises(StoreCorrupt, match="not a Tollkeeper ledger"):
        open_reader(url)
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StoreCorrupt, match="cannot be used as a ledger"):
        open_reader(url)


async def test_a_read_error_is_told(owner: SqliteStore, reader: SqliteReader) -> None:
    """A closed or unreadable file is StoreUnavailable, not an error of the library underneath."""
    await reader.close()
    for work in (reader.verify(), reader.kept_since(), reader.entry("alpha", "a/1"), reader.tally("project", 0, 1)):
        with pytest.raises(StoreUnavailable):
            await work
    assert [standing.spent for standing in await owner.standings(ALPHA, "m", AT_US)] == [0, 0]
