"""A process's journal: a ledger file of its own in a folder, in which an entry is safe before it is anywhere else.

The embedded ledger without budgets, and what whoever carries its entries to a shared place needs: their places in order, which
are never used again, and the sums of those that are pruned. The file's name is its id, which stands in the file too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import randbits
from typing import Any, Self

import apsw

from tollkeeper.errors import StoreCorrupt, StoreError, StoreOwned
from tollkeeper.ledger import CellKey
from tollkeeper.stores import Booked, Cell, Corrected, Kept, Retention
from tollkeeper.stores.sqlite.file import QUERIES, open_reader, owned, row_entry, rows, unusable
from tollkeeper.stores.sqlite.news import Placed
from tollkeeper.stores.sqlite.reader import SqliteReader
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.values import Entry, Grant, Hold

log = logging.getLogger("tollkeeper")
_ID = re.compile(r"[0-7][0-9a-f]{15}")  # 63 bits: a mark of the ledger's file


class Journal:
    """A journal that this process owns; may be used from several threads, each with its own event loop.

    `on_booked` hears of each entry as a SqliteStore says. Holds that are found are a dead owner's: they are booked at their
    estimate, up to the first `last`.
    """

    def __init__(self, path: Path, *, on_booked: Callable[[Placed], None] | None = None) -> None:
        if _ID.fullmatch(path.stem) is None:
            raise StoreCorrupt(
                f"store: {path} is not named as a journal, <16 hex digits>.sqlite; give it its name again, or move it away"
            )
        self.path = path
        self.id = path.stem
        self._store = SqliteStore(path, on_booked=on_booked, journal=self.id)

    @classmethod
    def open(cls, path: Path, *, on_booked: Callable[[Placed], None] | None = None) -> Self:
        """Own a journal. Raises StoreOwned, StoreCorrupt (also where its name is not its id), StoreUnavailable."""
        return cls(path, on_booked=on_booked)

    @classmethod
    def adopt(cls, folder: Path, *, on_booked: Callable[[Placed], None] | None = None) -> Self:
        """Own the first journal in the folder that nobody has, else a new one; what cannot be used is logged and left as it is."""
        for path in files(folder):
            try:
                return cls(path, on_booked=on_booked)
            except StoreOwned:
                continue
            except StoreError as error:
                log.warning("a journal is passed over: %s", error)
        while True:
            try:
                return cls(folder / f"{randbits(63):016x}.sqlite", on_booked=on_booked)
            except StoreOwned:  # adopted by another process, before this one had it
                continue

    @property
    def last(self) -> int:
        """Seq of the newest entry that is safe, pruned or not; 0: there has been none."""
        return self._store.last

    @property
    def trouble(self) -> str | None:
        """Why writes fail just now; None: they do not."""
        return self._store.trouble

    # ── the ledger ──

    async def reserve(self, hold: Hold) -> Grant:
        """Write down a hold: should this process die, the next owner books it at its estimate."""
        return await self._store.reserve(hold)

    async def void(self, hold_id: str) -> None:
        """Let go of a hold for which nothing is owed."""
        await self._store.void(hold_id)

    async def settle(self, entry: Entry) -> Booked:
        """Book an entry and end its hold; durable when it returns."""
        return await self._store.settle(entry)

    async def correct(self, entry: Entry) -> Corrected:
        """Put an entry in the place of the one that stands here under its id."""
        return await self._store.correct(entry)

    async def add(self, entries: tuple[Entry, ...]) -> None:
        """Write entries of one id as they are: what they are was decided by more than this journal knows. Raises Conflict."""
        await self._store.add(entries)

    async def expire(self, now_us: int) -> int:
        """Book every hold past its deadline at its estimate; returns how many."""
        return await self._store.expire(now_us)

    async def live(self) -> list[Hold]:
        """Holds that stand."""
        return await self._store.live()

    async def entry(self, project: str, id: str) -> Entry | None:
        """The entry of an attempt as it stands here."""
        return await self._store.entry(project, id)

    async def known(self, names: Collection[tuple[str, str]]) -> dict[tuple[str, str], Entry]:
        """The same of many at once."""
        return await self._store.known(names)

    async def kept_since(self, what: Kept = "entry") -> int:
        """Entries, or cells of a period, before this instant may have been pruned; 0: none have."""
        return await self._store.kept_since(what)

    async def prune(self, now_us: int, retention: Retention, applied_upto: int) -> int:
        """Drop what has outlived its retention, but no entry whose seq is above `applied_upto`; returns how many rows."""
        return await self._store.prune(now_us, retention, applied_upto)

    async def close(self) -> None:
        """Finish what is under way and let go: the file is free for the next process."""
        await self._store.close()

    # ── what is carried on; in the thread of whoever asks ──

    def rows(self, after: int, upto: int, most: int) -> Placed:
        """The first `most` entries of (after, upto], with their seq, in that order."""
        return _placed(self._store.query("rows", after=after, upto=upto, most=most))

    def project_rows(self, project: str, after: int, upto: int, most: int) -> Placed:
        """Those of one project. All pages together read the file once: for many projects, read `rows`."""
        return _placed(self._store.query("project_rows", project=project, after=after, upto=upto, most=most))

    def projects(self) -> dict[str, int]:
        """Every project that has entries here, and the seq of its newest one; reads an index of the whole file."""
        return dict(self._store.query("projects"))

    def before(self) -> Iterator[Cell]:
        """The sums that `rows` cannot give any more: cells of periods before `kept_since("entry")`, project by project.

        Without what entries of that time add that are still here, as late ones and those that were not applied: these cells and
        the cells of all `rows` are together those of every entry that ever was, each counted once. Prune nothing meanwhile.
        """
        reader = open_reader(self.path)
        try:
            reader.execute("BEGIN")
            rows(reader, "part_older")
            for row in reader.execute(QUERIES["pruned"]):
                if any(sums := row[7:]):
                    yield CellKey(*row[:7]), sums
        except apsw.Error as failure:
            raise unusable(self.path, failure) from failure
        finally:
            reader.close(True)


def orphans(folder: Path, own: Path | None = None) -> list[Path]:
    """Journals in the folder that nobody has now: of dead processes."""
    return [path for path in files(folder) if path != own and owned(path) is None]


def neighbours(folder: Path) -> list[str]:
    """Ids of the journals in the folder that a process has now."""
    return [path.stem for path in files(folder) if owned(path) is not None]


def read_journals(folder: Path) -> list[SqliteReader]:
    """A read-only view of each journal in the folder, owned or not. Raises StoreUnavailable, StoreCorrupt for the first bad one."""
    return [SqliteReader(path) for path in files(folder)]


@contextmanager
def looking(path: Path) -> Iterator[SqliteReader]:
    """A read-only view of one. Raises StoreUnavailable, StoreCorrupt."""
    reader = SqliteReader(path)
    try:
        yield reader
    finally:
        reader.let_go()


def is_journal(name: str) -> bool:
    """Whether a name is one that a journal can have."""
    return _ID.fullmatch(name) is not None


def files(folder: Path) -> list[Path]:
    """Every journal in the folder."""
    return sorted(folder.glob("*.sqlite"))


def _placed(found: list[tuple[Any, ...]]) -> Placed:
    return [(row[0], row_entry(row)) for row in found]
