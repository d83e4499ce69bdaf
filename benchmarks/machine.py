"""What a run was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import apsw

from benchmarks.processes import ROOT


def described(folder: Path) -> Iterator[str]:
    """Lines for people: date and commit, processor, system, versions, and the disk that the ledger is on."""
    dirty = " with changes" if _said("git", "status", "--porcelain", "--untracked-files=no") else ""
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {_said('git', 'rev-parse', '--short', 'HEAD') or 'unknown'}{dirty}"
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpu[0].partition(":")[2].strip() if cpu else platform.machine()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0))
    yield f"{cores} cores of {model}, {memory_gb:.0f} GB, load {os.getloadavg()[0]:.1f} before the run"
    yield f"{platform.system()} {platform.release()}, Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}"
    parts = ", ".join(
        f"{name} {version(name)}" for name in ("uvicorn", "uvloop", "httptools", "msgspec", "genai-prices")
    )
    yield f"{parts}, {_said('nginx', '-v').rpartition(' ')[2]}"
    least, most = loop_ms()
    yield f"a fixed loop of Python takes {least:.1f} to {most:.1f} ms: how fast this machine is just now, and how steady"
    median, p99, longest = syncs_ms(folder)
    yield (
        f"ledger on {_filesystem(folder)}: 40 KiB written and synced in {median:.2f} ms (median), "
        f"{p99:.1f} (p99), {longest:.0f} (longest)"
    )


def loop_ms() -> tuple[float, float]:
    """Least and most CPU of a loop over a dictionary, numbers and texts, in ten turns."""
    spent = []
    for _ in range(10):
        begin_s, seen = time.process_time(), dict[int, str]()
        for number in range(200_000):
            seen[number % 1000] = str(number)
        spent.append((time.process_time() - begin_s) * 1e3)
    return min(spent), max(spent)


def syncs_ms(folder: Path) -> tuple[float, float, float]:
    """Median, p99 and longest time to make a batch durable, over 3 s at the pace of a busy ledger.

    No acknowledged record waits less, and no latency of the gateway can be steadier than its disk.
    """
    times: list[float] = []
    path = folder / "sync"
    with path.open("wb", buffering=0) as file:
        for number in range(1000):
            os.lseek(file.fileno(), number * 40960 % (16 << 20), os.SEEK_SET)
            file.write(b"x" * 40960)
            begin_s = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begin_s) * 1e3)
            time.sleep(0.003)
    path.unlink()
    times.sort()
    return times[500], times[990], times[-1]


class Others:
    """How much of the machine everyone else used since this was made: on a busy machine times are long and CPU dear."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()
        self._all, self._own = _busy_s(), _own_s()

    def cores(self) -> float:
        """Cores that others kept busy on average; what was started here and has ended is not among them."""
        used_s = (_busy_s() - self._all) - (_own_s() - self._own)
        return max(0.0, used_s) / (time.monotonic() - self._begin_s)


def _busy_s() -> float:
    """Seconds of CPU of all processes: user, nice, system and interrupts."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[at]) for at in (0, 1, 2, 5, 6)) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    return sum(os.times()[:4])


def _filesystem(folder: Path) -> str:
    """The file system's type; on tmpfs nothing is durable and the ledger's figures mean nothing."""
    found = ("/", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if folder.is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


def _said(*command: str) -> str:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    return (ran.stdout + ran.stderr).strip() if ran.returncode == 0 else ""
