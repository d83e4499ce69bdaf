"""Time, passed in, and ids in its order. Nothing else in the package asks the system what time it is."""

from __future__ import annotations

import secrets
import time
from itertools import count
from typing import Final, Protocol

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

    monotonic_s = staticmethod(time.monotonic)


_PROCESS: Final = secrets.token_hex(8)
_NUMBERS: Final = count()


def new_id(now_us: int) -> str:
    """A call's id: unique, and in the order of time, so that entries land side by side in the ledger.

    Fresh random bytes for each would let go of the interpreter's lock, which the ledger's writer then holds for long.
    """
    return f"{now_us:014x}{_PROCESS}{next(_NUMBERS):06x}"
