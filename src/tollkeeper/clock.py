"""Time, passed in. Nothing else in the package asks the system what time it is."""

from __future__ import annotations

import time
from typing import Protocol

MICROS = 1_000_000


class Clock(Protocol):
    """What time it is. Instants are UTC microseconds since 1970 (`…_us`); durations are seconds (`…_s`)."""

    def now_us(self) -> int:
        """The wall clock, in UTC microseconds."""
        ...

    def monotonic_s(self) -> float:
        """A clock that never goes back, in seconds: for durations only."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()
