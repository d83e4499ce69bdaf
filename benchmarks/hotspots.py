"""Where the time of a scenario goes: it runs under a profiler, and its costs are printed, the dearest first."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import record, servers
from benchmarks.gateway import PACE_MS, client
from benchmarks.load import load
from benchmarks.processes import Process, free_port, module, started
from benchmarks.profilers import END

PRINT_S: Final = 15.0


def calls(folder: Path, profiler: str) -> str:
    """The gateway under calls that are not streamed."""
    with servers.fixed_upstream(folder) as upstream, servers.gateway(folder, upstream.port, profiler) as gateway:
        load(gateway.process, gateway.port, 1, warm=1)
        return _profile(gateway.process, lambda: load(gateway.process, gateway.port, 6, warm=0))


def streams(folder: Path, profiler: str) -> str:
    """The gateway under streamed calls, each chunk sent alone."""
    port = free_port()
    upstream = started(module("benchmarks.streams", port, PACE_MS), folder, port=port)
    with upstream, servers.gateway(folder, port, profiler) as gateway:
        client(gateway, "--calls", 64)
        return _profile(gateway.process, lambda: client(gateway, "--calls", 600))


def _profile(process: Process, work: Callable[[], object]) -> str:
    os.kill(process.pid, signal.SIGUSR1)
    work()
    os.kill(process.pid, signal.SIGUSR2)
    deadline_s = time.monotonic() + PRINT_S
    while END not in process.told() and time.monotonic() < deadline_s:
        time.sleep(0.05)
        process.check()
    return process.told()


def records(folder: Path, profiler: str, *, how: str) -> str:
    """The library, or the store alone, under 64 tasks that record."""
    return record.child(how, folder, profiler)


PROFILES: Final[dict[str, Callable[[Path, str], str]]] = {
    "gateway": calls,
    "stream": streams,
    "record": partial(records, how="tracker"),
    "store": partial(records, how="store"),
}
