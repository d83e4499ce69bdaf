"""A gateway that books while Redis is away: `python -m tests.crash.away URL JOURNALS RECORDS`.

Says "ready", "away KiB", "booked KiB", "applied KiB": what it has resident when Redis is away and a tenth of the records is
booked, when all are, and when Redis is back and has them.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.crash import rig

from tollkeeper.clock import SystemClock
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.samples import a_hold, an_entry
from tollkeeper.values import Scopes

TASKS = 64
CLOCK = SystemClock()


def say(what: str) -> None:
    resident = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert resident is not None
    print(what, resident[1], flush=True)


async def some(store: RedisStore, first: int, last: int) -> None:
    """Reserve and settle a range of calls, TASKS at once."""
    numbers = iter(range(first, last))

    async def task() -> None:
        for number in numbers:
            scopes, at_us = Scopes(project=f"p{number % 4}", agent=f"a{number % 50}"), CLOCK.now_us()
            await store.reserve(a_hold(f"{number}/1", at_us=at_us, scopes=scopes))
            await store.settle(an_entry(f"{number}/1", at_us=at_us, scopes=scopes))

    await asyncio.gather(*(task() for _ in range(TASKS)))


async def until(store: RedisStore, state: str) -> None:
    await asyncio.to_thread(rig.until, lambda: store.state == state, f"Redis to be {state}")


async def main(url: str, journals: Path, records: int) -> None:
    store = open_store(url, budgets=(), shared=SharedOptions(clock=CLOCK, journal=journals))
    assert isinstance(store, RedisStore)
    await until(store, "ready")
    await some(store, 0, 500)
    say("ready")
    await until(store, "away")
    await some(store, 500, 500 + records // 10)
    say("away")
    await some(store, 500 + records // 10, 500 + records)
    say("booked")
    await until(store, "ready")
    size = await store.size()
    assert size.entries == 500 + records, size
    say("applied")
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
