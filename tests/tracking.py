"""Trackers for the tests of the library: a clock that stands, round prices, and the ledger's own view of what was booked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import Store
from tollkeeper.testing.clock import ManualClock
from tollkeeper.tracker import CostTracker
from tollkeeper.values import Entry

#: tenth: 1,000 output tokens cost $0.10.
PRICES = """
[[price]]
model = "tenth"
input = "0"
output = "100"
[[price]]
model = "free"
input = "0"
output = "0"
[[price]]
model = "cached"
input = "1.50"
cache_read = "0.15"
output = "9"
[[price]]
models = ["llama3:8b", "vendor/model:free"]
input = "1"
output = "1"
"""
#: Calls of $0.10 fit ten times.
DOLLAR = {"scope": "project", "limit": "1.00"}


def tracker(
    tmp_path: Path, store: str | Store | None = "memory:", clock: ManualClock | None = None, **settings: Any
) -> CostTracker:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    return CostTracker(store, {"prices": str(prices), **settings}, ManualClock() if clock is None else clock)


async def booked(tracker: CostTracker) -> list[Entry]:
    """Every entry of a tracker's ledger, in the order in which they were booked."""
    store = await tracker._accounts.store()
    return [entry async for entry in store.entries(0, FOREVER_US)]


async def live(tracker: CostTracker) -> int:
    """How many holds stand."""
    return len(await (await tracker._accounts.store()).live())
