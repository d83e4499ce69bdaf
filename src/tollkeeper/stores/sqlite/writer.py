"""The one connection that writes a ledger file: batches, cells, the balances of shapes, pruning, and a disk that fails.

Methods raise apsw.Error; then nothing of that call is in the file. One thread uses it at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import msgspec

from tollkeeper.book import Balance
from tollkeeper.errors import StoreCorrupt, StoreError, StoreUnavailable
from tollkeeper.ledger import BalanceKey, Shape
from tollkeeper.stores import Retention, horizons
from tollkeeper.stores.sqlite.file import balance_row, encode, entry_row, open_writer, rows, shape_names
from tollkeeper.stores.sqlite.reader import windows_since
from tollkeeper.values import Budget, Entry, Hold

#: Entries that the cells may be behind: readers add them, so this is about their speed alone.
ROLL_EVERY: Final = 1024
#: Balances of windows that ended longer ago than this are dropped: nothing can be reserved in them any more.
_BALANCE_KEEP_US: Final = 62 * 86_400_000_000
#: Before the name of a thing that is done once, among the marks.
_DONE: Final = "done:"
_hold = msgspec.json.Decoder(Hold)


def nothing(safe: bool) -> None:
    """What most writes have to do when they have ended."""


class Write(msgspec.Struct, eq=False):
    """One caller's rows, written together with those of everyone else who waits."""

    waiters: list[asyncio.Future[None]]
    done: Callable[[bool], None]  #: told under the lock whether it is safe, before the waiters are
    holds: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    first: int = 0  #: seq of the first of `entries` once they are safe; the others follow it
    touched: Sequence[tuple[Balance, int]] = ()
    job: Callable[[], None] | None = None  #: run by the writer's thread between two batches, instead of rows


