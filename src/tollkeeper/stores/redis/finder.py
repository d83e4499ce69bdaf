"""Finding the entries of an id among a project's blocks. The first question reads all of them, later ones what is new.

An index in memory, about 150 bytes an id: for what looks up many (importing, pricing again), not for the line.
"""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock

import msgspec

from tollkeeper.stores.redis.apply import Shared
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.blocks import unpack
from tollkeeper.stores.redis.keys import tag_of
from tollkeeper.values import Entry


class _Index(msgspec.Struct):
    """One project's, in one memory of Redis: what was read of another one says nothing about this."""

    epoch: bytes | None
    runs: dict[str, str]  #: the link's very own: another one after each time that the connection was lost
    read: dict[str, int] = {}  #: list → blocks read
    places: dict[str, list[tuple[str, int]]] = {}  #: entry's id → (list, block) of each of its entries


class Finder:
    """Blocks: for threads."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._lock = Lock()
        self._of: dict[str, _Index] = {}

    def revisions(self, project: str, ids: Collection[str]) -> dict[str, list[Entry]]:
        """What Redis has of each id, without reversals, oldest first; ids that it does not have are left out."""
        with self._lock:
            index = self._grown(tag_of(project))
            places = {id: index.places.get(id, ()) for id in ids}
        blocks = dict.fromkeys(place for each in places.values() for place in each)
        answers = self._shared.link.run(*(Ask(("LINDEX", key, number)) for key, number in blocks))
        found: dict[str, list[Entry]] = {}
        for data in answers:
            for _, entry in unpack(data).rows if data is not None else ():
                if entry.sign > 0 and entry.id in places and entry.scopes.project == project:
                    found.setdefault(entry.id, []).append(entry)
        return {id: sorted(entries, key=_order) for id, entries in found.items()}

    def _grown(self, tag: str) -> _Index:
        """The index of a project, with what has come since the last time."""
        link, keys = self._shared.link, self._shared.keys
        (epoch,) = link.run(Ask(("GET", keys.epoch)))
        runs, lengths = link.runs, self._shared.lists(tag)
        index = self._of.get(tag)
        if (
            index is None
            or index.epoch != epoch
            or index.runs is not runs
            or any(lengths.get(key, 0) < read for key, read in index.read.items())
        ):
            index = self._of[tag] = _Index(epoch, runs)  # the first time, or Redis has forgotten some
        for key, length in lengths.items():
            first = index.read.get(key, 0)
            for number, block in enumerate(self._shared.blocks(key, first, length), first):
                for id in {entry.id for _, entry in block.rows}:
                    index.places.setdefault(id, []).append((key, number))
            index.read[key] = length
        return index


def _order(entry: Entry) -> tuple[int, bool]:
    """Revisions as they followed each other; a settlement before what somebody asked for, where two journals counted alike."""
    return entry.revision, entry.by is not None
