"""Reading a ledger file: reports, lookups and `verify`. Opens it read-only, also while its owner writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Final

import apsw

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import BalanceKey, CellKey, Period, Shape
from tollkeeper.stores import Cell, Difference
from tollkeeper.stores.sqlite_file import open_reader, row_entry, rows, shape_names
from tollkeeper.values import Entry, ScopeKind

_PAGE: Final = 1000


class SqliteReader:
    """Read-only queries on one connection; the slow ones run in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = Lock()
        self._reader = open_reader(path)

    def query(self, name: str, part: str | None = None, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query, in this thread, over the entries that the query `part` selects; one snapshot."""
        with self._reading:
            self._reader.execute("BEGIN")
            try:
                if part is not None:
                    rows(self._reader, part, **values)
                return rows(self._reader, name, **values)
            finally:
                self._reader.execute("ROLLBACK")

    async def _ask(self, name: str, part: str | None = None, **values: Any) -> list[tuple[Any, ...]]:
        try:
            return await asyncio.to_thread(self.query, name, part, **values)
        except apsw.Error as error:
            raise StoreUnavailable(f"store: {self._path} cannot be read: {error}") from error

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
        after = 0
        while found := await self._ask(
            "entries", from_us=from_us, to_us=to_us, project=project, after=after, most=_PAGE
        ):
            for row in found:
                yield row_entry(row)
            after = found[-1][0]

    async def entry(self, project: str, id: str) -> Entry | None:
        found = await self._ask("entry", project=project, id=id)
        return row_entry(found[0]) if found else None

    async def kept_since(self) -> int:
        return int(dict(await self._ask("marks"))["entry"])

    async def verify(self) -> list[Difference]:
        return await asyncio.to_thread(lambda: [*self._wrong_cells(), *self._wrong_balances()])

    def _wrong_cells(self) -> Iterator[Difference]:
        sides: dict[tuple[Any, ...], dict[str, str]] = {}
        for side, *row in self.query("wrong_cells", "part_rolled"):
            sides.setdefault(tuple(row[:7]), {})[side] = str(tuple(row[7:]))
        for key, values in sides.items():
            yield Difference("cell", str(key), values.get("stored", "absent"), values.get("entries", "absent"))

    def _wrong_balances(self) -> Iterator[Difference]:
        since = int(dict(self.query("marks"))["entry"])
        for *names, start_us, end_us in self.query("windows"):
            shape = Shape(*names)
            if start_us < since:
                continue  # some of its entries are pruned
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
        self._reader.close()


def _cells(found: list[tuple[Any, ...]]) -> list[Cell]:
    return [(CellKey(*row[:7]), row[7:]) for row in found]
