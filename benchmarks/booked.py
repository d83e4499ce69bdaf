"""A figure counts only if the work was done: what the ledger holds after a run."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from tollkeeper.clock import SystemClock
from tollkeeper.ledger import CELL_SUMS
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_reader

_ALWAYS_US: Final = 2**60
#: Seconds that a shared ledger may take to have everything: its journal has it before.
_WITHIN_S: Final = 5.0


def check(url: str, at_least: int) -> None:
    """Raises RuntimeError where the ledger has fewer calls than were answered, or calls without a price."""
    deadline_s = time.monotonic() + _WITHIN_S
    while True:
        have, unpriced = asyncio.run(_sums(url, "calls", "unpriced"))
        if have >= at_least and not unpriced:
            return
        if unpriced or time.monotonic() > deadline_s:
            raise RuntimeError(
                f"{at_least} calls were answered; the ledger has {have}, {unpriced} of them without a price"
            )


def calls(url: str) -> int:
    """How many calls the ledger has."""
    return asyncio.run(_sums(url, "calls"))[0]


async def _sums(url: str, *names: str) -> list[int]:
    reader = open_reader(url, shared=SharedOptions(clock=SystemClock(), journal=Path()))
    try:
        cells = await reader.tally("project", 0, _ALWAYS_US)
    finally:
        await reader.close()
    return [sum(sums[CELL_SUMS.index(name)] for _, sums in cells) for name in names]
