"""Work that must not stop half-way, and work that must stop in time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
#: Seconds until a deadline's timer looks, at the most: a deadline that is moved nearer than that needs a new timer.
LOOK_EVERY_S = 30.0


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` whatever cancels the caller meanwhile; then raise the cancellation, else return what `work` did."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what the caller hears of
        raise cancelled
    return task.result()


class Deadline:
    """As `asyncio.timeout`, but moving it on is an assignment: the timer looks again when it fires.

    A call moves its deadline with every piece of its reply; a timer that is cancelled and set anew each time costs more than
    the piece does.
    """

    def __init__(self) -> None:
        self._at_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self.expired = False

    def move(self, at_s: float | None) -> None:
        """Expire at this time of the running loop's clock; None: never. Within the context only."""
        self._at_s = at_s
        if at_s is not None and (self._timer is None or at_s < self._timer.when()):
            self._arm(at_s)

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._at_s = None
        if self._timer is not None:
            self._timer.cancel()
        if self.expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _arm(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(min(at_s, loop.time() + LOOK_EVERY_S), self._look)

    def _look(self) -> None:
        self._timer = None
        if self._at_s is None:
            return
        if asyncio.get_running_loop().time() < self._at_s:
            self._arm(self._at_s)
        else:
            self.expired = True
            assert self._task is not None
            self._task.cancel()
