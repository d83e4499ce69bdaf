"""The ledger in memory: the model that every store must equal. For tests and trials; it forgets when the process ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager

from msgspec import structs

from tollkeeper.book import Book
from tollkeeper.ledger import (
    CELL_SUMS,
    PERIODS,
    BalanceKey,
    CellKey,
    Census,
    Period,
    cells_of,
    correcting,
    expired,
    settling,
    spent_by,
)
from tollkeeper.stores import (
    Booked,
    Cell,
    Condition,
    Corrected,
    Difference,
    Kept,
    Retention,
    Size,
    differences,
    horizons,
    is_named,
)
from tollkeeper.stores.turns import Turns
from tollkeeper.values import Budget, Entry, Grant, Hold, ScopeKind, Scopes, Standing

_ZERO = (0,) * len(CELL_SUMS)


class MemoryStore:
    """Entries in a list, cells and balances as dictionaries of sums."""

    trouble: str | None = None
    condition: Condition | None = None

    def __init__(self, budgets: Iterable[Budget] = (), *, scope_cap: int = 10_000) -> None:
        self._entries: list[Entry] = []
        self._by_id: dict[tuple[str, str], list[Entry]] = {}  # its revisions, without reversals
        self._cells: dict[CellKey, tuple[int, ...]] = {}
        self._spent: Counter[BalanceKey] = Counter()
        self._census = Census(scope_cap, self._census_ids)
        self._book = Book(budgets, load=lambda key: self._spent[key])
        self._since = dict.fromkeys((*PERIODS, "entry"), 0)
        self._turns = Turns()

    async def reserve(self, hold: Hold) -> Grant:
        return self._book.reserve(hold)

    async def void(self, hold_id: str) -> None:
        self._book.release(hold_id)

    async def settle(self, entry: Entry) -> Booked:
        known = self._by_id.get((entry.scopes.project, entry.id), ())
        added = settling(known, entry)
        if self._book.ends(entry):
            self._book.release(entry.id)
        if not known:
            self._append(structs.replace(entry, other=self._census.place(entry)))
            return "booked"
        for each in added:
            self._append(each)
        return "late" if added else "repeated"

    async def correct(self, entry: Entry) -> Corrected:
        added = correcting(self._by_id.get((entry.scopes.project, entry.id), ()), entry)
        for each in added:
            self._append(each)
        return "corrected" if added else "repeated"

    async def expire(self, now_us: int) -> int:
        due = self._book.due(now_us)
        for hold in due:
            await self.settle(expired(hold))
        return len(due)

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        return self._book.standings(scopes, model, at_us)

    async def set_budgets(self, budgets: Iterable[Budget]) -> None:
        old = set(self._book.shapes)
        self._book.set_budgets(budgets)
        new = [shape for shape in self._book.shapes if shape not in old]
        self._spent = Counter({key: sum_ for key, sum_ in self._spent.items() if key.shape in old})
        for key, amount in (pair for entry in self._entries for pair in spent_by(new, entry)):
            self._spent[key] += amount
        self._book.forget()

    async def live(self) -> list[Hold]:
        return [live.hold for live in self._book.live.values()]

    async def claim(self, what: str, now_us: int, for_us: int) -> bool:
        return self._turns.claim(what, now_us, for_us)

    async def done(self, what: str, until_us: int) -> None:
        self._turns.done(what, until_us)

    async def cells(
        self,
        scope: ScopeKind,
        period: Period,
        from_us: int,
        to_us: int,
        project: str | None = None,
        id: str | None = None,
    ) -> list[Cell]:
        def wanted(key: CellKey) -> bool:
            return (
                key.scope == scope
                and key.period == period
                and from_us <= key.start_us < to_us
                and is_named(key, project, id)
            )

        return sorted((key, sums) for key, sums in self._cells.items() if wanted(key))

    async def tally(
        self, scope: ScopeKind, from_us: int, to_us: int, project: str | None = None, id: str | None = None
    ) -> list[Cell]:
        found: dict[CellKey, tuple[int, ...]] = {}
        for entry in self._entries:
            if from_us <= entry.at_us < to_us:
                for key, sums in cells_of(entry):
                    if key.period == "hour" and key.scope == scope and is_named(key, project, id):
                        _add(found, key._replace(start_us=from_us), sums)
        return sorted(found.items())

    async def entries(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        for entry in list(self._entries):
            if from_us <= entry.at_us < to_us and project in (None, entry.scopes.project):
                yield entry

    async def current(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        standing = {id(revisions[-1]) for revisions in self._by_id.values()}
        for entry in [each for each in self._entries if id(each) in standing]:
            if from_us <= entry.at_us < to_us and project in (None, entry.scopes.project):
                yield entry

    async def entry(self, project: str, id: str) -> Entry | None:
        revisions = self._by_id.get((project, id))
        return None if revisions is None else revisions[-1]

    async def known(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Entry]:
        return {name: self._by_id[name][-1] for name in names if name in self._by_id}

    async def verify(self) -> list[Difference]:
        cells: dict[CellKey, tuple[int, ...]] = {}
        spent: Counter[BalanceKey] = Counter()
        for entry in self._entries:
            for key, sums in cells_of(entry):
                _add(cells, key, sums)
            for balance, amount in spent_by(self._book.shapes, entry):
                spent[balance] += amount
        kept = {key: sums for key, sums in self._cells.items() if self._whole(key)}
        shapes = self._book.shapes
        stored, right = (
            {key: sum_ for key, sum_ in sums.items() if key.start_us >= self._since["entry"] and key.shape in shapes}
            for sums in (self._spent, spent)
        )
        return [
            *differences("cell", kept, {key: sums for key, sums in cells.items() if self._whole(key)}, _ZERO),
            *differences("balance", stored, right, 0),
        ]

    def _whole(self, key: CellKey) -> bool:
        return key.start_us >= max(self._since[key.period], self._since["entry"])

    async def spent(self, key: BalanceKey) -> int:
        if key.shape in self._book.shapes:
            return self._spent[key]
        return sum(
            amount for entry in self._entries for each, amount in spent_by((key.shape,), entry) if each == key
        )  # fmt: skip

    async def kept_since(self, what: Kept = "entry") -> int:
        return self._since[what]

    async def size(self) -> Size:
        return Size(len(self._entries), len(self._cells), len(self._spent))

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        yield  # nothing here waits, so nothing changes meanwhile

    async def prune(self, now_us: int, retention: Retention) -> int:
        dropped = 0
        for what, horizon_us in horizons(now_us, retention).items():
            self._since[what] = max(self._since[what], horizon_us)
        for key in [key for key in self._cells if key.start_us < self._since[key.period]]:
            del self._cells[key]
            dropped += 1
        kept = [entry for entry in self._entries if entry.at_us >= self._since["entry"]]
        dropped += len(self._entries) - len(kept)
        self._entries = kept
        self._by_id = {key: each for key, each in self._by_id.items() if each[-1].at_us >= self._since["entry"]}
        return dropped

    async def close(self) -> None:
        pass

    def _census_ids(self, scope: ScopeKind, project: str, month_us: int) -> list[str]:
        keys = (key for key in self._cells if (key.period, key.scope, key.start_us) == ("month", scope, month_us))
        return [
            key.project if scope == "project" else key.id
            for key in keys
            if scope == "project" or key.project == project
        ]

    def _append(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.sign > 0:
            self._by_id.setdefault((entry.scopes.project, entry.id), []).append(entry)
        for key, sums in cells_of(entry):
            _add(self._cells, key, sums)
        touched = self._book.touched(entry)
        for balance, amount in spent_by(self._book.shapes, entry):
            self._spent[balance] += amount
        self._book.booked(touched)


def _add(cells: dict[CellKey, tuple[int, ...]], key: CellKey, sums: tuple[int, ...]) -> None:
    cells[key] = tuple(map(int.__add__, cells.get(key, _ZERO), sums))
