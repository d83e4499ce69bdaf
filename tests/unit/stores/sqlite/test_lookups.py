"""What the owner of a ledger looks up in its file."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import FOREVER_US, BalanceKey, Shape, window_of
from tollkeeper.stores.sqlite.lookups import Lookups
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.samples import AT_US, DIME, USD, an_entry, booked, usd
from tollkeeper.values import Scopes

MONTH_US = window_of("month", "UTC", AT_US)[0]
SPENT = BalanceKey(Shape("project", "usd", "month", "UTC"), "alpha", "", MONTH_US)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "ledger.sqlite", [usd(USD)])
    yield store
    await store.close()


async def test_what_is_looked_up(tmp_path: Path) -> None:
    """Revisions without reversals, what a balance has spent and the ids of a month are as booked, and empty for what is not."""
    path = tmp_path / "ledger.sqlite"
    store = SqliteStore(path, [usd(USD)])
    entry = an_entry("a/1", scopes=Scopes(project="alpha", agent="w"))
    right = corrected(entry)
    await store.settle(entry)
    await store.correct(right)
    await store.settle(an_entry("b/1"))
    await store.close()
    lookups = Lookups(path)
    assert lookups.revisions(entry) == [entry, right]
    assert lookups.revisions(an_entry("c/1")) == []
    assert lookups.spent(SPENT) == DIME + (right.charge.amount_nanos or 0)
    assert lookups.spent(SPENT._replace(project="beta")) == 0
    assert lookups.ids("agent", "alpha", MONTH_US) == ["w"]
    assert lookups.ids("agent", "alpha", 0) == []
    lookups.close()
    with pytest.raises(StoreUnavailable, match=r"ledger\.sqlite"):
        lookups.revisions(entry)


async def test_beside_a_busy_thread(store: SqliteStore) -> None:
    """A thread that looks things up without a pause does not keep the others from theirs."""
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            store._lookups.spent(SPENT)

    busy = asyncio.create_task(asyncio.to_thread(spin))
    await store.settle(an_entry("a/1"))
    for _ in range(20):
        assert await store.settle(an_entry("a/1")) == "repeated"
    done.set()
    await busy


async def test_odd_names_come_back(store: SqliteStore) -> None:
    """A6: ids and models with any character stand in the ledger as they are."""
    names = [
        "llama3:8b",
        "vendor/model:free",
        "a\x00b",
        "\n",
        "%",
        "'",
        '"',
        "{}",
        "\U0001f600",
        "_other",
        "null",
        "1",
        " ",
    ]
    for name in names:
        scopes = Scopes(project=name, agent=name, session=name, user=name, key=name, tags=(name,))
        await store.settle(an_entry("1", call=name, scopes=scopes, model=name, served=name, note=name))
    assert [entry.scopes.tags[0] for entry in await booked(store)] == names
    for scope in ("agent", "session", "user", "key", "tag"):
        cells = await store.cells(scope, "month", 0, FOREVER_US)
        assert sorted((key.id, key.model) for key, _ in cells) == sorted((name, name) for name in names)
    assert await store.verify() == []
