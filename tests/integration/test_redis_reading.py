"""tollkeeper.stores.redis.reader: what is read is put together from every project's slot. The suite of stores tests the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.shared_stores import options, shared_store

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import FOREVER_US, BalanceKey, Shape, window_of
from tollkeeper.stores import Reader, Retention
from tollkeeper.stores.opening import open_reader
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.redis_server import RedisServer, free_port
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, HOUR_US, USD, an_entry, booked, month_of, total, usd
from tollkeeper.values import Budget, Entry, Scopes

WHO = Scopes(project="alpha", agent="w", session="s:1", user="ü", key="k", tags=("t",))
BETA = Scopes(project="beta", agent="w", key="k")


def entries() -> list[Entry]:
    return [
        an_entry("a/1", scopes=WHO),
        an_entry("b/1", scopes=BETA, at_us=AT_US + HOUR_US),
        an_entry("c/1", scopes=WHO, at_us=AT_US + 40 * DAY_US),
    ]


@pytest.fixture
async def store(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[RedisStore]:
    store = shared_store(redis_server, tmp_path, usd(USD), Budget(scope="key", limit=USD))
    for each in entries():
        await store.settle(each)
    await store._current()
    yield store
    await store.close()


@pytest.fixture
async def reader(store: RedisStore, redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Reader]:
    reader = open_reader(redis_server.url, shared=options(tmp_path))
    yield reader
    await reader.close()


async def test_over_projects(reader: Reader) -> None:
    """G1, C8: cells of one agent's name in two projects stay apart, those of a key are one; a project is read alone."""
    agents = await reader.cells("agent", "month", 0, FOREVER_US)
    assert sorted((key.project, key.id, sums[1]) for key, sums in agents) == [
        ("alpha", "w", 1),
        ("alpha", "w", 1),
        ("beta", "w", 1),
    ]
    (key_cell,) = {(key.project, key.id) for key, _ in await reader.cells("key", "month", 0, FOREVER_US)}
    assert key_cell == ("", "k")
    assert total(await reader.cells("key", "day", AT_US - DAY_US, AT_US + DAY_US), "attempts") == 2
    assert total(await reader.cells("project", "hour", 0, FOREVER_US, project="beta"), "amount_nanos") == DIME
    assert [key.id for key, _ in await reader.cells("session", "hour", 0, FOREVER_US)] == ["s:1", "s:1"]
    assert await reader.cells("project", "day", 0, FOREVER_US, project="nobody") == []
    assert total(await month_of(reader), "amount_nanos") == 3 * DIME


async def test_entries_in_their_time(reader: Reader) -> None:
    """Entries are those of their time, whichever month's list they are in; a tally is the sum of cells where cells match."""
    assert [each.id for each in await booked(reader)] == ["a/1", "b/1", "c/1"]
    assert [each.id async for each in reader.entries(AT_US, AT_US + 1)] == ["a/1"]
    assert [each.id async for each in reader.entries(0, FOREVER_US, "alpha")] == ["a/1", "c/1"]
    found = await reader.tally("user", AT_US, AT_US + DAY_US)
    assert [(key.project, key.id, sums[1]) for key, sums in found] == [("alpha", "ü", 1)]
    assert (await reader.size()).entries == 3


async def test_what_stands(store: RedisStore, reader: Reader) -> None:
    """What a correction has replaced does not stand; an entry is its latest revision, of its own project."""
    await store.correct(corrected(entries()[0]))
    await store._current()
    standing = {each.id: each.revision async for each in reader.current(0, FOREVER_US)}
    assert standing == {"a/1": 1, "b/1": 0, "c/1": 0}
    entry = await reader.entry("alpha", "a/1")
    assert entry is not None
    assert entry.revision == 1
    assert await reader.entry("beta", "a/1") is None
    assert set(await reader.known([("alpha", "a/1"), ("beta", "b/1"), ("beta", "x")])) == {
        ("alpha", "a/1"),
        ("beta", "b/1"),
    }


async def test_spent(store: RedisStore, reader: Reader) -> None:
    """What a balance has spent is read where one is kept, and from the entries of its window where none is."""
    start_us, _ = window_of("month", "UTC", AT_US)
    kept = BalanceKey(Shape("key", "usd", "month", "UTC"), "", "k", start_us)
    other = BalanceKey(Shape("project", "tokens", "day", "UTC"), "beta", "", window_of("day", "UTC", AT_US)[0])
    assert [await reader.spent(key) for key in (kept, other)] == [2 * DIME, 100]
    await store.verify()
    assert await reader.spent(kept) == 2 * DIME
    assert (await reader.size()).balances > 0


async def test_pruned_before(store: RedisStore, reader: Reader) -> None:
    """Before which instants rows may be gone is known to readers, too."""
    assert await reader.kept_since("hour") == 0
    await store.prune(AT_US + DAY_US, Retention(hour_s=3600, day_s=None, month_s=None, entries_s=None))
    assert await reader.kept_since("hour") == AT_US + 23 * HOUR_US
    assert await reader.kept_since("entry") == 0
    assert await reader.verify() == []


async def test_no_redis(tmp_path: Path) -> None:
    """A reader without Redis says within seconds that it does not answer."""
    with pytest.raises(StoreUnavailable, match="Redis is not there"):
        open_reader(f"redis://127.0.0.1:{free_port()}/0", shared=options(tmp_path))
