"""Once all is quiet: what the ledger has, against what was acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import redis
from tests.crash.naive import COUNTED
from tests.crash.rig import PATIENCE_S, Account, Notes, accounts
from tests.crash.shared_gateway import BUDGETS, CLOCK, amount, hurry, options

from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import Store
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.sqlite.journal import read_journals
from tollkeeper.values import Entry

T = TypeVar("T")


@dataclass
class Verdict:
    """What went wrong, by name; nothing should stand but `faults` and `records`."""

    faults: int = 0
    records: int = 0
    lost: set[str] = field(default_factory=set)
    doubled: set[str] = field(default_factory=set)
    over: list[str] = field(default_factory=list)  #: budgets above their limit, at any sample or in the end
    phantoms: set[str] = field(
        default_factory=set
    )  #: calls that were not made, booked at the estimate: their holds came back
    back: Counter[Account] = field(default_factory=Counter)  #: how many of those each budget has
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0  #: the longest recovery, from the connection on

    def add(self, other: Self) -> None:
        self.faults += other.faults
        self.records += other.records
        self.lost |= other.lost
        self.doubled |= other.doubled
        self.over += other.over
        self.phantoms |= other.phantoms
        self.wrong += other.wrong
        self.slowest_s = max(self.slowest_s, other.slowest_s)

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.over or self.wrong)

    def line(self, kind: str) -> str:
        return (
            f"{kind:24} {self.faults:4} {self.records:7} {len(self.lost):5} {len(self.doubled):5} {len(self.over):5} "
            f"{len(self.phantoms):5} {self.slowest_s:5.1f}  {'; '.join(self.wrong + self.over)[:2000]}"
        )


Standing = dict[str, Entry]


async def audit(url: str, folder: Path, notes: Notes) -> Verdict:
    """Let a next owner put all in order, then compare. For a folder on which no gateway works any more."""
    hurry()
    store = open_store(url, budgets=BUDGETS, shared=options(folder))
    try:
        in_redis, in_journals, left = await _quiet(store, folder)
        found = Verdict(records=notes.read())
        found.wrong += [f"{len(left)} holds are left"] * bool(left)
        found.wrong += [str(difference) for difference in await _patient(store.verify)]
        if in_redis != in_journals:
            apart = in_redis.items() ^ in_journals.items()
            found.wrong.append(f"journals and Redis differ in {len(apart)} entries: {sorted(apart)[:4]}")
        entries = await _patient(lambda: _entries(store))
    finally:
        await store.close()
    judge(found, entries, notes)
    return found


async def _quiet(store: Store, folder: Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """What stands in Redis and in the journals, and holds; as soon as they agree, or when patience ends."""
    end = time.monotonic() + PATIENCE_S
    while True:
        left, in_redis, in_journals = ["?"], dict[str, str](), dict[str, str]()
        try:
            await store.expire(CLOCK.now_us())
            left = [hold.id for hold in await store.live()]
            if not left:
                in_redis = _told(await _entries(store))
                in_journals = await _in_journals(folder)
        except StoreUnavailable:
            pass
        if (not left and in_redis == in_journals) or time.monotonic() > end:
            return in_redis, in_journals, left
        await asyncio.sleep(0.1)


async def _patient(ask: Callable[[], Awaitable[T]]) -> T:
    """The answer: sentinels may end connections long after they have promoted a replica."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


async def _entries(store: Store) -> list[Entry]:
    return [entry async for entry in store.current(0, FOREVER_US)]


async def _in_journals(folder: Path) -> dict[str, str]:
    entries: list[Entry] = []
    for reader in read_journals(folder):
        entries += [entry async for entry in reader.current(0, FOREVER_US)]
        await reader.close()
    return _told(entries)


def _told(entries: Iterable[Entry]) -> dict[str, str]:
    """What stands under each id; a settlement is above an estimate, wherever it is."""
    found: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: entry.outcome != "expired"):
        found[entry.id] = f"{entry.outcome} {entry.charge.amount_nanos}"
    return found


def judge(found: Verdict, entries: list[Entry], notes: Notes) -> None:
    by_id = {entry.id: entry for entry in entries}
    found.lost |= {
        id for id in notes.settled if id not in by_id or (by_id[id].charge.amount_nanos, by_id[id].outcome) != (amount(id), "ok")
    }  # fmt: skip
    found.doubled |= {id for id, times in Counter(entry.id for entry in entries).items() if times > 1}
    found.phantoms |= {id for id, entry in by_id.items() if entry.outcome == "expired"} & notes.let_go
    sums, limits = Counter[Account](), dict[Account, int]()
    for entry in entries:
        for account, limit in accounts(entry.scopes).items():
            limits[account] = limit
            if entry.id in found.phantoms:
                found.back[account] += 1
            else:
                sums[account] += entry.charge.amount_nanos or 0
    found.over += [f"{account}: {spent} booked" for account, spent in sums.items() if spent > limits[account]]


def audit_naive(client: redis.Redis, notes: Notes) -> Verdict:
    """The same of a `NaiveStore`."""
    counted = {id.decode(): int(times) for id, times in client.hgetall(COUNTED).items()}
    return Verdict(
        records=notes.read(),
        lost={id for id in notes.settled if id not in counted},
        doubled={id for id, times in counted.items() if times > 1},
    )
