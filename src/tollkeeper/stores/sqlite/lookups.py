"""What the owner of a ledger file looks up in it while it books."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import apsw

from tollkeeper.ledger import BalanceKey
from tollkeeper.stores.sqlite.file import open_reader, row_entry, rows, shape_names
from tollkeeper.stores.sqlite.writer import unwritable
from tollkeeper.values import Entry, ScopeKind


class Lookups:
    """Point queries on a connection of their own, in the thread of whoever asks: they never wait for a report.

    Methods raise StoreUnavailable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_reader(path)
        self._lock = Lock()  # a connection does not give way by itself: a thread that asks often would keep it

    def revisions(self, entry: Entry) -> list[Entry]:
        """What the file has of an entry's id, without reversals, oldest first."""
        return [row_entry(row) for row in self._find("revisions", project=entry.scopes.project, id=entry.id)]

    def spent(self, key: BalanceKey) -> int:
        """What a balance has spent."""
        names = shape_names(key.shape)
        found = self._find("balance", **names, project=key.project, id=key.id, start_us=key.start_us)
        return int(found[0][0]) if found else 0

    def ids(self, scope: ScopeKind, project: str, month_us: int) -> list[str]:
        """The ids of one scope that have a cell in a month."""
        return [row[0] for row in self._find("ids", scope=scope, project=project, month_us=month_us)]

    def close(self) -> None:
        """Let go of the file. Raises apsw.Error."""
        with self._lock:
            self._connection.close()

    def _find(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return rows(self._connection, name, **values)
        except apsw.Error as failure:
            raise unwritable(self._path, failure) from failure
