"""What a journal's rows cannot give any more: sums of entries that were pruned, for a Redis that has lost everything.

They come from the journal's own cells. A slot takes them once from each journal, and keeps beside the cells what balances
without an end (`total`) begin with. Budgets of scope `model` are by the model asked for, which no cell has: those begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.ledger import BalanceKey, CellKey, Shape
from tollkeeper.stores import Cell
from tollkeeper.stores.redis.batch import Batch, Place, Places, Sums, measured, steps_of, window_at
from tollkeeper.stores.redis.keys import (
    FOREVER_S,
    GLOBAL,
    Deadlines,
    Keys,
    cell_fields,
    decode,
    encode,
    shape_name,
    tag_of,
)
from tollkeeper.values import OTHER, Measure

#: Fields that a script counts up in one step: Lua's stack has room for 8,000 values.
FIELDS_MAX: Final = 1000
_MEASURES: Final[tuple[Measure, ...]] = ("usd", "tokens", "requests")


class Before(msgspec.Struct):
    """The batches of one journal, by tag; and the projects that have one."""

    batches: dict[str, Batch] = {}
    projects: set[str] = set()


def before_of(cells: Iterable[Cell], journal: str, keys: Keys, deadlines: Deadlines, now_s: int) -> Before:
    """What the sums of a journal's pruned entries add, slot by slot."""
    found = Before()
    totals: dict[str, dict[str, int]] = {}
    for cell, sums in cells:
        project = cell.project or OTHER  # cells of a key have no project: any slot may keep them
        found.projects.add(project)
        tag = tag_of(project)
        deadline_s = deadlines.cells(cell.period, cell.start_us)
        if deadline_s > now_s:
            place = Place((keys.cells(tag, cell),), (deadline_s,), cell_fields(cell.provider, cell.model))
            _batch(found, tag, journal).sums.extend(steps_of(place, list(sums)))
        if cell.period == "month":
            for tag_, field in _fields(cell):
                total = totals.setdefault(tag_, {})
                for measure in _MEASURES:
                    total[field + measure] = total.get(field + measure, 0) + measured(measure, sums)
    for tag, total in totals.items():
        fields, amounts = tuple(total), list(total.values())
        for at in range(0, len(fields), FIELDS_MAX):
            place = Place((keys.before(tag),), (FOREVER_S,), fields[at : at + FIELDS_MAX])
            _batch(found, tag, journal).sums.extend(steps_of(place, amounts[at : at + FIELDS_MAX]))
    return found


def added_to(batch: Batch, kept: frozenset[Shape], project: str, places: Places) -> Batch:
    """A batch for a slot that keeps balances by now: those without an end begin with what it brings, too."""
    before, sums = places.keys.before(batch.tag), list(batch.sums)
    for place, amounts in batch.sums:
        if place.keys == (before,):
            found = {field.encode(): b"%d" % amount for field, amount in zip(place.fields, amounts, strict=True)}
            for shape in kept:
                end_us = window_at(shape.window, shape.timezone, 0)[1]
                for id, amount in begins_with(shape, found):
                    balance = places.balance(BalanceKey(shape, project, decode(id), 0), end_us)
                    sums.append(Sums(balance, [amount]))
    return structs.replace(batch, shapes=frozenset(map(shape_name, kept)), sums=sums)


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
