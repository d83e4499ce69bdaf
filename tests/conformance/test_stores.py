"""Every store passes `tollkeeper.testing.conformance`, and with it `tollkeeper.testing.corrections`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import apsw
import pytest
from msgspec import structs
from tests.shared_stores import shared_store

from tollkeeper.ledger import CELL_SUMS
from tollkeeper.stores import Booked, Corrected, Store
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.conformance import StoreContract
from tollkeeper.testing.corrections import corrected, current
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, KEEP_ALL, USD, a_hold, an_entry, booked, standing, usd
from tollkeeper.values import Budget, Entry, Grant, Hold, Scopes

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
        return shared_store(self.server, self.folder / "journal", *budgets, scope_cap=scope_cap)

    def corrupt(self, store: Store, what: What) -> None:
        with self.server.client() as client:
            for key in client.keys({"cell": "*:cells:day:project:*", "balance": "*:balance:*"}[what]):
                client.hincrby(key, {"cell": "fake|m|calls", "balance": "spent"}[what], 1)


class Turns:
    """Two processes' stores as one: each call goes to the other one than the call before, once what was booked can be read there.

    A hold is its own process's to reserve and to let go; that one may be the other than the one that settles it.
    """

    def __init__(self, *stores: Store) -> None:
        self._stores, self._turn = stores, cycle(stores)

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._turn), name)

    def _of(self, hold_id: str) -> Store:
        return self._stores[zlib.crc32(hold_id.encode()) % 2]

    async def reserve(self, hold: Hold) -> Grant:
        return await self._of(hold.id).reserve(hold)

    async def void(self, hold_id: str) -> None:
        await self._of(hold_id).void(hold_id)

    async def settle(self, entry: Entry) -> Booked:
        booked = await next(self._turn).settle(entry)
        await self._read()
        return booked

    async def correct(self, entry: Entry) -> Corrected:
        corrected = await next(self._turn).correct(entry)
        await self._read()
        return corrected

    async def expire(self, now_us: int) -> int:
        found = sum([await store.expire(now_us) for store in self._stores])
        await self._read()
        return found

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        budgets = tuple(budgets)
        for store in self._stores:
            await store.set_budgets(budgets)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()

    async def _read(self) -> None:
        """Wait until each has brought what it has booked to where the other one reads it."""
        for store in self._stores:
            async with store.snapshot():
                pass


class TestTwoRedisStores(TestRedisStore):
    """The same of two processes' stores by turns (B2, C8)."""

    async def open(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> Store:
        budgets = tuple(budgets)
        stores = [await TestRedisStore.open(self, budgets, scope_cap=scope_cap) for _ in range(2)]
        return Turns(*stores)  # type: ignore[return-value]

    async def test_late_settlement(self) -> None:
        """C2: who did not book the estimate itself is told "booked", and the difference counts; its hour is the hold's, as ever."""
        async with self.opened(usd(USD)) as store:
            await store.reserve(a_hold("a/1", 3 * DIME))
            await store.expire(AT_US + DAY_US)
            late = an_entry("a/1", tokens=7, at_us=AT_US)
            assert await store.settle(late) in ("booked", "late")
            assert await store.settle(late) == "repeated"
            assert (await standing(store)).spent == DIME
            assert [(each.revision, each.sign) for each in await booked(store)] == [(0, 1), (0, -1), (1, 1)]

    async def test_a_late_settlement_after_a_correction(self) -> None:
        """C2: the same where the estimate was corrected meanwhile."""
        async with self.opened(usd(USD)) as store:
            await store.reserve(a_hold("a/1", 3 * DIME))
            await store.expire(AT_US + DAY_US)
            (estimate,) = await current(store)
            assert await store.correct(corrected(estimate)) == "corrected"
            await store.settle(an_entry("a/1"))
            assert await store.settle(an_entry("a/1")) == "repeated"
            assert await current(store) == [structs.replace(an_entry("a/1"), revision=2)]
            assert (await standing(store)).spent == DIME

    async def test_five_times_at_once(self) -> None:
        """B2: the same event five times at once, by two processes, counts once; each may believe to have booked it."""
        async with self.opened(usd(USD)) as store:
            answers = await asyncio.gather(*(store.settle(an_entry("a/1")) for _ in range(5)))
            assert set(answers) == {"booked", "repeated"}
            assert (await standing(store)).spent == DIME

    async def test_corrections_at_once(self) -> None:
        """B2: corrections of two processes at once count once; both may believe to have made them."""
        async with self.opened(usd(USD)) as store:
            await store.settle(an_entry("a/1"))
            answers = await asyncio.gather(*(store.correct(corrected(an_entry("a/1"))) for _ in range(5)))
            assert set(answers) <= {"corrected", "repeated"}
            pair = (corrected(an_entry("b/1"), by=name) for name in ("ann", "bob"))
            await store.settle(an_entry("b/1"))
            await asyncio.gather(*map(store.correct, pair), return_exceptions=True)
            assert (await standing(store)).spent == 4 * DIME
            assert [each.revision for each in await current(store)] == [1, 1]

    async def test_what_stands(self) -> None:
        """A8: `current` has each call once; of two journals at one instant it does not matter which comes first."""
        async with self.opened() as store:
            for id in ("a/1", "b/1", "c/1"):
                await store.settle(an_entry(id))
            await store.correct(corrected(an_entry("a/1")))
            assert sorted((each.id, each.revision) for each in await current(store)) == [
                ("a/1", 1), ("b/1", 0), ("c/1", 0),
            ]  # fmt: skip


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
