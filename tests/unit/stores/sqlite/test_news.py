"""Who is told what the writer has done, and when: the book, `on_booked`, the callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import RLock
from typing import Any

import apsw
import pytest
from tests.unit.stores.sqlite.disk import Disk, Failing

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores.sqlite.file import row_entry
from tollkeeper.stores.sqlite.news import News, Placed
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.stores.sqlite.writer import Write
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.samples import DIME, USD, a_hold, an_entry, standing, usd

ALL = {"after": 0, "last": 2**62, "from_us": 0, "to_us": FOREVER_US, "project": None, "most": 10_000}


@pytest.fixture
def disk() -> Iterator[Disk]:
    with Disk() as disk:
        yield disk


@pytest.fixture
def told() -> Placed:
    return []


@pytest.fixture
async def store(tmp_path: Path, disk: Disk, told: Placed) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "ledger.sqlite", [usd(100 * USD)], on_booked=told.extend)
    yield store
    disk.failing.clear()
    await store.close()


def in_file(store: SqliteStore) -> Placed:
    return [(row[0], row_entry(row)) for row in store.query("entries", **ALL)]


# ── the order of the telling ─────────────────────────────────────────────────────────────────────────────────────────


async def test_the_book_then_entries_then_callers() -> None:
    """The book knows first, then on_booked, both under the lock; then the caller is answered. A failed write has no entries."""
    order: list[Any] = []
    news = News(RLock(), lambda placed: order.append([(seq, entry.id) for seq, entry in placed]))
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]
    for future in futures:
        future.add_done_callback(lambda _: order.append("caller"))

    def write(number: int, first: int, *ids: str) -> Write:
        entries = tuple(an_entry(id) for id in ids)
        return Write([futures[number]], lambda safe: order.append(safe), entries=entries, first=first)

    news.tell([write(0, 7, "a/1", "b/1"), write(1, 9)], None)
    news.tell([write(2, 9, "c/1")], StoreUnavailable("full"))
    assert len(news) == 2
    news.hear()
    assert (len(news), news.last) == (0, 8)
    with pytest.raises(StoreUnavailable, match="full"):
        await futures[2]
    await asyncio.sleep(0)
    assert order == [True, True, [(7, "a/1"), (8, "b/1")], False, "caller", "caller", "caller"]


def test_callers_of_other_loops() -> None:
    """Whoever hears, each caller is answered in its own loop; one whose loop is closed keeps nothing from the others."""
    loops = [asyncio.new_event_loop() for _ in range(2)]
    futures = [loop.create_future() for loop in loops]
    loops[0].close()
    news = News(RLock(), None)
    news.tell([Write([future], lambda safe: None) for future in futures], None)
    news.hear()
    loops[1].run_until_complete(futures[1])
    loops[1].close()


# ── on_booked ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_entries_are_told_with_their_places(store: SqliteStore, told: Placed) -> None:
    """What on_booked hears is what the file has: settlements, expiries, both rows of corrections, in their order, once."""
    await store.reserve(a_hold("held/1"))
    await asyncio.gather(*(store.settle(an_entry(f"{number}/1", number)) for number in range(50)))
    assert await store.settle(an_entry("7/1", 7)) == "repeated"
    await store.correct(corrected(an_entry("7/1", 7)))
    await store.expire(2**60)
    assert await store.settle(an_entry("held/1")) == "late"
    assert len(told) == 50 + 2 + 1 + 2
    assert told == in_file(store)
    assert [seq for seq, _ in told] == list(range(1, 56))
    assert store.last == 55


async def test_an_entry_is_told_before_its_caller(tmp_path: Path) -> None:
    """Whoever has the answer to a settlement finds that on_booked has heard of it."""
    told: Placed = []
    store = SqliteStore(tmp_path / "ledger.sqlite", on_booked=told.extend)

    async def one(id: str) -> None:
        await store.settle(an_entry(id))
        assert id in {entry.id for _, entry in told}

    await asyncio.gather(*(one(f"{number}/1") for number in range(100)))
    await store.close()


async def test_what_was_there_is_not_told(tmp_path: Path) -> None:
    """Entries of before, and those of a dead owner's holds, are not told; `last` counts them, also where they are pruned."""
    store = SqliteStore(tmp_path / "ledger.sqlite")
    await store.settle(an_entry("a/1"))
    await store.reserve(a_hold("b/1"))
    await store.close()
    told: Placed = []
    store = SqliteStore(tmp_path / "ledger.sqlite", on_booked=told.extend)
    assert (store.last, told) == (2, [])
    await store.settle(an_entry("c/1"))
    assert [(seq, entry.id) for seq, entry in told] == [(3, "c/1")]
    await store.close()


@pytest.mark.parametrize("what", ["sync", "write"])
async def test_entries_told_when_the_disk_fails(store: SqliteStore, disk: Disk, told: Placed, what: Failing) -> None:
    """B6: through batches that fail, for the disk or for a bad entry in them, what is told is what the file has."""
    for turn in range(6):
        if turn % 2:
            disk.failing.add(what)
        bad = an_entry(f"{turn}-bad/1", -1)
        work = [store.settle(an_entry(f"{turn}-{number}/1", 1)) for number in range(10)]
        await asyncio.gather(*work, store.settle(bad), return_exceptions=True)
        disk.failing.clear()
        assert told == in_file(store)
    assert len({entry.id for _, entry in told}) == len(told) >= 30
    assert store.last == told[-1][0]


async def test_a_failed_batch_that_is_in_the_file(store: SqliteStore, disk: Disk, told: Placed) -> None:
    """B6, C1: entries told as failed, and found in the file once it can be opened again, are told and counted, once."""
    await store.settle(an_entry("a/1"))
    connection = store._writer._connection

    class Broken:
        """The connection; a batch is written, and then the disk is gone."""

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

        def execute(self, sql: str, values: Any = None) -> Any:
            connection.execute(sql, values)
            disk.failing.add("write")
            raise apsw.IOError("gone")

    store._writer._connection = Broken()  # type: ignore[assignment]
    answers = await asyncio.gather(*(store.settle(an_entry(id)) for id in ("b/1", "c/1")), return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert [seq for seq, _ in told] == [1]
    disk.failing.clear()
    assert await store.settle(an_entry("d/1")) == "booked"
    assert await store.settle(an_entry("b/1")) == "repeated"
    assert told == in_file(store)
    assert [entry.id for _, entry in told][-1] == "d/1"
    assert (await standing(store)).spent == len(told) * DIME
    assert await store.verify() == []
