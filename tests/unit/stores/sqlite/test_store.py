"""The embedded ledger when its disk fails, its callers leave, and several threads use it."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.unit.stores.sqlite.disk import Disk

from tollkeeper.errors import BudgetExceeded, Conflict, StoreUnavailable
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import (
    ALPHA,
    AT_US,
    DAY_US,
    DIME,
    KEEP_ALL,
    USD,
    a_hold,
    an_entry,
    booked,
    standing,
    usd,
)
from tollkeeper.values import Charge, Entry, Scopes, Usage


def ids(entries: list[Entry]) -> list[str]:
    return sorted(entry.id for entry in entries)


async def stopped(disk: Disk, store: SqliteStore) -> asyncio.Task[Any]:
    """A settlement on whose sync the writer stands: whatever comes now waits for it, and is one batch."""
    disk.stop()
    first = asyncio.create_task(store.settle(an_entry("first/1")))
    await asyncio.to_thread(disk.reached.wait, 30)
    return first


async def queued(*work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(each) for each in work]
    await asyncio.sleep(0)
    return tasks


# ── a batch ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reservation_repeated_while_the_first_fails(store: SqliteStore, disk: Disk) -> None:
    """A repeated reservation is answered when the first one is safe: no grant for a hold that is not there."""
    first = await stopped(disk, store)
    tasks = await queued(store.reserve(a_hold("a/1")), store.reserve(a_hold("a/1")))
    disk.failing.add("write")
    disk.go()
    await first
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
    assert await store.live() == []


async def test_a_bad_write_does_not_harm_its_batch(store: SqliteStore, disk: Disk) -> None:
    """B2: in one batch a conflict and values that no ledger can hold fail alone; everyone else's entry is booked."""
    await store.settle(an_entry("old/1"))
    bad: list[tuple[Entry, type[Exception]]] = [
        (an_entry("old/1", 7), Conflict),
        (an_entry("bad1/1", -1), ValueError),
        (an_entry("bad2/1", usage=Usage(input=-1)), ValueError),
        (an_entry("bad3/1", usage=Usage(input=2**63)), ValueError),
        (an_entry("bad4/1", usage=Usage(input=2**70)), ValueError),
        (an_entry("bad5/1", scopes=Scopes(project="\ud800")), ValueError),
        (an_entry("bad6/1", charge=Charge(amount_nanos=1, status="free")), ValueError),
    ]
    first = await stopped(disk, store)
    good = await queued(*(store.settle(an_entry(f"good{number}/1")) for number in range(3)))
    wrong = await queued(*(store.settle(entry) for entry, _ in bad))
    more = await queued(*(store.settle(an_entry(f"more{number}/1")) for number in range(3)))
    disk.go()
    assert await asyncio.gather(first, *good, *more) == ["booked"] * 7
    for task, (_, error) in zip(wrong, bad, strict=True):
        with pytest.raises(error):
            await task
    names = ["first", "good0", "good1", "good2", "more0", "more1", "more2", "old"]
    assert ids(await booked(store)) == [f"{name}/1" for name in names]
    assert (await standing(store)).spent == len(names) * DIME
    assert await store.verify() == []


# ── callers that leave ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_cancelled_reservation_can_be_voided(store: SqliteStore, disk: Disk) -> None:
    """D4: whoever is cancelled while it reserves names its hold afterwards, and nothing stays."""
    first = await stopped(disk, store)
    (task,) = await queued(store.reserve(a_hold("a/1")))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (void,) = await queued(store.void("a/1"))
    disk.go()
    await asyncio.gather(first, void)
    assert await store.live() == []
    assert store.query("holds") == []


async def test_a_hold_let_go_of_at_its_deadline(store: SqliteStore, disk: Disk) -> None:
    """C2: a hold that is being let go of when its deadline comes is not booked; where that cannot be written, it is."""
    await store.reserve(a_hold("a/1"))
    first = await stopped(disk, store)
    (void,) = await queued(store.void("a/1"))
    assert await store.expire(2**60) == 0
    disk.go()
    await asyncio.gather(first, void)
    assert ids(await booked(store)) == ["first/1"]
    await store.reserve(a_hold("b/1"))
    disk.failing.add("write")
    with pytest.raises(StoreUnavailable):
        await store.void("b/1")
    disk.failing.clear()
    assert await store.expire(2**60) == 1


async def test_the_census_places_what_is_new(store: SqliteStore) -> None:
    """G1: an entry that comes with places, as from another ledger, is counted where this ledger's census says."""
    await store.settle(an_entry("a/1", other=("project",)))
    assert [entry.other for entry in await booked(store)] == [()]


