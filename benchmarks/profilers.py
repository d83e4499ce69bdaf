"""Where a process spends its time. Two ways of looking, chosen by name in PROFILERS.

`samples`: the main thread's stack at every few ms of the process's CPU time. A sample is taken between two bytecodes, so a
C function's time counts for the line that called it. Samples outside of any callback are left out: the event loop's own
work, and the time that other threads used while it waited; those show by their CPU time. `calls`: cProfile; exact counts and
C functions by name, but times stretched.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

#: The kernel's tick (often 4 ms) bounds how fine it really is.
EVERY_S: Final = 0.001
SHOWN: Final = 40
END: Final = "(end of the profile)"
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class Profiler(Protocol):
    """Looks at this process between `begin` and `end`; `end` prints what it saw, and END."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class Samples:
    """Stacks of the main thread, by the process's CPU time."""

    def __init__(self) -> None:
        self._own: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._loop = 0
        self._threads: dict[str, float] = {}

    def begin(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        self._threads = _threads()
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def end(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        print("\nCPU seconds by thread")
        for name, cpu_s in _threads().items():
            print(f"  {cpu_s - self._threads.get(name, 0):7.2f}  {name}")
        total = self._own.total() or 1
        print(f"\n{total} samples in callbacks of the main thread, {self._loop} outside of them")
        tables = {"its own": self._own, "by line": self._lines, "with what it calls": self._all}
        for title, counts in tables.items():
            print(f"\n{title}")
            for name, count in counts.most_common(SHOWN):
                print(f"  {count / total:6.1%}  {name}")
        print(END, flush=True)

    def _sample(self, sig: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code is asyncio.Runner.run.__code__:
            self._loop += 1
            return
        name = _name(frame)
        self._own[name] += 1
        self._lines[f"{name}:{frame.f_lineno}"] += 1
        stack: set[str] = set()
        while frame is not None:
            stack.add(_name(frame))
            frame = frame.f_back
        self._all.update(stack)


class Calls:
    """cProfile of the thread that begins it."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def begin(self) -> None:
        self._profile.enable()

    def end(self) -> None:
        self._profile.disable()
        pstats.Stats(self._profile, stream=sys.stdout).strip_dirs().sort_stats("tottime").print_stats(SHOWN)
        print(END, flush=True)


PROFILERS: Final[dict[str, type[Samples | Calls]]] = {"samples": Samples, "calls": Calls}


def _name(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name} {frame.f_code.co_qualname}"


def _threads() -> dict[str, float]:
    """Seconds of CPU by thread."""
    found: dict[str, float] = {}
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda each: int(each.name)):
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        main = " (main)" if task.name == str(os.getpid()) else ""
        found[f"thread {task.name}{main}"] = (int(fields[11]) + int(fields[12])) * _TICK_S
    return found
