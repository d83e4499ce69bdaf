"""kill -9 of gateways that hold leases: a budget is never passed, what was acknowledged counts once, nothing stays held."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from tests.gateways import gateways, hold, scan, sums

from tollkeeper.errors import BudgetExceeded
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores.redis.keys import GLOBAL
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD
from tollkeeper.values import Budget

PROCESSES = 3
LEASE = 3 * USD


def start(url: str, folder: Path, limit: int, name: str, told: Path) -> subprocess.Popen[bytes]:
    with told.open("ab") as out:
        command = [sys.executable, "-m", "tests.crash.leaseholder", url, str(folder), str(limit), str(LEASE), name]
        return subprocess.Popen(command, stdout=out)


def acknowledged(told: Path) -> tuple[dict[str, int], set[str], set[str]]:
    """(settled id → nanos, voided ids, held ids), as far as whole lines go."""
    settled: dict[str, int] = {}
    voided, held = set[str](), set[str]()
    for line in told.read_text().splitlines():
        match line.split():
            case ["settled", id, nanos]:
                settled[id] = int(nanos)
            case ["voided", id]:
                voided.add(id)
            case ["held", id]:
                held.add(id)
    return settled, voided, held


def balance(client: Any) -> tuple[int, int]:
    """(spent, held) of the budget, its holds and leases having been added up."""
    return next((each for name, each in sums(client).items() if name.startswith(f"{GLOBAL}:all:")), (0, 0))


async def admits(store: RedisStore, id: str) -> bool:
    try:
        await store.reserve(hold(id))
    except BudgetExceeded:
        return False
    return True


async def test_gateways_with_leases(own_redis: RedisServer, tmp_path: Path, rounds: int) -> None:
    """B1, C1, C2: three processes spend one budget by leases and are killed at random until nothing is left of it."""
    random, told, limit = Random(4711), tmp_path / "told", 30 * USD * rounds
    folder = tmp_path / "host0"
    processes: list[subprocess.Popen[bytes]] = []
    most = number = 0
    with own_redis.client() as client:
        try:
            end = time.monotonic() + 3 * rounds
            while time.monotonic() < end:
                while len(processes) < PROCESSES:
                    number += 1
                    processes.append(start(own_redis.url, folder, limit, f"g{number}", told))
                pause = time.monotonic() + 0.3 + random.random()
                while time.monotonic() < pause:
                    most = max(most, balance(client)[0])
                    await asyncio.sleep(0.01)
                victim = processes.pop(random.randrange(PROCESSES))
                victim.send_signal(signal.SIGKILL)
                await asyncio.to_thread(victim.wait)
        finally:
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        settled, voided, held = acknowledged(told)
        budget = Budget(scope="all", limit=limit, window="day", lease=LEASE)
        async with gateways([own_redis.url], tmp_path, [budget]) as (store,):  # it adopts what the dead have left
            assert await store.verify() == []
            entries = [each async for each in store.current(0, FOREVER_US)]
            amounts = {each.id: each.charge.amount_nanos or 0 for each in entries}
            assert len(amounts) == len(entries), "an id counts twice"
            assert {id for id, nanos in settled.items() if amounts.get(id) != nanos} == set(), "lost"
            assert voided & amounts.keys() == set()
            spent, still = balance(client)
            assert spent == sum(amounts.values())
            assert most <= limit
            assert spent + still <= limit
            assert not any(name.endswith(":leases") for name in scan(client)), "a dead gateway's lease stands"
            admitted = 0
            while await admits(store, f"last-{admitted}/1"):
                admitted += 1
            assert admitted == (limit - spent - still) // DIME
        print(f"{number} processes, {len(settled)} settled, {len(held)} held, {spent} spent, {still} still held")
