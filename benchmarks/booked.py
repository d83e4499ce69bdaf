"""A figure counts only if the work was done: what the ledger holds after a run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from tollkeeper.ledger import CELL_SUMS
from tollkeeper.stores import open_reader

_ALWAYS_US: Final = 2**60


def check(ledger: Path, at_least: int) -> None:
    """Raises RuntimeError where the ledger has fewer calls than were answered, or calls without a price."""
    calls, unpriced = asyncio.run(_sums(ledger, "calls", "unpriced"))
    if calls < at_least or unpriced:
        raise RuntimeError(
            f"{at_least} calls were answered; the ledger has {calls}, {unpriced} of them without a price"
        )


async def _sums(ledger: Path, *names: str) -> list[int]:
    reader = open_reader(f"sqlite:///{ledger}")
    try:
        cells = await reader.tally("project", 0, _ALWAYS_US)
    finally:
        await reader.close()
    return [sum(sums[CELL_SUMS.index(name)] for _, sums in cells) for name in names]