async def test_a_cancelled_settlement_is_booked(store: SqliteStore, disk: Disk) -> None:
    """D4: a settlement that was handed over is booked, whoever waits for it, and its hold ends."""
    await store.reserve(a_hold("a/1"))
    first = await stopped(disk, store)
    (task,) = await queued(store.settle(an_entry("a/1")))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    disk.go()
    await first
    assert await store.settle(an_entry("a/1")) == "repeated"
    assert await store.live() == []
    assert (await standing(store)).spent == 2 * DIME


def test_a_loop_that_ends_before_it_is_told(disk: Disk, path: Path) -> None:
    """B2: what a closed event loop was never told is booked all the same, counts once and blocks nobody."""
    store = SqliteStore(path, [usd(USD)])

    async def leave() -> None:
        await store.reserve(a_hold("a/1"))
        await store.reserve(a_hold("b/1"))
        disk.stop()
        await queued(store.settle(an_entry("a/1")), store.settle(an_entry("b/1")), store.void("b/1"))
        await asyncio.to_thread(disk.reached.wait, 30)

    asyncio.run(leave())
    disk.go()

    async def come() -> None:
        assert await store.settle(an_entry("a/1")) == "repeated"
        assert await store.settle(an_entry("b/1")) == "repeated"
        assert await store.expire(2**60) == 0
        assert await store.live() == []
        assert ((await standing(store)).spent, (await standing(store)).held) == (2 * DIME, 0)
        assert await store.verify() == []
        await store.close()

    asyncio.run(asyncio.wait_for(come(), 30))


def test_a_loop_that_never_runs_again(path: Path) -> None:
    """B2: an event loop that stands still, and does not take its answer, keeps nothing from the others."""
    store = SqliteStore(path, [usd(USD)])
    loop = asyncio.new_event_loop()
    task = loop.create_task(store.settle(an_entry("a/1")))
    loop.run_until_complete(asyncio.sleep(0))

    async def come() -> None:
        assert await store.settle(an_entry("a/1")) == "repeated"
        assert (await standing(store)).spent == DIME
        await store.close()

    asyncio.run(asyncio.wait_for(come(), 30))
    assert loop.run_until_complete(task) == "booked"
    loop.close()


async def test_close_while_writes_wait(store: SqliteStore, disk: Disk, path: Path) -> None:
    """B1: closing ends what was handed over: everyone is answered, and the file alone is the whole ledger."""
    first = await stopped(disk, store)
    tasks = await queued(*(store.settle(an_entry(f"a{number}/1")) for number in range(20)), store.close())
    disk.go()
    await asyncio.gather(first, *tasks)
    copy = path.with_name("copy.sqlite")
    shutil.copy(path, copy)
    again = SqliteStore(copy)
    assert len(await booked(again)) == 21
    assert await again.verify() == []
    await again.close()


@pytest.mark.parametrize(
    "work",
    [
        lambda store: store.reserve(a_hold("a/1")),
        lambda store: store.settle(an_entry("a/1")),
        lambda store: store.standings(ALPHA, "m", AT_US + 40 * DAY_US),
        lambda store: store.set_budgets([usd(1)]),
        lambda store: store.prune(AT_US, KEEP_ALL),
        lambda store: store.entry("alpha", "a/1"),
        lambda store: store.cells("project", "day", 0, FOREVER_US),
        lambda store: store.verify(),
    ],
)
async def test_a_closed_ledger_says_so(path: Path, work: Callable[[SqliteStore], Awaitable[object]]) -> None:
    """After close everything that would need the file raises StoreUnavailable; closing again is harmless."""
    store = SqliteStore(path, [usd(USD)])
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await work(store)
    await store.void("a/1")
    assert await store.live() == []


# ── threads, and the next owner ──────────────────────────────────────────────────────────────────────────────────────


def test_one_loop_after_another(path: Path) -> None:
    """A ledger serves asyncio.run after asyncio.run."""
    store = SqliteStore(path)
    for number in range(3):
        assert asyncio.run(store.settle(an_entry(f"{number}/1"))) == "booked"
    asyncio.run(store.close())


def test_four_threads_at_once(path: Path) -> None:
    """C1, B2: four threads with a loop each: exactly 10 of 200 reservations are admitted, and each id is booked once."""
    store = SqliteStore(path, [usd(USD)])

    async def work(thread: int) -> tuple[int, list[str]]:
        admitted = 0
        for number in range(50):
            try:
                await store.reserve(a_hold(f"{thread}-{number}/1"))
            except BudgetExceeded:
                continue
            admitted += 1
        other = Scopes(project="beta")
        answers = await asyncio.gather(*(store.settle(an_entry(f"{number}/1", scopes=other)) for number in range(100)))
        assert len(await store.cells("project", "day", 0, FOREVER_US)) == 1
        return admitted, list(answers)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda thread: asyncio.run(work(thread)), range(4)))
    assert sum(admitted for admitted, _ in done) == 10
    assert sum(answers.count("booked") for _, answers in done) == 100
    assert sum(answers.count("repeated") for _, answers in done) == 300
    assert asyncio.run(store.verify()) == []
    asyncio.run(store.close())


