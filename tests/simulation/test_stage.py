"""testing/stage: a client and a ledger that keep to their script."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest
from msgspec import structs
from tests.lines import STAYS, a_call

from tollkeeper.errors import BudgetExceeded, StoreUnavailable
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.script import Ledger
from tollkeeper.testing.stage import Client, Story, TroubledStore
from tollkeeper.testing.virtual_loop import VirtualLoop
from tollkeeper.values import Budget, Hold, Scopes

BUDGET = Budget(scope="project", measure="requests", window="total", limit=1)


def a_hold(name: str = "c") -> Hold:
    return Hold(
        id=f"{name}/1", call=name, attempt=1, scopes=Scopes(project="p"), dialect="d", provider="x", model="m",
        quote_nanos=1, quote_usage=None, at_us=START_US, deadline_us=START_US + 10,
    )  # fmt: skip


def a_store(troubles: Ledger) -> TroubledStore:
    return TroubledStore((BUDGET,), troubles, Random(1), lambda text: None)


def run(work: Coroutine[Any, Any, None]) -> None:
    VirtualLoop().play(work)


def test_a_write_that_fails() -> None:
    """Refused: nothing happened. Unheard: it happened, and the caller is told that it failed."""

    async def main() -> None:
        for troubles, live in ((Ledger(refused=1), 0), (Ledger(unheard=1), 1)):
            store = a_store(troubles)
            with pytest.raises(StoreUnavailable):
                await store.reserve(a_hold())
            assert len(store.holds()) == live

    run(main())


def test_an_outage_ends() -> None:
    """Every write fails while it lasts."""

    async def main() -> None:
        store = a_store(Ledger(outages_s=((0, 5),)))
        with pytest.raises(StoreUnavailable):
            await store.reserve(a_hold())
        await asyncio.sleep(5)
        await store.reserve(a_hold())
        assert len(store.holds()) == 1

    run(main())


def test_writes_are_made_in_order_whoever_waits() -> None:
    """A reservation whose caller was cancelled is made all the same, and before the void that follows it."""

    async def main() -> None:
        store = a_store(Ledger(latency_s=1))
        task = asyncio.ensure_future(store.reserve(a_hold()))
        await asyncio.sleep(0)
        task.cancel()
        await store.void("c/1")
        assert store.holds() == []
        await store.reserve(a_hold())
        with pytest.raises(BudgetExceeded):
            await store.reserve(a_hold("d"))

    run(main())


def test_a_dead_process_writes_nothing() -> None:
    """What was queued when it died is lost."""

    async def main() -> None:
        store = a_store(Ledger(latency_s=1))
        task = asyncio.ensure_future(store.reserve(a_hold()))
        await asyncio.sleep(0)
        store.down = True
        await asyncio.sleep(10)
        task.cancel()
        with pytest.raises(StoreUnavailable):
            await store.void("c/1")
        store.recover()
        assert store.holds() == []
        assert await store.expire(START_US + 10) == 0

    run(main())


def a_client(**manners: Any) -> tuple[Story, Client, list[bytes]]:
    story, ends = Story(a_call(client=structs.replace(STAYS, **manners))), list[bytes]()
    return story, Client(story, lambda number, text: None, lambda story: ends.append(bytes(story.body))), ends


def test_a_client_that_leaves() -> None:
    """It is told once, and gets nothing more."""

    async def main() -> None:
        story, client, ends = a_client()
        left = list[int]()
        client.on_left(lambda: left.append(1))
        await client.start(200, [])
        await client.send(b"data: a\n\n")
        client.leave()
        client.leave()
        await client.end(b"data: [DONE]\n\n")
        assert (story.body, story.ended, left, ends) == (b"data: a\n\n", False, [1], [])

    run(main())


def test_a_client_sees_the_end_marker() -> None:
    """Also where it comes in two pieces, and before the reply ends; once."""

    async def main() -> None:
        story, client, ends = a_client()
        await client.start(200, [])
        await client.send(b"data: [DO")
        assert ends == []
        await client.send(b"NE]\n\n")
        assert len(ends) == 1
        await client.end()
        assert len(ends) == 1
        assert story.ended

    run(main())


def test_a_client_that_does_not_read() -> None:
    """It takes no more pieces, until it goes."""

    async def main() -> None:
        story, client, _ = a_client(manner="stops", stops_at=1)
        await client.start(200, [])
        await client.send(b"a")
        sending = asyncio.ensure_future(client.send(b"b"))
        await asyncio.sleep(1000)
        assert not sending.done()
        client.leave()
        await sending
        assert story.body == b"a"

    run(main())
