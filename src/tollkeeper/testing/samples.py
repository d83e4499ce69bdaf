"""Holds, entries and budgets to try a store with, and how to sum up what it says. The defaults are one priced call at AT_US."""

from __future__ import annotations

from typing import Any, Final

from msgspec import structs

from tollkeeper.ledger import CELL_SUMS, FOREVER_US
from tollkeeper.stores import Cell, Reader, Retention, Store
from tollkeeper.testing.clock import START_US
from tollkeeper.values import Budget, Charge, Entry, Hold, Scopes, Standing, Usage

USD: Final = 1_000_000_000
DIME: Final = USD // 10
SECOND_US: Final = 1_000_000
HOUR_US: Final = 3600 * SECOND_US
DAY_US: Final = 24 * HOUR_US
AT_US: Final = START_US + 14 * DAY_US + 12 * HOUR_US
"""2026-01-15T12:00:00Z, a Thursday."""

ALPHA: Final = Scopes(project="alpha")
UNKNOWN: Final = Charge(amount_nanos=None, status="unpriced")
KEEP_ALL: Final = Retention(hour_s=None, day_s=None, month_s=None, entries_s=None)


def a_hold(id: str, nanos: int | None = DIME, *, tokens: int | None = 100, at_us: int = AT_US, **changed: Any) -> Hold:
    """A hold of `nanos` and `tokens` (None: no bound) with a deadline after 660 s. The id is "<call>/<attempt>"."""
    call, _, attempt = id.partition("/")
    usage = None if tokens is None else Usage(input=tokens)
    hold = Hold(
        id=id, call=call, attempt=int(attempt or 1), scopes=ALPHA, dialect="openai-chat", provider="fake", model="m",
        quote_nanos=nanos, quote_usage=usage, at_us=at_us, deadline_us=at_us + 660 * SECOND_US, price_version="v1",
    )  # fmt: skip
    return structs.replace(hold, **changed)


def an_entry(id: str, nanos: int | None = DIME, *, tokens: int = 100, at_us: int = AT_US, **changed: Any) -> Entry:
    """An entry of `nanos` (None: unpriced) and `tokens`. The id is "<call>/<attempt>"."""
    call, _, attempt = id.partition("/")
    charge = UNKNOWN if nanos is None else Charge(amount_nanos=nanos, status="priced", price_version="v1")
    entry = Entry(
        id=id, call=call, attempt=int(attempt or 1), calls=int(attempt in ("", "1")), at_us=at_us, scopes=ALPHA,
        dialect="openai-chat", provider="fake", model="m", served="m", http_status=200, usage=Usage(input=tokens),
        charge=charge, latency_ms=5,
    )  # fmt: skip
    return structs.replace(entry, **changed)


def usd(limit: int | None, **changed: Any) -> Budget:
    """A hard monthly budget in nanos on project alpha."""
    return structs.replace(Budget(scope="project", id="alpha", limit=limit), **changed)


def total(cells: list[Cell], what: str) -> int:
    """One sum over cells, by its name in CELL_SUMS."""
    return sum(sums[CELL_SUMS.index(what)] for _, sums in cells)


async def booked(store: Reader) -> list[Entry]:
    """Every entry of a ledger."""
    return [entry async for entry in store.entries(0, FOREVER_US)]


async def month_of(store: Reader) -> list[Cell]:
    """The project cells of every month."""
    return await store.cells("project", "month", 0, FOREVER_US)


async def standing(store: Store, scopes: Scopes = ALPHA, at_us: int = AT_US) -> Standing:
    """The one budget that covers such a call."""
    (only,) = await store.standings(scopes, "m", at_us)
    return only
