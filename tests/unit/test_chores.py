"""chores: what is owed, what has expired, and work that goes on while the ledger fails."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from msgspec import structs
from tests.lines import a_call, a_run, entry, played

from tollkeeper import chores, flow
from tollkeeper.errors import Conflict, StoreUnavailable
from tollkeeper.stores import Retention
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.virtual_loop import VirtualLoop
from tollkeeper.values import Charge, Entry, Hold, Scopes

CLOCK = ManualClock()


class FailingStore(MemoryStore):
    """Raises `failure` for the ids in `failing`."""

    failing: frozenset[str] = frozenset()
    failure: type[Exception] = StoreUnavailable

    async def settle(self, entry: Entry) -> Any:
        if entry.id in self.failing:
            raise self.failure("no")
        return await super().settle(entry)

    async def void(self, hold_id: str) -> None:
        if hold_id in self.failing:
            raise self.failure("no")
        await super().void(hold_id)


def a_gate(store: MemoryStore) -> flow.Gate:
    return structs.replace(a_run_gate(), store=store, clock=CLOCK, owed=[])


def a_run_gate() -> flow.Gate:
    run = a_run(a_call())
    run.loop.close()
    return run.gate


def a_hold(name: str, deadline_us: int) -> Hold:
    return Hold(
        id=f"{name}/1", call=name, attempt=1, scopes=Scopes(project="p"), dialect="d", provider="x", model="m",
        quote_nanos=9, quote_usage=None, at_us=CLOCK.now_us(), deadline_us=deadline_us,
    )  # fmt: skip


def an_entry(name: str) -> Entry:
    return Entry(
        id=f"{name}/1", call=name, at_us=CLOCK.now_us(), scopes=Scopes(project="p"), dialect="d", provider="x",
        model="m", served="m", charge=Charge(amount_nanos=5, status="priced"),
    )  # fmt: skip


async def booked(gate: flow.Gate) -> dict[str, str]:
    """Calls and outcomes, in the order of booking."""
    return {each.call: each.outcome async for each in gate.store.entries(0, 2**60)}


async def test_owed_first_then_expired() -> None:
    """What is owed is booked exactly, what nobody settles at its estimate, and what was not sent not at all."""
    gate, now_us = a_gate(MemoryStore()), CLOCK.now_us()
    for name in ("settled", "unsent", "forgotten"):
        await gate.store.reserve(a_hold(name, now_us))
    await gate.store.reserve(a_hold("young", now_us + 1))
    gate.owed += [an_entry("settled"), a_hold("unsent", now_us)]
    await chores.expire(gate)
    assert await booked(gate) == {"settled": "ok", "forgotten": "expired"}
    assert [hold.call for hold in await gate.store.live()] == ["young"]
    assert gate.owed == []


async def test_owed_stays_owed_while_the_ledger_is_away() -> None:
    """Nothing is dropped, and nothing expires before what is owed is booked."""
    store = FailingStore()
    gate, now_us = a_gate(store), CLOCK.now_us()
    await store.reserve(a_hold("b", now_us))
    gate.owed += [an_entry("a"), an_entry("b")]
    store.failing = frozenset({"b/1"})
    with pytest.raises(StoreUnavailable):
        await chores.expire(gate)
    assert await booked(gate) == {"a": "ok"}
    assert [due.call for due in gate.owed] == ["b"]
    store.failing = frozenset()
    await chores.expire(gate)
    assert await booked(gate) == {"a": "ok", "b": "ok"}


async def test_a_conflict_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """B2: an entry that the ledger will never take is told, and what is behind it is booked."""
    store = FailingStore()
    store.failing, store.failure = frozenset({"a/1"}), Conflict
    gate = a_gate(store)
    await store.reserve(a_hold("c", CLOCK.now_us()))
    gate.owed += [an_entry("a"), an_entry("b")]
    await chores.expire(gate)
    assert await booked(gate) == {"b": "ok", "c": "expired"}
    assert "call a cannot be booked" in caplog.text


async def test_prune() -> None:
    """Entries past their retention go, by the gate's clock."""
    clock = ManualClock()
    gate = structs.replace(a_gate(MemoryStore()), clock=clock)
    await gate.store.settle(an_entry("a"))
    await chores.prune(gate, Retention(entries_s=0))
    assert await booked(gate) == {"a": "ok"}
    clock.advance(86400 * 32)
    await chores.prune(gate, Retention(entries_s=0))
    assert await booked(gate) == {}


def test_every(caplog: pytest.LogCaptureFixture) -> None:
    """Work is done every so often; a ledger that fails is one log line when it begins and one when it ends."""
    times: list[float] = []

    async def work() -> None:
        times.append(asyncio.get_running_loop().time())
        if 3 <= len(times) <= 6:
            raise StoreUnavailable("the disk is full")

    async def main() -> None:
        task = asyncio.create_task(chores.every("expire", 2.0, work))
        await asyncio.sleep(17)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with caplog.at_level(logging.WARNING):
        VirtualLoop().play(main())
    assert times == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [record.getMessage() for record in caplog.records] == [
        "expire: the disk is full",
        "expire: works again",
    ]


def test_another_error_is_not_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """A programmer's error is logged with its place, and the work goes on: holds must still expire."""
    times = 0

    async def work() -> None:
        nonlocal times
        times += 1
        if times == 3:
            raise asyncio.CancelledError
        raise ValueError("a mistake")

    with pytest.raises(asyncio.CancelledError):
        VirtualLoop().play(chores.every("expire", 1.0, work))
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a mistake", "a mistake"]


def test_a_late_settlement_corrects_the_estimate() -> None:
    """C2: a hold that expired while its call still ran is booked at the estimate, then corrected to what was used."""
    run = played(a_call(gap_s=0.9, chunk=300), total_s=60, idle_s=3, hold_ttl_s=5)
    revisions = [(each.outcome, each.sign, each.revision) for each in run.entries(0)]
    assert revisions == [("expired", 1, 0), ("expired", -1, 0), ("ok", 1, 1)]
    assert run.entries(0)[-1].charge == entry(played(a_call())).charge
