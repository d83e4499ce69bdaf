"""Entries in Redis against the journals of this host: whether what was acknowledged here is counted there, by id.

What another host books is not known here, so more may stand in Redis than the journals have, never less. An id that several
journals have counts once; a settlement wins over an estimate. Blocks: for threads; some 200 bytes of memory an entry.
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
    """What may stand under an id, by the journals: digests of settlements and corrections, else of estimates."""

    __slots__ = ("digests", "settled")

    def __init__(self) -> None:
        self.settled = False
        self.digests: set[str] = set()

    def add(self, entry: Entry) -> None:
        settled = entry.outcome != "expired"
        if settled and not self.settled:
            self.settled, self.digests = True, set()
        if settled == self.settled:
            self.digests.add(digest_of(entry))


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
                    ids.setdefault(unit.entry.id, _Wanted()).add(unit.entry)
    newest: dict[str, int] = {}  # journal → the last row that Redis has of it
    for project, ids in wanted.items():
        found.entries += len(ids)
        stands: dict[str, Entry] = {}
        for block in blocks_of(shared, tag_of(project)):
            newest[block.journal] = max(newest.get(block.journal, 0), block.rows[-1][0])
            for _, entry in block.rows:
                known = stands.get(entry.id)
                if entry.sign > 0 and entry.id in ids and (known is None or entry.revision >= known.revision):
                    stands[entry.id] = entry
        for id, each in ids.items():
            found.differences += _compared(f"{project}/{id}", stands.get(id), each)
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


def _compared(name: str, entry: Entry | None, wanted: _Wanted) -> list[Difference]:
    if entry is None:
        return [Difference("entry", name, "nothing", "a journal has it, and it was applied")]
    if digest_of(entry) in wanted.digests:
        return []
    if entry.outcome == "expired" and wanted.settled:
        return [Difference("entry", name, "its estimate", "a journal has what was settled")]
    if entry.outcome != "expired" and not wanted.settled:
        return []  # settled elsewhere
    return [Difference("entry", name, _shown(entry), "journals have other contents under this id")]


def _shown(entry: Entry) -> str:
    nanos = entry.charge.amount_nanos
    return f"{'an unknown amount' if nanos is None else f'{nanos} nanos'}, {entry.usage.tokens} tokens"
