"""Reading a ledger file: reports, lookups and `verify`. Opens it read-only, also while its owner writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

import apsw

from tollkeeper.ledger import BalanceKey, CellKey, Period, Shape, window_of
from tollkeeper.stores import Cell, Difference, Kept, Size
from tollkeeper.stores.sqlite.file import encode, open_reader, row_entry, rows, shape_names, unusable
from tollkeeper.values import Entry, ScopeKind

_PAGE: Final = 1000


class SqliteReader:
    """Read-only queries on one connection; the slow ones run in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = Lock()
        self._reader = open_reader(path)
        self._snapshots = 0

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._share_snapshot, 1)
        try:
            yield
        finally:
            await asyncio.to_thread(self._share_snapshot, -1)

    def _share_snapshot(self, more: int) -> None:
        """The first one begins it, the last one ends it: those who overlap see the same instant."""
        with self._reading:
            self._snapshots += more
            if self._snapshots == (more > 0):
                with _told(self._path):
                    self._reader.execute("BEGIN" if more > 0 else "ROLLBACK")

    def query(self, name: str, part: str | None = None, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query, in this thread, over the entries that the query `part` selects; one snapshot."""
        with self._reading, _told(self._path):
            own = not self._snapshots
            if own:
                self._reader.execute("BEGIN")
            try:
                if part is not None:
                    rows(self._reader, part, **values)
                return rows(self._reader, name, **values)
            finally:
                if own:
                    self._reader.execute("ROLLBACK")

    async def _ask(self, name: str, part: str | None = None, **values: Any) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(self.query, name, part, **values)

    async def cells(
        self,
        scope: ScopeKind,
        period: Period,
        from_us: int,
        to_us: int,
        project: str | None = None,
        id: str | None = None,
    ) -> list[Cell]:
        return _cells(
            await self._ask(
                "cells",
                "part_unrolled",
                scope=scope,
                period=period,
                from_us=from_us,
                to_us=to_us,
                project=project,
                id=id,
            )
        )

    async def tally(
        self, scope: ScopeKind, from_us: int, to_us: int, project: str | None = None, id: str | None = None
    ) -> list[Cell]:
        return _cells(
            await self._ask("tally", "part_between", scope=scope, from_us=from_us, to_us=to_us, project=project, id=id)
        )

    async def entries(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        async for entry in self._pages("entries", from_us, to_us, project):
            yield entry

    async def current(self, from_us: int, to_us: int, project: str | None = None) -> AsyncIterator[Entry]:
        async for entry in self._pages("current", from_us, to_us, project):
            yield entry

    async def _pages(self, name: str, from_us: int, to_us: int, project: str | None) -> AsyncIterator[Entry]:
        """Entries are only ever added: what was there at the first page can be read as it was then by any later one."""
        ((first, last),) = await self._ask("places", from_us=from_us, to_us=to_us)
        after = 0 if first is None else first - 1
        names = {"from_us": from_us, "to_us": to_us, "project": project, "last": last, "most": _PAGE}
        while found := await self._ask(name, after=after, **names):
            for row in found:
                yield row_entry(row)
            after = found[-1][0]

    async def entry(self, project: str, id: str) -> Entry | None:
        found = await self._ask("entry", project=project, id=id)
        return row_entry(found[0]) if found else None

    async def known(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Entry]:
        found = await self._ask("known", names=encode(names).decode()) if names else []
        return {(entry.scopes.project, entry.id): entry for entry in map(row_entry, found)}

    async def spent(self, key: BalanceKey) -> int:
        names = shape_names(key.shape)
        found = await self._ask("balance", **names, project=key.project, id=key.id, start_us=key.start_us)
        if found:
            return int(found[0][0])
        _, end_us = window_of(key.shape.window, key.shape.timezone, key.start_us)
        rest = await asyncio.to_thread(self._spent, key.shape, key.start_us, end_us)
        return next((int(spent) for project, id, spent in rest if (project, id) == (key.project, key.id)), 0)

    async def kept_since(self, what: Kept = "entry") -> int:
        return int(dict(await self._ask("marks"))[what])

    async def size(self) -> Size:
        return Size(*(await self._ask("size"))[0])

    async def verify(self) -> list[Difference]:
        async with self.snapshot():
            return await asyncio.to_thread(lambda: [*self._wrong_cells(), *self._wrong_balances()])

    def _wrong_cells(self) -> Iterator[Difference]:
        sides: dict[tuple[Any, ...], dict[str, str]] = {}
        for side, *row in self.query("wrong_cells", "part_rolled"):
            sides.setdefault(tuple(row[:7]), {})[side] = str(tuple(row[7:]))
        for key, values in sides.items():
            yield Difference("cell", str(key), values.get("stored", "absent"), values.get("entries", "absent"))

    def _wrong_balances(self) -> Iterator[Difference]:
        marks = dict(self.query("marks"))
        found = {(Shape(*names), start_us, end_us) for *names, start_us, end_us in self.query("windows")}
        for shape in (Shape(*names) for names in self.query("shapes")):
            found |= {(shape, *window) for window in windows_since(self.query, shape, marks["balance"])}
        for shape, start_us, end_us in sorted(found):
            if start_us < marks["entry"] or end_us < marks["balance"]:
                continue  # some of its entries are pruned, or it is itself
            stored = {
                (project, id): spent
                for project, id, spent in self.query("balances", **shape_names(shape), start_us=start_us)
            }
            right = {(project, id): spent for project, id, spent in self._spent(shape, start_us, end_us)}
            for key in sorted(stored.keys() | right.keys()):
                if stored.get(key, 0) != right.get(key, 0):
                    name = str(BalanceKey(shape, *key, start_us))
                    yield Difference("balance", name, str(stored.get(key, 0)), str(right.get(key, 0)))

    def _spent(self, shape: Shape, start_us: int, end_us: int) -> list[tuple[Any, ...]]:
        return self.query("spent", scope=shape.scope, measure=shape.measure, start_us=start_us, end_us=end_us)

    async def close(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Close the connection that reads."""
        with self._reading:
            self._reader.close(True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except apsw.Error as failure:
        raise unusable(path, failure) from failure


def windows_since(ask: Callable[..., list[tuple[Any, ...]]], shape: Shape, from_us: int) -> Iterator[tuple[int, int]]:
    """Start and end of each window of a shape that has entries, from the one of `from_us` on."""
    next_us, _ = window_of(shape.window, shape.timezone, from_us)
    while (first_us := ask("first", from_us=next_us)[0][0]) is not None:
        start_us, next_us = window_of(shape.window, shape.timezone, first_us)
        yield start_us, next_us


def _cells(found: list[tuple[Any, ...]]) -> list[Cell]:
    return [(CellKey(*row[:7]), row[7:]) for row in found]
