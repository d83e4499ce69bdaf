"""A clock that stands still until it is moved by hand."""

from __future__ import annotations

from tollkeeper.clock import MICROS

START_US = 1_767_225_600 * MICROS
"""2026-01-01T00:00:00Z."""


class ManualClock:
    """Implements `tollkeeper.clock.Clock`. The monotonic clock starts at 0 and only `advance` moves it."""

    def __init__(self, now_us: int = START_US) -> None:
        self._now_us = now_us
        self._elapsed_us = 0

    def now_us(self) -> int:
        return self._now_us

    def monotonic_s(self) -> float:
        return self._elapsed_us / MICROS

    def advance(self, seconds: float = 0, *, us: int = 0) -> int:
        """Time passes on both clocks: `seconds` plus `us` microseconds. Returns the new instant."""
        passed_us = round(seconds * MICROS) + us
        if passed_us < 0:
            raise ValueError(f"time does not go back: {passed_us} µs; use set_wall to turn the wall clock")
        self._now_us += passed_us
        self._elapsed_us += passed_us
        return self._now_us

    def set_wall(self, now_us: int) -> None:
        """Turns the wall clock alone, also backwards, as an operator or NTP does."""
        self._now_us = now_us
