"""Processes that a benchmark starts, measures and ends: only its own, by their id, within bounds.

CPU time and memory come from /proc, over the process, its threads and its descendants.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
START_S: Final = 20.0
STOP_S: Final = 15.0
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class Process:
    """A process under measurement."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self._log = log
        self.pid = popen.pid

    def cpu_s(self) -> float:
        """Seconds of CPU so far, user and system; 10 ms steps."""
        return sum(_stat(pid)[1] for pid in _family(self.pid))

    def rss_mb(self) -> float:
        """Resident memory now, in MB of 10^6 bytes."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def check(self) -> None:
        """Raises RuntimeError with the end of its log if it is gone."""
        code = self._popen.poll()
        if code is not None:
            raise RuntimeError(f"{self._popen.args!r} ended with {code}:\n{self.told()}")

    def told(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-40_000:]

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it in time."""
        self._popen.terminate()
        try:
            self._popen.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@contextmanager
def started(
    command: Sequence[str], folder: Path, *, port: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """Run a command for the length of the block; with `port`, the block begins when it listens there."""
    log = folder / f"{Path(command[0]).name}.{time.monotonic_ns()}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment(env)
        )
    process = Process(popen, log)
    try:
        if port is not None:
            wait_for(process, port)
        yield process
        process.check()
    finally:
        process.stop()


def wait_for(process: Process, port: int) -> None:
    """Until the port takes connections. Raises RuntimeError if the process ends or takes too long."""
    deadline_s = time.monotonic() + START_S
    while True:
        process.check()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"nothing listens on {port} after {START_S:g} s:\n{process.told()}") from None
            time.sleep(0.005)
        else:
            return


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings and keys that would change what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    kept = {name: value for name, value in kept.items() if not name.endswith(("_API_KEY", "_PROXY", "_proxy"))}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))} | dict(more or {})


def module(name: str, *arguments: object) -> list[str]:
    """The command that runs a Python module with this interpreter."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def free_port() -> int:
    """A port of the loopback address that nothing listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _family(pid: int) -> list[int]:
    """A process and its living descendants."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            below.setdefault(_stat(int(path.name))[0], []).append(int(path.name))
    found = [pid]
    for each in found:
        found += below.get(each, ())
    return found


def _stat(pid: int) -> tuple[int, float]:
    """Parent, and seconds of CPU of all threads; a process that has gone has neither."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1, 0.0
    return int(fields[1]), (int(fields[11]) + int(fields[12])) * _TICK_S
