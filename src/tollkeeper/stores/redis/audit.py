"""Entries in Redis against the journals of this host: whether what was acknowledged here is counted there, by id.

What another host books is not known here, so more may stand in Redis than the journals have, never less. An id that several
journals have counts once; a settlement wins over an estimate. What somebody asked for (`by`) is compared apart from what was
booked: it stands, or a newer one does. Blocks: for threads; some 250 bytes of memory an entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tollkeeper.stores import Difference
from tollkeeper.stores.redis.apply import Shared, blocks_of
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.batch import Unit, units_of
from tollkeeper.stores.redis.keys import digest_of, tag_of
from tollkeeper.stores.sqlite.file import row_entry
from tollkeeper.stores.sqlite.journal import files, looking
from tollkeeper.stores.sqlite.reader import SqliteReader
from tollkeeper.values import Entry

_PAGE: Final = 2_000


class Audit(msgspec.Struct):
    journals: int = 0
    entries: int = 0  #: ids that were compared
    waiting: int = 0  #: settlements and corrections that Redis does not have yet: no difference
    differences: list[Difference] = []


class _Wanted:
    """What may stand under an id, by the journals: digests of its settlements, else estimates; and its newest corrections."""

    __slots__ = ("asked", "digests", "revision", "settled")

    def __init__(self) -> None:
        self.settled = False
        self.digests: set[str] = set()
        self.revision = 0  #: the newest that somebody asked for; 0: nobody has
        self.asked: dict[
            str, str | None
        ] = {}  #: its digest → that of the booked entry which it corrects; None: of none

    def add(self, unit: Unit) -> None:
        entry = unit.entry
        if entry.by is not None:
            if entry.revision > self.revision:
                self.revision, self.asked = entry.revision, {}
            if entry.revision == self.revision:
                old = unit.reversal
                self.asked[digest_of(entry)] = None if old is None or old.by is not None else digest_of(old)
            return
        settled = entry.outcome != "expired"
        if settled and not self.settled:
            self.settled, self.digests = True, set()
        if settled == self.settled:
            self.digests.add(digest_of(entry))


class _Found:
    """What Redis has under an id: the newest that was booked, and the newest that somebody asked for."""

    __slots__ = ("asked", "booked")

    def __init__(self) -> None:
        self.booked: Entry | None = None
        self.asked: Entry | None = None

    def add(self, entry: Entry) -> None:
        if entry.by is None:
            if self.booked is None or entry.revision >= self.booked.revision:
                self.booked = entry
        elif self.asked is None or entry.revision >= self.asked.revision:
            self.asked = entry


def audit(shared: Shared, folder: Path, since_us: int) -> Audit:
    """Compare what both keep: entries since an instant. Raises StoreError."""
    found = Audit()
    wanted: dict[str, dict[str, _Wanted]] = {}  # project → id → what may stand there
    for path in files(folder):
        found.journals += 1
        with looking(path) as reader:
            for unit, applied in _units(reader, shared, path.stem):
                if not applied:
                    found.waiting += 1
                elif unit.entry.at_us >= since_us:
                    ids = wanted.setdefault(unit.entry.scopes.project, {})
                    ids.setdefault(unit.entry.id, _Wanted()).add(unit)
    newest: dict[str, int] = {}  # journal → the last row that Redis has of it
    for project, ids in wanted.items():
        found.entries += len(ids)
        stands: dict[str, _Found] = {}
        for block in blocks_of(shared, tag_of(project)):
            newest[block.journal] = max(newest.get(block.journal, 0), block.rows[-1][0])
            for _, entry in block.rows:
                if entry.sign > 0 and entry.id in ids:
                    stands.setdefault(entry.id, _Found()).add(entry)
        for id, each in ids.items():
            there = stands.get(id, _Found())
            found.differences += _booked(f"{project}/{id}", there.booked, each)
            found.differences += _asked(f"{project}/{id}", there, each)
    for path in files(folder):
        with looking(path) as reader:
            last = int(dict(reader.query("marks"))["last"])
        if newest.get(path.stem, 0) > last:
            stored, file = f"row {newest[path.stem]}", f"row {last} is the file's last: it is an old copy"
            found.differences.append(Difference("journal", path.stem, stored, file))
    return found


def _units(reader: SqliteReader, shared: Shared, journal: str) -> Iterator[tuple[Unit, bool]]:
    """What a journal has, in order, and whether Redis has it: by its cursors as they are when a project first comes up."""
    cursors: dict[str, int] = {}
    at = 0
    while rows := reader.query("rows", after=at, upto=2**62, most=_PAGE):
        placed = [(row[0], row_entry(row)) for row in rows]
        if placed[-1][1].sign < 0 and len(placed) > 1:  # a reversal goes with what comes after it
            placed.pop()
        at = placed[-1][0]
        for unit in units_of(placed):
            tag = tag_of(unit.entry.scopes.project)
            if tag not in cursors:
                cursors[tag] = int(shared.link.run(Ask(("HGET", shared.keys.cursor(tag), journal)))[0] or 0)
            yield unit, unit.seq <= cursors[tag]


def _booked(name: str, entry: Entry | None, wanted: _Wanted) -> list[Difference]:
    if not wanted.digests:  # booked elsewhere, and only corrected here
        return []
    if entry is None:
        return [Difference("entry", name, "nothing", "a journal has it, and it was applied")]
    if digest_of(entry) in wanted.digests:
        return []
    if entry.outcome == "expired" and wanted.settled:
        return [Difference("entry", name, "its estimate", "a journal has what was settled")]
    if entry.outcome != "expired" and not wanted.settled:
        return []  # settled elsewhere
    return [Difference("entry", name, _shown(entry), "journals have other contents under this id")]


def _asked(name: str, there: _Found, wanted: _Wanted) -> list[Difference]:
    entry, booked = there.asked, there.booked
    of = set(wanted.asked.values())
    if not of or (booked is not None and None not in of and digest_of(booked) not in of):
        return []  # it was of something else than what stands: refused and told when it was applied
    if entry is None or entry.revision < wanted.revision:
        stored = "nothing" if (known := entry or booked) is None else _shown(known)
        return [Difference("entry", name, stored, f"a journal has its correction, revision {wanted.revision}")]
    if entry.revision == wanted.revision and digest_of(entry) not in wanted.asked:
        return [Difference("entry", name, _shown(entry), "journals have another correction of this id")]
    return []


def _shown(entry: Entry) -> str:
    nanos = entry.charge.amount_nanos
    return f"{'an unknown amount' if nanos is None else f'{nanos} nanos'}, {entry.usage.tokens} tokens"
