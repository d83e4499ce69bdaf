"""A process to be killed that shares a ledger in Redis: `python -m tests.crash.shared_gateway URL JOURNALS NAME SESSION`.

Many tasks reserve, settle, void and abandon; JOURNALS/NAME.notes says what the ledger has acknowledged, a line each:
"settled ID PROJECT SESSION", "voided ID", "refused ID", "unheld ID" (Redis did not answer), "left ID". The notes are written
before anything else happens and outlive a SIGKILL, as all that is written does; no power is cut under them.

Each session has a hard budget that lasts for some dozens of calls, and so has each key, which is shared by three sessions of
each project: all gateways always compete for the last of one budget, then go on to the next. SIGTERM: finish, then leave.

What the suite must catch: with --naive there is no journal, with --careless it is not synced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import zlib
from itertools import count
from pathlib import Path
from random import Random

from msgspec import structs
from tests.crash.naive import NaiveStore

from tollkeeper.clock import SystemClock
from tollkeeper.errors import BudgetExceeded, StoreUnavailable
from tollkeeper.stores import SharedOptions, Store
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis import flush
from tollkeeper.stores.redis import store as shared_store
from tollkeeper.testing.samples import a_hold, an_entry, usd
from tollkeeper.values import Budget, Hold, Scopes

TASKS = 9
PROJECTS = ("alpha", "beta", "free")
#: Calls of this project have neither session nor key: no hard budget covers them, and they go on while Redis is away.
FREE = "free"
QUOTE = 2_000_000
SESSION_LIMIT = 40 * QUOTE
KEY_LIMIT = 180 * QUOTE  # below that of three sessions in each of two projects
SESSIONS_OF_KEY = 3
BUDGETS: tuple[Budget, ...] = (
    usd(SESSION_LIMIT, scope="session", id="*", project="*"),
    usd(KEY_LIMIT, scope="key", id="*", project="*"),
    usd(1, id=FREE, hard=False),
)
DEADLINE_S = 1.0
CLOCK = SystemClock()
log = logging.getLogger("gateway")


def amount(id: str) -> int:
    """What the call of an id cost: known to whoever knows the id."""
    return zlib.crc32(id.encode()) % QUOTE


def scopes(project: str, session: int) -> Scopes:
    if project == FREE:
        return Scopes(project=project)
    return Scopes(project=project, session=f"s{session}", key=f"k{session // SESSIONS_OF_KEY}")


def hurry() -> None:
    """What a host does every few seconds happens several times a second: a test has no minutes."""
    shared_store.GRACE_MS, shared_store.SWEEP_MS, flush.ORPHANS_MS = 500, 200, 500  # type: ignore[misc]


def options(journals: Path) -> SharedOptions:
    return SharedOptions(clock=CLOCK, journal=journals)


class Gateway:
    """`session`: project → the session in which it spends just now."""

    def __init__(self, store: Store | NaiveStore, name: str, session: int, notes: int) -> None:
        self.store, self.name, self.notes = store, name, notes
        self.sessions = dict.fromkeys(PROJECTS, session)
        self.leaving = False

    def say(self, what: str, *words: object) -> None:
        os.write(self.notes, f"{' '.join(map(str, (what, *words)))}\n".encode())

    async def task(self, number: int) -> None:
        random = Random(f"{self.name}-{number}")
        project = PROJECTS[number % len(PROJECTS)]
        for turn in count():
            if self.leaving:
                return
            id, session = f"{self.name}-{number}-{turn}/1", self.sessions[project]
            hold = a_hold(id, QUOTE, at_us=(now_us := CLOCK.now_us()), scopes=scopes(project, session))
            hold = structs.replace(hold, deadline_us=now_us + int(DEADLINE_S * 1e6))
            if await self.held(hold, session):
                await asyncio.sleep(random.random() * 0.02)
                await self.end(hold, session, random.random())

    async def held(self, hold: Hold, session: int) -> bool:
        project = hold.scopes.project
        try:
            await self.store.reserve(hold)
        except BudgetExceeded:
            self.say("refused", hold.id)
            self.sessions[project] = max(self.sessions[project], session + 1)
            return False
        except StoreUnavailable:
            self.say("unheld", hold.id)
            await asyncio.sleep(0.01)
            return False
        return True

    async def end(self, hold: Hold, session: int, chance: float) -> None:
        id = hold.id
        if chance < 0.1:
            if await self.patiently(lambda: self.store.void(id)):
                self.say("voided", id)
        elif chance < 0.12:
            self.say("left", id)
        else:
            entry = an_entry(id, amount(id), at_us=hold.at_us, scopes=hold.scopes)
            if await self.patiently(lambda: self.store.settle(entry)):
                self.say("settled", id, hold.scopes.project, session)

    async def patiently(self, work: object) -> bool:
        """Do it again and again until it is safe (the journal's disk may be full)."""
        while True:
            try:
                await work()  # type: ignore[operator]
            except StoreUnavailable as error:
                log.info("not safe: %s", error)
                if self.leaving:
                    return False
                await asyncio.sleep(0.01)
            else:
                return True

    async def chores(self) -> None:
        while not self.leaving:
            try:
                await self.store.expire(CLOCK.now_us())
            except StoreUnavailable as error:
                log.info("not expired: %s", error)
            await asyncio.sleep(0.1)

    def leave(self) -> None:
        self.leaving = True

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.leave)
        self.say("started")
        await asyncio.gather(self.chores(), *map(self.task, range(TASKS)))
        await self.store.close()


async def main(
    url: str, journals: Path, folder: Path, name: str, session: int, *, naive: bool, careless: bool
) -> None:  # fmt: skip
    notes = os.open(folder / f"{name}.notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = NaiveStore(url) if naive else open_store(url, budgets=BUDGETS, shared=options(journals))
    if careless:
        assert isinstance(store, shared_store.RedisStore)
        store._journal._store._writer._connection.pragma("synchronous", 0)
    await Gateway(store, name, session, notes).run()


if __name__ == "__main__":
    url, journals, folder, name, session = sys.argv[1:6]
    logging.basicConfig(filename=f"{folder}/{name}.log", level=logging.INFO, format="%(created).3f %(message)s")
    hurry()
    careful = {"naive": "--naive" in sys.argv, "careless": "--careless" in sys.argv}
    asyncio.run(main(url, Path(journals), Path(folder), name, int(session), **careful))
