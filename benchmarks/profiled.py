"""The gateway under a profiler: `python -m benchmarks.profiled CONFIG samples|calls`.

What `tollkeeper serve` does, and SIGUSR1 begins the profile, SIGUSR2 ends and prints it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from benchmarks.profilers import PROFILERS
from tollkeeper import app, config


async def _serve(path: Path, kind: str) -> None:
    environ = dict(os.environ)
    read = config.load(path, environ)
    gateway = app.build(read)
    profiler = PROFILERS[kind]()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, profiler.begin)
    loop.add_signal_handler(signal.SIGUSR2, profiler.end)
    await app.serve(gateway, app.listen(read), path, environ)


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), sys.argv[2]))
