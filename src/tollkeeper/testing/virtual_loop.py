"""An event loop whose time is a number: nothing sleeps, no thread, no socket, and the same run every time.

When nothing is ready the clock jumps to the next timer. When there is no timer either, nobody can ever go on: `Stuck`.
One pass over what is ready is a *step*; `at_step` has something done between two steps, which is how a test cancels a
task at each of its await points.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from tollkeeper.clock import MICROS
from tollkeeper.testing.clock import START_US

T = TypeVar("T")
STEPS_MAX: Final = 200_000
"""A run of more steps goes round in circles."""


class Stuck(AssertionError):
    """Every task waits and no timer is left, or the run does not end."""


class _Silence:
    """Stands where the sockets' selector would: waiting is moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """Time starts at 0 seconds and moves by timers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self._now_s = 0.0
        self._selector = _Silence(self)
        self._between: dict[int, Callable[[], object]] = {}
        self.faults: list[str] = []  #: what asyncio would have logged: exceptions that nobody caught
        self.set_exception_handler(self._note)

    def time(self) -> float:
        return self._now_s

    def at_step(self, step: int, action: Callable[[], object]) -> None:
        """Have `action` done before that step begins."""
        self._between[step] = action

    def pass_time(self, seconds: float | None) -> None:
        """One step is over; None: nothing is ready and no timer is set. Raises Stuck."""
        self.steps += 1
        action = self._between.pop(self.steps, None)
        if action is not None:
            action()
            return  # what it made ready comes at the present time
        if seconds is None:
            raise Stuck(f"nothing is ready and no timer is set at {self._now_s:.3f} s")
        if self.steps > STEPS_MAX:
            raise Stuck(f"{STEPS_MAX} steps and no end at {self._now_s:.3f} s")
        self._now_s += seconds

    def play(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end, then close; tasks that are left are cancelled."""
        try:
            return self.run_until_complete(work)
        finally:
            try:
                self._drop(10)
            finally:
                self.close()

    def _drop(self, times: int) -> None:
        """Cancel what is left; a cancelled task may start another to put things right."""
        while times and (left := asyncio.all_tasks(self)):
            self.steps = 0
            for task in left:
                task.cancel()
            self.call_later(10, self.stop)
            self.run_forever()
            times -= 1

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.faults.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _process_events(self, events: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class VirtualClock:
    """Implements `tollkeeper.clock.Clock` by a virtual loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, start_us: int = START_US) -> None:
        self._loop = loop
        self._start_us = start_us

    def now_us(self) -> int:
        return self._start_us + round(self._loop.time() * MICROS)

    def monotonic_s(self) -> float:
        return self._loop.time()
