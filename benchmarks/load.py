"""Load on a server: wrk as fast as it goes, and what the server's processes used per request."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.processes import ROOT, Process, environment

CONNECTIONS: Final = 32
PATH: Final = "/v1/chat/completions"
KEY: Final = "sk-tollkeeper-benchmark"


class Load(msgspec.Struct, frozen=True):
    """What wrk saw and what the server spent."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  #: per request, of the server's processes

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def load(process: Process, port: int, seconds: int, *, warm: int = 1) -> Load:
    """Load a server for so many seconds after `warm` seconds. Raises RuntimeError if any request failed."""
    if warm:
        _wrk(port, warm)
    before_s = process.cpu_s()
    saw = _wrk(port, seconds)
    spent_s = process.cpu_s() - before_s
    if saw["failed"] or not saw["requests"]:
        raise RuntimeError(f"{saw['failed']} of {saw['requests']} requests failed:\n{process.told()}")
    return Load(
        requests=saw["requests"], seconds=saw["micros"] / 1e6, p50_ms=saw["p50_us"] / 1e3, p99_ms=saw["p99_us"] / 1e3,
        cpu_us=spent_s * 1e6 / saw["requests"],
    )  # fmt: skip


def _wrk(port: int, seconds: int) -> dict[str, int]:
    script = Path(__file__).with_name("chat.lua")
    ran = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script, f"http://127.0.0.1:{port}{PATH}"],
        env=environment({"KEY": KEY}),
        cwd=ROOT, capture_output=True, text=True, timeout=seconds + 30, check=True,
    )  # fmt: skip
    saw: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    return saw
