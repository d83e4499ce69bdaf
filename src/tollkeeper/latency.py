"""How soon places usually answer. Pure: latencies are passed in.

Streams and whole replies are apart: a whole one's first byte comes when all of it is generated.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from tollkeeper.values import Place

#: Calls of a place that are remembered, and how many it takes to know what is usual.
KEPT: Final = 100
LEAST: Final = 20
#: Places that are known at most: a further one takes the place of the one that came first. Clients may name models.
PLACES_MAX: Final = 1000
#: Of 100 calls so many are as soon as that.
USUAL: Final = 95


class Latencies:
    """Seconds to the first byte of each place's last calls."""

    def __init__(self) -> None:
        self._of: dict[tuple[Place, bool], deque[float]] = {}

    def add(self, place: Place, stream: bool, first_byte_s: float) -> None:
        """One more."""
        known = self._of.get((place, stream))
        if known is None:
            if len(self._of) >= PLACES_MAX:
                self._of.pop(next(iter(self._of)))
            known = self._of[place, stream] = deque(maxlen=KEPT)
        known.append(first_byte_s)

    def usual_s(self, place: Place, stream: bool) -> float | None:
        """The p95: of 100 calls 95 took no longer; None: fewer than LEAST are known."""
        known = self._of.get((place, stream), ())
        if len(known) < LEAST:
            return None
        return sorted(known)[-(-len(known) * USUAL // 100) - 1]
