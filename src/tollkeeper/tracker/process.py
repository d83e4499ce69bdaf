"""One tracker for the process, made from the environment and `tollkeeper.toml` when it is first asked for."""

from __future__ import annotations

from threading import Lock
from typing import Final

from tollkeeper.tracker import CostTracker


class _Place:
    """Where the process's tracker stands."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._tracker: CostTracker | None = None

    def get(self) -> CostTracker:
        with self._lock:
            if self._tracker is None or self._tracker.closed:
                self._tracker = CostTracker()
            return self._tracker

    def put(self, tracker: CostTracker | None) -> CostTracker | None:
        """Puts another one there; the one that stood there before."""
        with self._lock:
            before, self._tracker = self._tracker, tracker
            return before


_PROCESS: Final = _Place()


def get_cost_tracker() -> CostTracker:
    """The process's tracker, made from the environment and `tollkeeper.toml` at the first call; `await` opens it at once."""
    return _PROCESS.get()


async def reset_cost_tracker(tracker: CostTracker | None = None) -> None:
    """Close the process's tracker and put `tracker` in its place; None: the next `get_cost_tracker` makes a new one."""
    before = _PROCESS.put(tracker)
    if before is not None and before is not tracker:
        await before.close()


async def close_cost_tracker() -> None:
    """Close the process's tracker, if there is one."""
    await reset_cost_tracker()
