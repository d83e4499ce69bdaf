"""Every store passes `tollkeeper.testing.conformance`, and with it `tollkeeper.testing.corrections`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import apsw
import pytest
from tests.redis_ledger import shared_at

from tollkeeper.ledger import CELL_SUMS
from tollkeeper.stores import Store, open_store
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.sqlite import SqliteStore
from tollkeeper.testing.conformance import StoreContract
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, KEEP_ALL, USD, a_hold, an_entry, usd
from tollkeeper.values import Budget, Scopes

What = Literal["cell", "balance"]
SUMS = ", ".join(CELL_SUMS)
GHOST = f"INSERT INTO cell SELECT period, scope, start_us, project, 'ghost', provider, model, {SUMS} FROM cell LIMIT 1"


class TestMemory(StoreContract):
    """The model."""

    async def open(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> Store:
        return MemoryStore(budgets, scope_cap=scope_cap)

    def corrupt(self, store: Store, what: What) -> None:
        assert isinstance(store, MemoryStore)
        if what == "cell":
            key = next(iter(store._cells))
            store._cells[key] = tuple(value + 1 for value in store._cells[key])
        else:
            store._spent[next(iter(store._spent))] += 1


class TestSqlite(StoreContract):
    """The embedded ledger, in a file."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "ledger.sqlite"

    async def open(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> Store:
        return SqliteStore(self.path, budgets, scope_cap=scope_cap)

    def corrupt(self, store: Store, what: What) -> None:
        column = {"cell": "calls", "balance": "spent"}[what]
        with apsw.Connection(str(self.path)) as other:
            other.execute(f"UPDATE {what} SET {column} = {column} + 1")
        other.close()


class TestRedisStore(StoreContract):
    """The shared ledger: a journal, and a real Redis."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, redis_server: RedisServer) -> None:
        self.folder, self.server = tmp_path, redis_server

    async def open(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> Store:
        shared = shared_at(self.folder / "journal")
        return open_store(self.server.url, budgets=budgets, scope_cap=scope_cap, shared=shared)

    def corrupt(self, store: Store, what: What) -> None:
        with self.server.client() as client:
            for key in client.keys({"cell": "*:cells:day:project:*", "balance": "*:balance:*"}[what]):
                client.hincrby(key, {"cell": "fake|m|calls", "balance": "spent"}[what], 1)


class Turns:
    """Two stores as one: each call goes to the next of them, and a change of the budgets to both."""

    def __init__(self, *stores: Store) -> None:
        self._stores, self._turn = stores, cycle(stores)

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._turn), name)

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        for store in self._stores:
            await store.set_budgets(budgets)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class TestTwoRedisStores(TestRedisStore):
    """The same by two processes' stores in turns (B2, C8): a hold of one is settled by the other, and is gone in both."""

    async def open(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> Store:
        budgets = tuple(budgets)
        both = [await super(TestTwoRedisStores, self).open(budgets, scope_cap=scope_cap) for _ in range(2)]
        return Turns(*both)  # type: ignore[return-value]


class TestDamage:
    """Differences that a sum too many or too few makes, in the file."""

    @pytest.mark.parametrize(
        ("sql", "what"),
        [
            ("DELETE FROM cell WHERE period = 'day'", "cell"),
            ("DELETE FROM cell", "cell"),
            (GHOST, "cell"),
            ("UPDATE cell SET model = 'ghost'", "cell"),
            ("UPDATE cell SET reasoning = reasoning - 1 WHERE period = 'hour'", "cell"),
            ("DELETE FROM balance", "balance"),
            ("UPDATE balance SET id = 'ghost'", "balance"),
            ("DELETE FROM entry WHERE id = 'a/1'", "cell"),
            ("DELETE FROM entry", "balance"),
        ],
    )  # fmt: skip
    async def test_is_found(self, tmp_path: Path, sql: str, what: str) -> None:
        """B7: a row changed, added or gone on either side is a difference."""
        contract = TestSqlite()
        contract.path = tmp_path / "ledger.sqlite"
        store = await contract.open([usd(USD)])
        for id in ("a/1", "b/1"):
            await store.settle(an_entry(id))
        await store.prune(AT_US, KEEP_ALL)  # the cells are up to date
        with apsw.Connection(str(contract.path)) as other:
            other.execute(sql)
        other.close()
        assert what in {difference.what for difference in await store.verify()}
        await store.close()


@pytest.mark.parametrize("kind", [TestMemory, TestSqlite])
async def test_a_foreign_id_ends_no_hold(kind: type[StoreContract], tmp_path: Path) -> None:
    """C8: an entry of one project under the id of another's live hold is booked and leaves that hold alone."""
    suite = kind()
    if isinstance(suite, TestSqlite):
        suite.path = tmp_path / "ledger.sqlite"
    store = await suite.open([usd(USD)])
    await store.reserve(a_hold("a/1"))
    foreign = an_entry("a/1", scopes=Scopes(project="other"))
    assert [await store.settle(foreign), await store.settle(foreign)] == ["booked", "repeated"]
    assert [hold.id for hold in await store.live()] == ["a/1"]
    assert await store.settle(an_entry("a/1")) == "booked"
    assert await store.live() == []
    assert await store.verify() == []
    await store.close()