async def test_the_next_owner_books_what_was_held(path: Path) -> None:
    """C2: holds found at start are booked at their estimate once; one whose id was booked before only goes away."""
    store = SqliteStore(path, [usd(USD)])
    await store.settle(an_entry("done/1"))
    for id in ("done/1", "a/1", "b/1"):
        await store.reserve(a_hold(id))
    await store.close()
    for _ in range(2):
        store = SqliteStore(path, [usd(USD)])
        assert await store.live() == []
        assert store.query("holds") == []
        assert [(entry.id, entry.outcome) for entry in await booked(store)] == [
            ("done/1", "ok"), ("a/1", "expired"), ("b/1", "expired"),
        ]  # fmt: skip
        assert ((await standing(store)).spent, (await standing(store)).held) == (3 * DIME, 0)
        assert await store.verify() == []
        await store.close()
    store = SqliteStore(path, [usd(USD)])
    assert await store.settle(an_entry("a/1", 3)) == "late"
    assert (await standing(store)).spent == 2 * DIME + 3
    await store.close()


async def test_a_clock_far_ahead(store: SqliteStore) -> None:
    """An expiry takes one commit for all: 300 holds past their deadline are booked, none is left."""
    await asyncio.gather(*(store.reserve(a_hold(f"{number}/1", 1)) for number in range(300)))
    assert await store.expire(AT_US + DAY_US) == 300
    assert await store.live() == []
    assert (await standing(store)).spent == 300


async def test_what_a_pruned_window_had(store: SqliteStore) -> None:
    """B7: a late entry for a window whose balance has been dropped is booked, and verify finds no difference."""
    await store.settle(an_entry("a/1"))
    await store.prune(AT_US + 60 * DAY_US, KEEP_ALL)
    assert (await standing(store)).spent == DIME, "calls reserved in it may still come in"
    later_us = AT_US + 120 * DAY_US
    await store.prune(later_us, structs.replace(KEEP_ALL, entries_s=None))
    await store.settle(an_entry("b/1"))
    assert await store.verify() == []


def test_a_write_while_the_writer_falls_asleep(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: a write that comes just when the writer has found its queue empty does not end it, and is written."""
    store = SqliteStore(path)
    lock, late = store._lock, []

    class Lock:
        """The ledger's lock; once, when the writer lets go of it with an empty queue, somebody writes."""

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            if threading.current_thread() is store._thread and store._wake_at == 1 and not late:
                late.append(1)
                with lock:
                    store._submit(done=lambda safe: late.append(2))

    async def come() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)  # the writer's thread has none
        store._lock = Lock()  # type: ignore[assignment]
        for number in range(3):
            assert await store.settle(an_entry(f"{number}/1")) == "booked"
        while late != [1, 2]:  # noqa: ASYNC110 the writer's thread has no event to wait for
            await asyncio.sleep(0)
        await store.close()

    asyncio.run(asyncio.wait_for(come(), 30))


async def test_new_limits_amid_writes(store: SqliteStore, disk: Disk) -> None:
    """What is queued when limits change is written before they count: a new balance has all of it, once."""
    disk.stop()
    with store._lock:  # both in one batch
        tasks = await queued(store.settle(an_entry("a/1")), store.set_budgets([usd(USD, window="day")]))
    await asyncio.to_thread(disk.reached.wait, 30)
    tasks += await queued(store.settle(an_entry("b/1")))
    disk.go()
    await asyncio.gather(*tasks)
    assert ids(await booked(store)) == ["a/1", "b/1"]
    assert (await standing(store)).spent == 2 * DIME
    assert await store.verify() == []


def test_new_limits_before_anybody_is_told(path: Path) -> None:
    """What is written when limits change, and nobody has been told of yet, counts once."""
    store = SqliteStore(path, [usd(USD)])
    loop = asyncio.new_event_loop()
    with store._lock:
        works = [store.settle(an_entry("a/1")), store.set_budgets([usd(USD), usd(USD, window="day")])]
        tasks = [loop.create_task(work) for work in works]
        loop.run_until_complete(asyncio.sleep(0))
    while not store._news or len(store._book.shapes) < 2:
        time.sleep(0)

    async def come() -> None:
        assert [each.spent for each in await store.standings(ALPHA, "m", AT_US)] == [DIME, DIME]
        await store.close()

    asyncio.run(asyncio.wait_for(come(), 30))
    loop.run_until_complete(asyncio.gather(*tasks))
    loop.close()
