"""gather: the same report from every store, all of it as of one instant."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tollkeeper.cli.gather import gather
from tollkeeper.ledger import BalanceKey, Shape, window_of
from tollkeeper.reports import GROUPINGS, Report, plan
from tollkeeper.stores import Kept, Reader, Retention, Size, Store
from tollkeeper.stores.opening import open_reader, open_store
from tollkeeper.values import Budget, Charge, Entry, Scopes, Usage

NOV_22 = 1_795_305_600_000_000  # 2026-11-22 UTC
HOUR = 3_600_000_000
MONTH = window_of("month", "UTC", NOV_22)
BUDGET = Budget(scope="agent", limit=10**9, window="month")


def entry(number: int, at_us: int = NOV_22, agent: str | None = "writer", **scopes: Any) -> Entry:
    """An entry of 1,000 nanos and its number."""
    return Entry(
        id=f"{number}/1", call=str(number), at_us=at_us, scopes=Scopes(project="p", agent=agent, **scopes),
        dialect="openai-chat", provider="openai", model="m", served="m", usage=Usage(input=1),
        charge=Charge(amount_nanos=1000 + number, computed_nanos=1000 + number, status="priced"),
    )  # fmt: skip


@pytest.mark.parametrize("project", [None, "p"])
async def test_every_store_gives_the_same_report(tmp_path: Path, project: str | None) -> None:
    """G1: memory, SQLite and a reader beside it give the same rows and totals, from cells and from entries."""
    memory, sqlite = open_store("memory:"), open_store(f"sqlite:///{tmp_path}/ledger")
    names: tuple[str | None, ...] = (None, "a")
    for number, (agent, key, tags) in enumerate(product(names, names, [(), ("x", "y")])):
        for store in (memory, sqlite):
            await store.settle(entry(number, NOV_22 + number * HOUR // 2, agent, key=key, tags=tags))
    beside = open_reader(f"sqlite:///{tmp_path}/ledger")
    for by, (each, span) in product((None, *GROUPINGS), [("hour", (NOV_22, NOV_22 + 5 * HOUR)), (None, MONTH)]):
        found = [
            await gather(reader, plan(by, each, *span, "UTC", project))  # type: ignore[arg-type]  # names of the table
            for reader in (memory, sqlite, beside)
        ]
        assert found[0] == found[1] == found[2], (by, each)
        assert found[0].total.calls == 8
    await beside.close()
    await sqlite.close()


async def test_one_projects_keys() -> None:
    """G1: the keys of one project are counted from its entries: a key alone, and what was called without one."""
    store = open_store("memory:")
    await store.settle(entry(1, key="k", tags=("x",)))
    await store.settle(entry(2))
    found = await gather(store, plan("key", None, *MONTH, "UTC", "p"))
    assert [(row.project, row.name, row.sums.amount_nanos) for row in found.rows] == [
        (None, "k", 1001), (None, None, 1002),
    ]  # fmt: skip


class Meddler:
    """Another process that books a call whenever the report has asked for something."""

    def __init__(self, reader: Reader, store: Store) -> None:
        self._reader, self._store = reader, store
        self.booked = 0

    async def cells(self, *arguments: Any) -> Any:
        found = await self._reader.cells(*arguments)
        self.booked += 1
        await self._store.settle(entry(100 + self.booked))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


async def test_a_report_is_of_one_instant(tmp_path: Path) -> None:
    """G1: calls booked while a report is read make no row differ from the total; the next report has them."""
    store = open_store(f"sqlite:///{tmp_path}/ledger")
    await store.settle(entry(1))
    reader = open_reader(f"sqlite:///{tmp_path}/ledger")
    meddler: Any = Meddler(reader, store)

    async def ask() -> Report:
        return await gather(meddler, plan("agent", None, *MONTH))

    first, second = await ask(), await ask()
    assert meddler.booked == 4
    assert [(row.name, row.sums.calls) for row in first.rows] == [("writer", 1)]
    assert [(row.name, row.sums.calls) for row in second.rows] == [("writer", 3)]
    await reader.close()
    await store.close()


@pytest.mark.parametrize("scheme", ["memory:", "sqlite"])
async def test_what_reports_ask_of_a_store(tmp_path: Path, scheme: str) -> None:
    """C8: a store tells what a balance has spent, kept or not, how much it holds, and since when it keeps what."""
    url = f"sqlite:///{tmp_path}/ledger" if scheme == "sqlite" else scheme
    store = open_store(url, budgets=[BUDGET])
    await store.settle(entry(1))
    await store.settle(entry(2, agent="reader"))

    def key(scope: Any, project: str, id: str) -> BalanceKey:
        return BalanceKey(Shape(scope, "usd", "month", "UTC"), project, id, MONTH[0])

    asked = [key("agent", "p", "writer"), key("agent", "p", "nobody"), key("project", "p", ""), key("all", "", "")]
    assert [await store.spent(each) for each in asked] == [1001, 0, 2003, 2003]
    kinds: tuple[Kept, ...] = ("hour", "day", "month", "entry")
    assert [await store.kept_since(what) for what in kinds] == [0, 0, 0, 0]
    await store.prune(NOV_22 + HOUR, Retention())
    hour, day, month, entries = [await store.kept_since(what) for what in kinds]
    assert hour > day > entries > month > 0
    assert await store.size() == Size(entries=2, cells=9, balances=2)
    await store.close()
