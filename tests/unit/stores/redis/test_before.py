"""tollkeeper.stores.redis.before: what pruned entries had added comes back into an emptied Redis, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.shared_stores import KEPT, shared_store

from tollkeeper.ledger import CELL_SUMS, CellKey, Shape, sums_of
from tollkeeper.stores import Retention
from tollkeeper.stores.redis.before import before_of, begins_with
from tollkeeper.stores.redis.keys import FOREVER_S, GLOBAL, Deadlines, Keys, tag_of
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import ALPHA, AT_US, DAY_US, DIME, USD, a_hold, an_entry, usd
from tollkeeper.values import OTHER, Budget, Scopes

BUDGETS = (usd(100 * USD, window="total"), Budget(scope="all", limit=100 * USD, window="total"), usd(100 * USD))
MONTHS = Retention(hour_s=None, day_s=None, month_s=None, entries_s=30 * 86400)


async def seen(store: RedisStore) -> object:
    """Everything that a report and a budget show."""
    cells = [await store.cells("project", period, 0, 2**62) for period in ("hour", "day", "month")]
    return cells, [(each.spent, each.held) for each in await store.standings(ALPHA, "m", AT_US)]


async def aged(server: RedisServer, folder: Path) -> RedisStore:
    """A store with five entries that are pruned, one that stands, and a hold."""
    store = shared_store(server, folder, *BUDGETS)
    for number in range(5):
        await store.settle(an_entry(f"old{number}/1", at_us=AT_US - 60 * DAY_US))
    await store.settle(an_entry("new/1"))
    await store.reserve(a_hold("live/1"))
    await store.prune(AT_US, MONTHS)
    return store


async def test_comes_back_once(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: cells and balances without an end are what they were before Redis was emptied, also after the next start."""
    store = await aged(redis_server, tmp_path)
    await store.void("live/1")
    before = await seen(store)
    await store.close()
    redis_server.client().flushall()
    for _ in range(2):
        store = shared_store(redis_server, tmp_path, *BUDGETS)
        assert await seen(store) == before
        await store.close()


async def test_balances_that_are_kept_by_then(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4, P3: a gateway that comes when others have filled balances again adds to those without an end what it had spent."""
    for name in ("a", "b"):
        store = shared_store(redis_server, tmp_path / name, *BUDGETS)
        for number in range(3):
            await store.settle(an_entry(f"{name}{number}/1", at_us=AT_US - 60 * DAY_US))
        await store.settle(an_entry(f"{name}/1"))
        await store.prune(AT_US, MONTHS)
        await store.close()
    redis_server.client().flushall()
    for name, spent in (("a", [4, 4, 1]), ("b", [8, 8, 2])):
        store = shared_store(redis_server, tmp_path / name, *BUDGETS)
        assert [each.spent // DIME for each in await store.standings(ALPHA, "m", AT_US)] == spent
        await store.close()


async def test_not_where_nothing_is_lost(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: a project's first entry after a prune does not bring back what Redis has."""
    store = await aged(redis_server, tmp_path)
    await store.settle(an_entry("beta/1", scopes=Scopes(project="beta")))
    await store.close()
    store = shared_store(redis_server, tmp_path, *BUDGETS)
    spent = [each.spent for each in await store.standings(ALPHA, "m", AT_US)]
    assert spent == [6 * DIME, 7 * DIME, DIME]
    assert len(await store.cells("project", "month", 0, 2**62, "alpha")) == 2
    await store.close()


@pytest.mark.parametrize(
    ("cell", "tag", "fields"),
    [
        (("month", 0, "project", "alpha", "", "p", "m"), "alpha", {"project::": "alpha", "all::": ""}),
        (("month", 0, "agent", "alpha", "a:b", "p", "m"), "alpha", {"agent:a%3Ab:": "alpha"}),
        (("month", 0, "key", "", "k", "p", "m"), OTHER, {"key:k:": ""}),
        (("month", 0, "agent", "alpha", OTHER, "p", "m"), "alpha", {}),
        (("month", 0, "project", OTHER, "", "p", "m"), OTHER, {"all::": ""}),
        (("day", 0, "project", "alpha", "", "p", "m"), "alpha", {}),
    ],
)
def test_where_a_cell_goes(cell: tuple[object, ...], tag: str, fields: dict[str, str]) -> None:
    """A cell goes into its project's slot; of a month's cells, balances without an end take theirs, `_other` has none."""
    keys = Keys("t")
    found = before_of([(CellKey(*cell), tuple(sums_of(an_entry("a/1"))))], "j", keys, Deadlines(KEPT), 0)  # type: ignore[arg-type]
    assert found.projects == {tag}
    added = {
        (slot, key): dict(zip(place.fields, amounts, strict=True))
        for slot, batch in found.batches.items()
        for place, amounts in batch.sums
        for key in place.keys
    }
    (cells,) = (sums for (slot, key), sums in added.items() if slot == tag_of(tag) and key != keys.before(slot))
    assert sum(map(bool, cells.values())) == 4
    kept = {field: slot for (slot, key), sums in added.items() if key == keys.before(slot) for field in sums}
    assert {field: slot for field, slot in kept.items() if field.endswith("usd")} == {
        field + "usd": tag_of(project) if project else GLOBAL for field, project in fields.items()
    }


def test_many_ids() -> None:
    """No step counts up more fields than Lua's stack has room for."""
    cells = [
        (CellKey("month", 0, "agent", "alpha", f"a{number}", "p", "m"), (1,) * len(CELL_SUMS)) for number in range(4000)
    ]
    (batch,) = before_of(cells, "j", Keys("t"), Deadlines(KEPT), FOREVER_S).batches.values()
    assert [len(place.fields) for place, _ in batch.sums] == [1000] * 12


def test_begins_with() -> None:
    """Only balances without an end begin with it, each in its own measure."""
    found = {b"agent:a%3Ab:usd": b"5", b"agent:a%3Ab:tokens": b"7", b"session:s:usd": b"9"}
    assert list(begins_with(Shape("agent", "usd", "total", "UTC"), found)) == [("a%3Ab", 5)]
    assert list(begins_with(Shape("agent", "tokens", "total", "UTC"), found)) == [("a%3Ab", 7)]
    assert list(begins_with(Shape("agent", "usd", "month", "UTC"), found)) == []
    assert len(CELL_SUMS) == len(sums_of(an_entry("a/1")))