class Writer:
    """`trouble`: why writes fail just now; None: they do not. `last`: seq of the newest entry that the file has ever had."""

    def __init__(self, path: Path) -> None:
        self.trouble: str | None = None
        self.last = 0
        self._path = path
        self._connection = open_writer(path)
        self._number = self._read_marks()
        self._behind = 0  # entries that the cells do not hold yet
        self._lost = False  # the connection could not be opened again
        self._doubtful: list[Write] = []  # the batch after which it could not
        self._found: list[Write] = []

    def apply(self, writes: Iterable[Write]) -> None:
        """Write a batch: all of it is safe when this returns, and each write knows the place of its first entry."""
        self._number += 1
        last = self.last
        balances: dict[Balance, int] = {}
        for write in writes:
            write.first = last + 1
            last += len(write.entries)
            for balance, amount in write.touched:
                balances[balance] = balances.get(balance, 0) + amount
        doc = {
            "number": self._number,
            "last": self.last,
            "holds": [row for write in writes for row in write.holds],
            "gone": [id for write in writes for id in write.gone],
            "entries": [entry_row(entry) for write in writes for entry in write.entries],
            "balances": [(*balance_row(balance.key, balance.end_us), amount) for balance, amount in balances.items()],
        }
        self._connection.execute("INSERT INTO batch (doc) VALUES (jsonb(?))", (encode(doc).decode(),))
        self._behind += last - self.last
        self.last = last
        self.trouble = None

    def roll(self, behind: int = 0) -> None:
        """Bring the cells up to the newest entry, if they are more than `behind` entries behind it."""
        if self._behind < behind:
            return
        try:
            self._connection.execute("INSERT INTO roll VALUES (NULL)")
            self._behind = 0
            self.trouble = None
        except apsw.Error as failure:  # readers add what is not rolled: nothing is wrong but slower
            self.trouble = str(unwritable(self._path, failure))

    # ── a disk that fails ──

    def failed(self, writes: list[Write], failure: apsw.Error) -> StoreUnavailable | None:
        """After a batch raised: whether it is in the file all the same (None) is only known from a new connection."""
        number = self._reopen()
        error = None if number == self._number else unwritable(self._path, failure)
        self._doubtful = writes if number < 0 else []
        self.trouble = None if error is None else str(error)
        return error

    def works(self) -> bool:
        """Whether there is a connection to write with; tries for a new one where the last try failed."""
        if not self._lost:
            return True
        number = self._reopen()
        if number == self._number:
            self._found, self._doubtful = self._doubtful, []
        return number >= 0

    def found(self) -> list[Write]:
        """The entries of a batch that was told as failed and that a new connection found in the file; once."""
        found, self._found = self._found, []
        return [Write([], nothing, entries=each.entries, first=each.first) for each in found]

    def _reopen(self) -> int:
        """The last batch in the file, synced."""
        self._lost = True
        try:
            self._connection.close(True)
            self._connection = open_writer(self._path)
            self._connection.execute("PRAGMA quick_check(1)").fetchall()
            self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
            number = self._read_marks()
        except (apsw.Error, StoreError):
            return -1
        self._lost = False
        return number

    def _read_marks(self) -> int:
        """Where the file stands: its last batch, and its last entry for `last`."""
        marks = dict(rows(self._connection, "marks"))
        self.last = int(marks["last"])
        return int(marks["batch"])

    def identify(self, id: str) -> None:
        """Make a new file the journal of this id. Raises StoreCorrupt for another one's, and for a ledger that is none."""
        known, wanted = dict(rows(self._connection, "marks")).get("journal"), int(id, 16)
        if known is None and not self.last:
            self._connection.execute("INSERT INTO mark VALUES ('journal', ?)", (wanted,))
        elif known != wanted:
            what = "a ledger and no journal" if known is None else f"the journal {known:016x}: a copy, or renamed"
            raise StoreCorrupt(
                f"store: {self._path} is {what}; nothing was changed; move it out of the journals' folder"
            )

    # ── between batches ──

    def holds(self) -> list[Hold]:
        """Holds in the file."""
        return [_hold.decode(doc) for (doc,) in rows(self._connection, "holds")]

    def turns(self) -> dict[str, int]:
        """What was done once, and until when that counts."""
        marks = rows(self._connection, "marks")
        return {name.removeprefix(_DONE): value for name, value in marks if name.startswith(_DONE)}

    def done(self, what: str, until_us: int) -> None:
        """Write down that it was."""
        sql = "INSERT INTO mark VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
        self._connection.execute(sql, (_DONE + what, until_us))

    def unlimited(self) -> tuple[Budget, ...]:
        """Budgets of the shapes that have balances, without limits."""
        return tuple(
            Budget(scope=scope, measure=measure, window=window, timezone=timezone, limit=None)
            for scope, measure, window, timezone in rows(self._connection, "shapes")
        )

    def set_shapes(self, want: set[Shape]) -> None:
        """Keep the balances of these shapes, and of no others."""
        had = {Shape(*row) for row in rows(self._connection, "shapes")}
        where = "scope = :scope AND measure = :measure AND period = :period AND timezone = :timezone"
        with self._connection:
            for shape in had - want:
                for table in ("shape", "balance"):
                    self._connection.execute(f"DELETE FROM {table} WHERE {where}", shape_names(shape))  # noqa: S608 ours
            for shape in want - had:
                self._fill(shape)

    def _fill(self, shape: Shape) -> None:
        """Balances of a new shape, from the entries of every window that still has some."""
        ask = partial(rows, self._connection)
        self._connection.execute("INSERT INTO shape VALUES (:scope, :measure, :period, :timezone)", shape_names(shape))
        for start_us, end_us in windows_since(ask, shape, dict(ask("marks"))["balance"]):
            for project, id, spent in ask(
                "spent", scope=shape.scope, measure=shape.measure, start_us=start_us, end_us=end_us
            ):
                row = (*balance_row(BalanceKey(shape, project, id, start_us), end_us), spent)
                self._connection.execute("INSERT INTO balance VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def prune(self, now_us: int, retention: Retention, upto: int | None = None) -> int:
        """Drop what has outlived its retention, but no entry after `upto`; returns how many rows."""
        since = horizons(now_us, retention)
        execute = self._connection.execute
        with self._connection:
            execute("INSERT INTO roll VALUES (NULL)")
            before = self._connection.total_changes()
            for what, horizon_us in since.items():
                if what == "entry":
                    execute("DELETE FROM entry WHERE at_us < ?1 AND (?2 IS NULL OR seq <= ?2)", (horizon_us, upto))
                else:
                    execute("DELETE FROM cell WHERE period = ? AND start_us < ?", (what, horizon_us))
            since["balance"] = max(0, now_us - _BALANCE_KEEP_US)
            execute("DELETE FROM balance WHERE end_us < ?", (since["balance"],))
            execute("DELETE FROM mark WHERE name GLOB ? AND value < ?", (_DONE + "*", now_us))
            changed = self._connection.total_changes() - before
            for what, horizon_us in since.items():
                execute("UPDATE mark SET value = max(value, ?) WHERE name = ?", (horizon_us, what))
        self._behind = 0
        return changed

    def close(self) -> None:
        """Let go, whatever the disk says: what was acknowledged is safe."""
        self._connection.close(True)


def unwritable(path: Path, failure: Exception) -> StoreUnavailable:
    """What a caller is told when the disk fails."""
    return StoreUnavailable(f"the ledger {path.name} cannot be written ({failure}); check the disk's space and health")
