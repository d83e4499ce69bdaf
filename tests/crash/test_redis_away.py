"""Redis answers no more: calls go on as fast as before, memory stays, and all is in order soon after it is back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from statistics import median

import pytest
from tests.crash.rig import ROOT, until

import tollkeeper
from tollkeeper.clock import SystemClock
from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import USD, a_hold, an_entry, usd
from tollkeeper.values import Scopes

CLOCK = SystemClock()
TASKS = 8
#: What is compared is the median of so many windows' 99th percentiles: one hiccup of the machine is none of ours.
WINDOW_S = 0.25
P99_GROWS_MS = 10.0
RECOVERED_S = 5.0
GROWS_KIB = 24 * 1024


async def p99_ms(store: RedisStore, seconds: float, name: str) -> float:
    """How long settling takes, and being refused while Redis is away, under a steady load."""
    windows: list[list[float]] = []
    end = time.monotonic() + seconds

    async def task(number: int) -> None:
        for turn in count():
            if time.monotonic() > end:
                return
            id, at_us = f"{name}-{number}-{turn}/1", CLOCK.now_us()
            began = time.monotonic()
            if store.state == "away":
                with pytest.raises(StoreUnavailable):
                    await store.reserve(a_hold(f"{name}-{number}-{turn}/2", at_us=at_us))
            await store.settle(an_entry(id, at_us=at_us, scopes=Scopes(project=f"p{number}")))
            now = time.monotonic()
            windows[-1].append((now - began) * 1000)
            await asyncio.sleep(0.005)

    async def turn_page() -> None:
        while time.monotonic() < end:
            windows.append([])
            await asyncio.sleep(WINDOW_S)

    await asyncio.gather(turn_page(), *map(task, range(TASKS)))
    return median(sorted(window)[len(window) * 99 // 100] for window in windows if len(window) > TASKS)


async def soon(true: object, what: str, within_s: float = 30) -> None:
    await asyncio.to_thread(until, true, what, within_s)  # type: ignore[arg-type]


async def test_redis_paused(
    own_redis: RedisServer, tmp_path: Path, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    """F2: Redis paused (60 s in make crash): once noticed settling takes no longer; few lines; recovered within 5 s."""
    pause_s = 60.0 if rounds >= 50 else 2.0
    caplog.set_level("INFO", "tollkeeper")
    store = open_store(
        f"{own_redis.url}?timeout=0.5", budgets=[usd(USD)], shared=SharedOptions(clock=CLOCK, journal=tmp_path / "here")
    )
    assert isinstance(store, RedisStore)
    try:
        await soon(lambda: store.state == "ready", "Redis")
        before_ms = await p99_ms(store, 1.5, "before")
        caplog.clear()
        own_redis.pause()
        await soon(lambda: store.state == "away", "that it is noticed")
        paused_ms = await p99_ms(store, pause_s, "paused")
        lines = list(caplog.messages)
        began = time.monotonic()
        own_redis.resume()
        await soon(lambda: store.state == "ready", "the recovery", RECOVERED_S)
        print(
            f"p99 {before_ms:.1f} ms, paused {paused_ms:.1f} ms; recovered in {time.monotonic() - began:.2f} s; {lines}"
        )
        assert paused_ms <= before_ms + P99_GROWS_MS
        assert len(lines) <= 2, lines
        assert len(caplog.messages) <= 6, caplog.messages
        assert await store.verify() == []
    finally:
        await store.close()


def test_memory_while_redis_is_away(own_redis: RedisServer, tmp_path: Path, rounds: int) -> None:
    """I4: 100,000 records (in make crash) that wait for Redis do not wait in memory, nor when they are applied at last."""
    records = 100_000 if rounds >= 50 else 8_000
    source = Path(tollkeeper.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.crash.away", own_redis.url, tmp_path / "here", str(records)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": f"{source}"},
    ) as gateway:  # fmt: skip
        assert gateway.stdout is not None
        told: dict[str, int] = {}
        for what in ("ready", "away", "booked", "applied"):
            said, resident = (gateway.stdout.readline() or "? 0").split()
            assert said == what
            told[what] = int(resident)
            if what == "ready":
                own_redis.kill()
            elif what == "booked":
                own_redis.start()
    print(told)
    assert gateway.returncode == 0
    assert told["booked"] - told["away"] < GROWS_KIB
    assert told["applied"] - told["away"] < GROWS_KIB
