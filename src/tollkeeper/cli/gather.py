"""Asks a ledger for what a report's plan needs, all as of one instant."""

from __future__ import annotations

from typing import get_args

from tollkeeper.ledger import CellKey, cells_of
from tollkeeper.reports import ZERO, Differences, Plan, Report, Slice, Source, Sums, build, choose
from tollkeeper.stores import Cell, Reader
from tollkeeper.values import ScopeKind


async def gather(reader: Reader, plan: Plan) -> Report:
    """The report of a plan. Raises BadRequest where retention has dropped what it needs, StoreUnavailable."""
    # Keys belong to no project in the cells: one project's keys are counted from its entries.
    by_entry = plan.by == "key" and plan.project is not None
    async with reader.snapshot():
        kept = await _kept(reader)
        found = []
        for piece in plan.slices:
            source = choose(piece, kept, by_entry)
            whole = await _cells(reader, "project", piece, source, plan.project)
            scoped: list[Cell] = []
            if by_entry:
                scoped = await _keys(reader, piece, plan.project)
            elif plan.scope is not None:
                scoped = await _cells(reader, plan.scope, piece, source, plan.project)
            found.append((piece, whole, scoped))
    return build(plan, found)


async def differences(reader: Reader, from_us: int, to_us: int, project: str | None) -> Differences:
    """Where reported and computed costs differ, from the entries that stand. Raises BadRequest where they are pruned."""
    async with reader.snapshot():
        choose(Slice(from_us, to_us, ()), await _kept(reader))
        found = Differences()
        async for entry in reader.current(from_us, to_us, project):
            found.add(entry)
    return found


async def _kept(reader: Reader) -> dict[Source, int]:
    return {what: await reader.kept_since(what) for what in get_args(Source)}


async def _cells(reader: Reader, scope: ScopeKind, piece: Slice, source: Source, project: str | None) -> list[Cell]:
    if source == "entry":
        return await reader.tally(scope, piece.from_us, piece.to_us, project)
    return await reader.cells(scope, source, piece.from_us, piece.to_us, project)


async def _keys(reader: Reader, piece: Slice, project: str | None) -> list[Cell]:
    found: dict[CellKey, Sums] = {}
    async for entry in reader.entries(piece.from_us, piece.to_us, project):
        for key, sums in cells_of(entry):
            if key.scope == "key" and key.period == "month":
                found[key] = found.get(key, ZERO).plus(sums)
    return list(found.items())
