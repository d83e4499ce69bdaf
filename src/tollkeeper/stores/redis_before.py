"""What a journal's rows cannot give any more: sums of entries that were pruned, for a Redis that has lost everything.

They come from the journal's own cells. A slot takes them once from each journal, and keeps beside the cells what balances
without an end (`total`) begin with. Budgets of scope `model` are by the model asked for, which no cell has: those begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from tollkeeper.ledger import CELL_SUMS, CellKey, Shape
from tollkeeper.stores import Cell
from tollkeeper.stores.redis_batch import Batch, Sums, measured
from tollkeeper.stores.redis_keys import FOREVER_S, GLOBAL, Deadlines, Keys, cell_field, encode, tag_of
from tollkeeper.values import OTHER, Measure

_MEASURES: Final[tuple[Measure, ...]] = ("usd", "tokens", "requests")


class Before(msgspec.Struct):
    """The batches of one journal, by tag; and the projects that have one."""

    batches: dict[str, Batch] = {}
    projects: set[str] = set()


def before_of(cells: Iterable[Cell], journal: str, keys: Keys, deadlines: Deadlines, now_s: int) -> Before:
    """What the sums of a journal's pruned entries add, slot by slot."""
    found = Before()
    for cell, sums in cells:
        project = cell.project or OTHER  # cells of a key have no project: any slot may keep them
        found.projects.add(project)
        tag = tag_of(project)
        deadline_s = deadlines.cells(cell.period, cell.start_us)
        if deadline_s > now_s:
            name = keys.cells(tag, cell)
            added = _batch(found, tag, journal).sums.setdefault(
                name, Sums(deadline_s, name.rpartition("}:")[2], cell.start_us // 10**6, {})
            )
            for what, amount in zip(CELL_SUMS, sums, strict=True):
                if amount:
                    added.amounts[cell_field(cell) + what] = amount
        if cell.period == "month":
            for tag_, field in _fields(cell):
                total = _batch(found, tag_, journal).sums.setdefault(keys.before(tag_), Sums(FOREVER_S, "", 0, {}))
                for measure in _MEASURES:
                    amounts = total.amounts
                    amounts[field + measure] = amounts.get(field + measure, 0) + measured(measure, sums)
    return found


def _batch(found: Before, tag: str, journal: str) -> Batch:
    if tag not in found.batches:
        found.batches[tag] = Batch(tag=tag, cursors=[(f"{journal}/before", 0, 1)], shapes=None)
    return found.batches[tag]


def _fields(cell: CellKey) -> Iterator[tuple[str, str]]:
    """Where a month's cell counts among what balances without an end begin with: (tag, the field up to its measure)."""
    if cell.id == OTHER or cell.project == OTHER:
        if cell.scope == "project":
            yield GLOBAL, "all::"
        return
    if cell.scope == "key":
        yield GLOBAL, f"key:{encode(cell.id)}:"
        return
    yield tag_of(cell.project), f"{cell.scope}:{encode(cell.id)}:"
    if cell.scope == "project":
        yield GLOBAL, "all::"


def begins_with(shape: Shape, found: dict[bytes, bytes]) -> Iterator[tuple[str, int]]:
    """(id, amount) of what the balances of a shape begin with, from the hash `before` of their slot."""
    if shape.window == "total":
        for name, amount in found.items():
            scope, id, measure = name.decode().split(":")
            if (scope, measure) == (shape.scope, shape.measure):
                yield id, int(amount)
