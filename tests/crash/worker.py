"""A process to be killed: `python -m tests.crash.worker LEDGER SEED [--lossy] [--journal]`.

Reserves, settles, voids and abandons holds from many tasks, and says on stdout what the ledger has acknowledged, a line each:
"held ID", "settled ID", "voided ID", "left ID". With --lossy it says so before it asks: what the harness must notice.
With --journal LEDGER is a folder of journals, of which it adopts one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import zlib
from itertools import count
from pathlib import Path
from random import Random

from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import USD, a_hold, an_entry, usd

TASKS = 16
BUDGETS = (usd(10**6 * USD), usd(10**6 * USD, window="day", timezone="Asia/Kolkata"))


def amount(id: str) -> int:
    """What the call of an id cost: known to whoever knows the id."""
    return zlib.crc32(id.encode()) % 1_000_000


def say(what: str, id: str) -> None:
    os.write(1, f"{what} {id}\n".encode())


async def task(store: SqliteStore | Journal, name: str, random: Random, lossy: bool) -> None:
    for number in count():
        id = f"{name}-{number}/1"
        if random.random() < 0.8:
            await store.reserve(a_hold(id, 2_000_000))
            say("held", id)
        end = random.random()
        if end < 0.1:
            await store.void(id)
            say("voided", id)
        elif end < 0.2:
            say("left", id)
        elif lossy:
            say("settled", id)
            await store.settle(an_entry(id, amount(id)))
        else:
            await store.settle(an_entry(id, amount(id)))
            say("settled", id)


async def main(path: Path, seed: str, lossy: bool, journal: bool) -> None:
    store = Journal.adopt(path) if journal else SqliteStore(path, BUDGETS)
    await asyncio.gather(*(task(store, f"{seed}-{n}", Random(f"{seed}-{n}"), lossy) for n in range(TASKS)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], "--lossy" in sys.argv, "--journal" in sys.argv))
