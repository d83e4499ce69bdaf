"""What one project, agent or session has used in one period, for callers of the library.

Read from the rollup cells of the period (in UTC); where retention has dropped those, or the id is past the cardinality cap
and counted under OTHER, from the entries. Where they are gone too it is an error: what is not known is never told as 0.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import structs

from tollkeeper.ledger import FOREVER_US, CellKey, Period, cells_of, window_of
from tollkeeper.money import to_usd
from tollkeeper.reports import ZERO, Sums
from tollkeeper.stores import Cell, Reader
from tollkeeper.values import OTHER, ScopeKind, iso_utc, utc

_NEVER: Final = datetime.max.replace(tzinfo=UTC)


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over calls. Amounts are exact dollars; calls of unknown cost are counted, and are not in the amount."""

    total_requests: int = 0
    prompt_tokens: int = 0  #: whole prompts, cached tokens inside
    completion_tokens: int = 0
    cached_tokens: int = 0
    total_tokens: int = 0
    total_cost_usd: Decimal = Decimal(0)
    inexact_cost_usd: Decimal = Decimal(0)  #: the part of total_cost_usd that is estimated or partly priced
    unpriced_requests: int = 0  #: requests whose cost is unknown


class UsageReport(ModelUsage, frozen=True, kw_only=True):
    """The usage of one entity in one period, in all and by the model that served."""

    entity: str  #: "project alpha", "agent writer of project alpha", "session run-7 of project alpha"
    period: str
    period_start: datetime  #: UTC
    period_end: datetime  #: UTC, exclusive
    by_model: dict[str, ModelUsage] = {}


class Span(NamedTuple):
    """Which cells a report adds up."""

    scope: ScopeKind
    project: str | None
    id: str
    period: Period
    start_us: int = 0
    end_us: int = FOREVER_US


def span(scope: ScopeKind, project: str, id: str, period: Period, at_us: int) -> Span:
    """The period, in UTC, that holds an instant."""
    return Span(scope, project, id, period, *window_of(period, "UTC", at_us))


async def cells(reader: Reader, wanted: Span) -> list[Cell]:
    """Everything counted in a span. Raises ValueError where the ledger does not keep that period any more."""
    scope, project, id, period, start_us, end_us = wanted
    if start_us and start_us < await reader.kept_since(period):
        kept_us = await reader.kept_since("entry")
        if start_us < kept_us:
            raise ValueError(
                f"timestamp: the {period} of {iso_utc(start_us)} is past its retention and the ledger does not keep it any "
                f"more; ask for a longer period or a time from {iso_utc(kept_us)} on"
            )
        return await _from_entries(reader, wanted)
    found = await reader.cells(scope, period, start_us, end_us, project, id)
    if any(key.project == OTHER != project for key, _ in found):
        return await _from_entries(reader, wanted)
    if not found:
        for names in ((OTHER, None), (project, OTHER)):
            if await reader.cells(scope, period, start_us, end_us, *names):
                return await _from_entries(reader, wanted)
    return found


async def _from_entries(reader: Reader, wanted: Span) -> list[Cell]:
    """The same sums from the entries, which keep their ids past the cap. Takes as long as the period has entries."""
    found: dict[CellKey, Sums] = {}
    async for entry in reader.entries(wanted.start_us, wanted.end_us, wanted.project):
        for key, sums in cells_of(structs.replace(entry, other=())):
            if (key.scope, key.period, key.id) == (wanted.scope, wanted.period, wanted.id):
                found[key] = found.get(key, ZERO).plus(sums)
    return list(found.items())


def report(wanted: Span, found: list[Cell]) -> UsageReport:
    """The report of a span from its cells. A span without edges is the period "total"."""
    total = wanted.end_us >= FOREVER_US
    models: dict[str, Sums] = {}
    for key, sums in found:
        models[key.model] = models.get(key.model, ZERO).plus(sums)
    whole = ZERO
    for each in models.values():
        whole = whole.plus(each)
    names = f"{wanted.scope} {wanted.id} of project {wanted.project}" if wanted.id else f"project {wanted.project}"
    return UsageReport(
        entity=names,
        period="total" if total else wanted.period,
        period_start=utc(wanted.start_us),
        period_end=_NEVER if total else utc(wanted.end_us),
        by_model={model: ModelUsage(**_values(each)) for model, each in sorted(models.items())},
        **_values(whole),
    )


def _values(sums: Sums) -> dict[str, Any]:
    return {
        "total_requests": sums.calls,
        "prompt_tokens": sums.input_tokens,
        "completion_tokens": sums.output_tokens,
        "cached_tokens": sums.cache_read,
        "total_tokens": sums.tokens,
        "total_cost_usd": to_usd(sums.amount_nanos),
        "inexact_cost_usd": to_usd(sums.inexact_nanos),
        "unpriced_requests": sums.unpriced,
    }
