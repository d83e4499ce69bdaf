"""tollkeeper.stores.redis.store: the store as its callers see it. The suite of every store tests the contract."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from tests.gateways import entry, gateways, hold, soon, store_at

from tollkeeper.errors import Conflict, StoreUnavailable
from tollkeeper.stores.redis.store import _is_over
from tollkeeper.testing.redis_server import RedisServer, free_port
from tollkeeper.testing.samples import DIME, USD, booked, usd


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("cells:hour:agent:a%3A1:99", True),
        ("cells:hour:agent:a:100", False),
        ("others:day:key:k:99", False),
        ("entries:99", True),
        ("balance:all:usd:total:UTC::0", False),
    ],
)
def test_what_is_over(name: str, over: bool) -> None:
    """Keys go by their kind's horizon and their period's start; those without one stay."""
    assert _is_over(name, {"hour": 100, "entry": 100}) == over


async def test_redis_that_is_late(redis_server: RedisServer, tmp_path: Path) -> None:
    """I3: without Redis calls are refused with the reason, once the start's patience is over; what is booked is safe, and told."""
    store = store_at(f"redis://127.0.0.1:{free_port()}/0", tmp_path, [usd(USD)])
    assert store.state == "away"
    assert "not there yet" in str(store.trouble)
    store._begin_until_ms = 0
    with pytest.raises(StoreUnavailable, match="not there yet"):
        await store.reserve(hold("a/1"))
    assert await store.settle(entry("a/1")) == "booked"
    assert (store.condition.waiting, store.condition.peers) == (None, 0)
    await store.close()


async def test_condition(own_redis: RedisServer, tmp_path: Path) -> None:
    """The state, since when, what went wrong last, and how much waits."""
    async with gateways([own_redis.url + "?timeout=0.2"], tmp_path, [usd(USD)]) as (store,):
        assert (store.trouble, store.condition.state, store.condition.waiting) == (None, "ready", 0)
        since_us = store.condition.since_us
        own_redis.pause()
        await store.settle(entry("a/1"))
        await soon(lambda: store.state == "away")
        found = store.condition
        assert found.since_us > since_us
        assert (found.waiting, store.trouble) == (1, None)
        assert found.reason
        own_redis.resume()
        await soon(lambda: store.state == "ready" and store.condition.waiting == 0)


async def test_a_repeat_ends_its_hold(redis_server: RedisServer, tmp_path: Path) -> None:
    """B2: a call that was booked before under its id is repeated, and its new hold is let go of; another one is a conflict."""
    async with gateways(redis_server.url, tmp_path, [usd(USD)], many=2) as (one, other):
        await one.settle(entry("a/1"))
        await one._current()
        await one.reserve(hold("a/1"))
        assert await one.settle(entry("a/1")) == "repeated"
        assert await other.settle(entry("a/1")) == "repeated"
        with pytest.raises(Conflict):
            await other.settle(entry("a/1", 2 * DIME))
        assert await one.live() == []
        assert len(await booked(one)) == 1


async def test_several_event_loops(redis_server: RedisServer, tmp_path: Path) -> None:
    """One store serves threads with loops of their own, at once."""
    async with gateways([redis_server.url], tmp_path, [usd(100 * USD)]) as (store,):

        async def calls(name: int) -> None:
            for number in range(20):
                await store.reserve(hold(f"{name}-{number}/1"))
                await store.settle(entry(f"{name}-{number}/1"))

        threads = [threading.Thread(target=lambda name=name: asyncio.run(calls(name))) for name in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join() for thread in threads])
        await store.verify()
        assert len(await booked(store)) == 60
        assert await store.live() == []


async def test_uncovered_is_applied_first(redis_server: RedisServer, tmp_path: Path) -> None:
    """C1: what was spent above its hold, or without one, is in the balances before this process reserves again."""
    async with gateways([redis_server.url], tmp_path, [usd(USD)]) as (store,):
        await store.reserve(hold("a/1"))
        await store.settle(entry("a/1", 5 * DIME))
        await store.settle(entry("b/1", 4 * DIME))
        grant = await store.reserve(hold("c/1"))
        assert grant.tightest is not None
        assert (grant.tightest.spent, grant.tightest.held) == (9 * DIME, DIME)
