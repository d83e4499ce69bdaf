"""Telling what the writer has done: the book, then whoever wants to know of entries, then each caller in its own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING

from tollkeeper.values import Entry

if TYPE_CHECKING:
    from tollkeeper.stores.sqlite.writer import Write

#: Entries that are safe, each with its seq, in that order.
Placed = list[tuple[int, Entry]]


class News:
    """What was written and not yet told. `tell` is the writer's, `hear` is for everyone; what comes first is told first.

    `last`: seq of the newest entry that was told. `on_booked` is called under the lock, in the thread that hears, before the
    callers are answered: it must be quick, and must neither raise nor ask the store.
    """

    def __init__(self, lock: RLock, on_booked: Callable[[Placed], None] | None) -> None:
        self.last = 0
        self._lock = lock
        self._on_booked = on_booked
        self._waiting: deque[tuple[list[Write], Exception | None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def tell(self, writes: list[Write], error: Exception | None) -> None:
        """Writes have ended, safe or with an error: have their callers hear it."""
        self._waiting.append((writes, error))
        for loop in {future.get_loop() for write in writes for future in write.waiters}:
            with contextlib.suppress(RuntimeError):  # closed: whoever comes next hears it
                loop.call_soon_threadsafe(self.hear)

    def hear(self) -> None:
        """The book learns what has been booked, then each caller, in its own event loop.

        Not the writer's work: it would wait for the lock, and others for it. Not one loop's alone: it may have ended.
        """
        here = asyncio._get_running_loop()
        while self._waiting:
            with self._lock:
                if not self._waiting:
                    return
                writes, error = self._waiting.popleft()
                for write in writes:
                    write.done(error is None)
                if error is None:
                    self._book(writes)
            for future in (future for write in writes for future in write.waiters):
                if future.get_loop() is here:
                    _resolve(future, error)
                else:
                    with contextlib.suppress(RuntimeError):
                        future.get_loop().call_soon_threadsafe(_resolve, future, error)

    def _book(self, writes: list[Write]) -> None:
        booked = [write for write in writes if write.entries]
        if not booked:
            return
        if self._on_booked is not None:
            self._on_booked([pair for write in booked for pair in enumerate(write.entries, write.first)])
        self.last = booked[-1].first + len(booked[-1].entries) - 1  # last: who sees it may rely on the rest


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
