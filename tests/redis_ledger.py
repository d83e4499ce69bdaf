"""A Redis ledger whose time is passed in: what a store needs beside its URL."""

from __future__ import annotations

from pathlib import Path

from tollkeeper.clock import SystemClock
from tollkeeper.stores import SharedOptions
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.samples import KEEP_ALL


class Standing(SystemClock):
    """A clock that stands still for the ledger, while what waits for seconds goes on."""

    def now_us(self) -> int:
        return START_US


def shared_at(folder: Path) -> SharedOptions:
    """A journal's folder in that time; Redis's own clock is far ahead of it."""
    ahead_s = (SystemClock().now_us() - START_US) // 1_000_000
    return SharedOptions(clock=Standing(), journal=folder, retention=KEEP_ALL, ahead_s=ahead_s)
