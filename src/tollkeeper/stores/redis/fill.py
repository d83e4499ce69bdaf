"""What the balances of a shape begin with: the sums of a slot's entries, read and followed until they stand in Redis.

Entries keep coming while they are read, and balances may be many. So blocks are read on from where the last reading ended; what
has changed is written a step at a time (`fill.lua`), each step between two batches; and with the last one, when nothing is left,
the slot keeps the shape. Until then nobody looks at the balances, and whoever fills them too writes the same. Blocks: for threads.
"""

from __future__ import annotations

from itertools import islice
from typing import Final, Literal

from tollkeeper.ledger import BalanceKey, Shape, spent_by
from tollkeeper.stores.redis.apply import Shared, pairs
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.batch import window_at
from tollkeeper.stores.redis.before import begins_with
from tollkeeper.stores.redis.keys import FOREVER_S, GLOBAL, decode, shape_name
from tollkeeper.values import Entry

_fill: Final = Script("fill")
#: Balances in one step: Redis does nothing else meanwhile.
STEP: Final = 500


class Filling:
    """One shape's, in one slot; without a shape the slot is only opened."""

    def __init__(self, shared: Shared, tag: str, shape: Shape | None) -> None:
        self._shared, self._tag, self._shape = shared, tag, shape
        self._batch: bytes | str = "0"
        self._begun: tuple[object, ...] = ()  # since when the slot is filled, and on which servers
        self._start()

    def _start(self) -> None:
        self._spent: dict[BalanceKey, int] = {}
        self._changed: dict[BalanceKey, None] = {}  # since they were written
        self._before: dict[BalanceKey, int] = {}
        self._read: dict[str, int] = {}  # list of blocks → how many were read
        self._uncovered: list[tuple[bytes, int, Entry]] = []  # cursor's field, row

    def read(self) -> None:
        """Bring the sums up to what is there now. The batch is asked first: what comes behind it is noticed when it is written."""
        link, keys = self._shared.link, self._shared.keys
        cursor, before = (pairs(found) for found in link.run(
            Ask(("HGETALL", keys.cursor(self._tag))), Ask(("HGETALL", keys.before(self._tag)))
        ))  # fmt: skip
        self._batch = cursor.get(b"batch", b"0")
        if self._shape is None:
            return
        begun = cursor.get(b"begun"), *link.runs.items()
        if begun != self._begun:  # emptied meanwhile, or another server: what was read is gone
            self._begun = begun
            self._start()
        projects = self._shared.projects()
        for id, amount in begins_with(self._shape, before):
            key = BalanceKey(self._shape, projects.get(self._tag, ""), decode(id), 0)
            self._add(key, amount - self._before.get(key, 0))
            self._before[key] = amount
        # Who has rows covered here: a cursor says so for certain, a list of projects may lack one for a moment.
        tags = {
            tag.decode()
            for journal, at, tag in (field.partition(b"@") for field in cursor)
            if at and journal != b"open"
        }
        for tag in sorted(tags) if self._tag == GLOBAL else [self._tag]:
            self._read_blocks(tag)
        # Of each project what the cursors of the slot without one cover: the rest is applied there when the shape is kept.
        waiting, self._uncovered = self._uncovered, []
        for field, seq, entry in waiting:
            if seq <= int(cursor.get(field, 0)):
                self._count(entry)
            else:
                self._uncovered.append((field, seq, entry))

    def _read_blocks(self, tag: str) -> None:
        for key, length in self._shared.lists(tag).items():
            first = self._read.get(key, 0)
            for block in self._shared.blocks(key, first if first <= length else 0, length):
                if self._tag == GLOBAL:
                    field = f"{block.journal}@{tag}".encode()
                    self._uncovered += ((field, seq, entry) for seq, entry in block.rows)
                else:
                    for _, entry in block.rows:
                        self._count(entry)
            self._read[key] = length

    def _count(self, entry: Entry) -> None:
        assert self._shape is not None
        for key, amount in spent_by((self._shape,), entry):
            self._add(key, amount)

    def _add(self, key: BalanceKey, amount: int) -> None:
        if amount or key not in self._spent:
            self._spent[key] = self._spent.get(key, 0) + amount
            self._changed[key] = None

    def write(self, epoch: str) -> Literal["filled", "more", "moved"]:
        """Write a step. "moved": something was applied since `read`, which is to be called again."""
        keys, now_s = self._shared.keys, self._shared.now_us() // 10**6
        some = list(islice(self._changed, STEP))
        names = [keys.cursor(self._tag), keys.shapes(self._tag), keys.index(self._tag)]
        args: list[object] = [epoch, FOREVER_S, "" if self._shape is None else shape_name(self._shape), self._batch]
        for key in some:
            _, end_us = window_at(key.shape.window, key.shape.timezone, key.start_us)
            until_s = self._shared.deadlines.balance(end_us)
            if until_s > now_s:
                name = keys.balance(key)
                names.append(name)
                args += (until_s, name.rpartition("}:")[2], key.start_us // 10**6, self._spent[key])
        if len(some) < len(self._changed):
            args.append("more")
        (answer,) = self._shared.link.run(_fill(names, args))
        if answer[0] == b"more":
            for key in some:
                del self._changed[key]
            return "more"
        return "filled" if answer[0] == b"filled" else "moved"
