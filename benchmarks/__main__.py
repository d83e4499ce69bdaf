"""Figures of Tollkeeper on this machine, as a table; or, with `profile NAME`, where the time of a scenario goes."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import gateway, machine, record, shared, steps
from benchmarks.figures import Figure, Table
from benchmarks.hotspots import PROFILES
from benchmarks.profilers import PROFILERS

MEMORY_CALLS: Final = 40_000
SCENARIOS: Final[dict[str, Callable[..., Iterator[Figure]]]] = {
    "gateway": gateway.calls,
    "latency": gateway.latency,
    "stream": gateway.streams,
    "record": record.records,
    "redis": shared.redis,
    "steps": steps.steps,
    "start": gateway.start,
    "memory": gateway.memory,
}


def main() -> int:
    """Exit code 1 where a figure could not be taken. A missed aim is told in the table and is no failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    asked = _parse()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-", dir=asked.folder) as name:
        folder = Path(name)
        if asked.names[:1] == ["profile"]:
            print(PROFILES[asked.names[1]](folder, asked.profiler))
            return 0
        return _measure(folder, asked.names or list(SCENARIOS), asked.calls)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SCENARIOS)}; default: all of them")
    parser.add_argument("--calls", type=int, default=MEMORY_CALLS, help="over how many calls memory is watched")
    parser.add_argument(
        "--folder", help="where the ledgers go: a folder on the disk to measure; default: that of TMPDIR"
    )
    parser.add_argument("--profiler", choices=PROFILERS, default="samples", help="with: profile NAME")
    asked = parser.parse_args()
    match asked.names:
        case ["profile", name] if name in PROFILES:
            pass
        case ["profile", *_]:
            parser.error(f"profile takes one of {', '.join(PROFILES)}")
        case names if unknown := set(names) - SCENARIOS.keys():
            parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(SCENARIOS)}")
    return asked


def _measure(folder: Path, names: list[str], memory_calls: int) -> int:
    for line in machine.described(folder):
        print(line)
    print()
    scenarios = SCENARIOS | {"memory": partial(gateway.memory, number=memory_calls)}
    table, failures, others = Table(), list[str](), machine.Others()
    for name in names:
        try:
            table.add(scenarios[name](folder))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failures.append(f"{name} could not be measured: {error}")
    print(f"\nOther processes kept {others.cores():.1f} cores busy meanwhile.", flush=True)
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
