"""A gateway to be killed: `python -m tests.crash.leaseholder URL FOLDER LIMIT LEASE NAME`.

Reserves of one leased budget from many tasks, and says on stdout what the store has acknowledged, a line each: "held ID",
"settled ID NANOS", "voided ID", "refused ID".
"""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import count
from pathlib import Path
from random import Random

from tollkeeper.clock import SystemClock
from tollkeeper.errors import BudgetExceeded, StoreUnavailable
from tollkeeper.stores import SharedOptions, Store
from tollkeeper.stores.opening import open_store
from tollkeeper.testing.samples import DIME, a_hold, an_entry
from tollkeeper.values import Budget

CLOCK = SystemClock()
TASKS = 8


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def task(store: Store, name: str, random: Random) -> None:
    for number in count():
        id, at_us = f"{name}-{number}/1", CLOCK.now_us()
        try:
            await store.reserve(a_hold(id, DIME, at_us=at_us))
        except (BudgetExceeded, StoreUnavailable):
            say("refused", id)
            await asyncio.sleep(0.05)
            continue
        say("held", id)
        await asyncio.sleep(random.random() * 0.01)
        if random.random() < 0.1:
            await store.void(id)
            say("voided", id)
        else:
            nanos = random.choice((DIME, DIME // 2, DIME // 3))
            await store.settle(an_entry(id, nanos, at_us=at_us))
            say("settled", id, nanos)


async def main(url: str, folder: str, limit: int, lease: int, name: str) -> None:
    budget = Budget(scope="all", limit=limit, window="day", lease=lease)
    store = open_store(url, budgets=[budget], shared=SharedOptions(clock=CLOCK, journal=Path(folder)))
    await asyncio.gather(*(task(store, f"{name}.{number}", Random(f"{name}.{number}")) for number in range(TASKS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
