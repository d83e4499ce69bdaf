"""tollkeeper.stores.redis.flush: rows on their way to Redis, and recoveries. What whole gateways do is in tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event

import pytest
from tests.gateways import NOW_US, entry, gateways, hold, of, soon, sums

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis import flush
from tollkeeper.stores.redis.apply import Applier
from tollkeeper.stores.redis.keys import Keys, tag_of
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD
from tollkeeper.values import Budget

OWN = Budget(scope="project", limit=USD, window="total")
KEYS = Keys()


@pytest.fixture
async def store(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[RedisStore]:
    async with gateways([own_redis.url], tmp_path, [OWN]) as (store,):
        yield store


async def flushed(store: RedisStore) -> None:
    await asyncio.wrap_future(store._flusher.flushed())


async def test_rows_travel_together(store: RedisStore, own_redis: RedisServer) -> None:
    """What is booked at the same time is one batch; who waits for it hears when it is there, and it may be pruned then."""
    await asyncio.gather(*(store.settle(entry(f"{number}/1")) for number in range(50)))
    await flushed(store)
    with own_redis.client() as client:
        assert int(client.hget(KEYS.cursor(tag_of("alpha")), store._journal.id) or 0) == 50
        (blocks,) = client.scan_iter("*:entries:*")
        assert client.llen(blocks) <= 5
    assert store._flusher.applied(tag_of("alpha")) == store._flusher.applied_upto() == store._flusher.done == 50
    assert store._flusher.applied("unknown") == 0


async def test_nobody_waits_for_who_is_away(store: RedisStore, own_redis: RedisServer) -> None:
    """Who waits when Redis goes away is told so, and so is who asks afterwards; nothing may be pruned then."""
    own_redis.pause()
    await store.settle(entry("a/1"))
    with pytest.raises(StoreUnavailable):
        await flushed(store)
    await soon(lambda: store.state == "away")
    with pytest.raises(StoreUnavailable):
        await flushed(store)
    assert store._flusher.applied_upto() == 0
    own_redis.resume()
    await soon(lambda: store.state == "ready")
    await flushed(store)
    assert store._flusher.done == 1


async def test_more_than_fits_in_memory(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4: rows beyond what waits in memory are read from the journal, each once."""
    monkeypatch.setattr(flush, "WAITING_MAX", 10)
    for number in range(4):
        await asyncio.gather(*(store.settle(entry(f"{number}-{each}/1")) for each in range(30)))
    async with asyncio.timeout(10):
        while True:
            try:
                await flushed(store)
            except StoreUnavailable:
                await asyncio.sleep(0.01)
                continue
            break
    await soon(lambda: store._flusher.done == 120)
    assert (await store.size()).entries == 120


async def test_a_mistake_is_not_the_end(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours is told to who waits, and rows go on their way afterwards."""
    apply, calls = Applier.apply, 0

    def fails(self: Applier, rows: object) -> object:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ZeroDivisionError
        return apply(self, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Applier, "apply", fails)
    await store.settle(entry("a/1"))
    with pytest.raises(StoreUnavailable, match="mistake"):
        await flushed(store)
    await soon(lambda: store._flusher.done == 1)
    assert (await store.size()).entries == 1


async def test_a_cursor_that_moved(store: RedisStore, own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """B4: a gateway with nothing to do notices within a sign of life that a slot has forgotten it, and brings it all back."""
    await store.settle(entry("a/1"))
    await flushed(store)
    tag = tag_of("alpha")
    with own_redis.client() as client:
        for key in client.scan_iter(f"tollkeeper:{{{tag}}}:*"):
            client.delete(key)
    await soon(lambda: "Redis has row 0 of this journal, not 1" in caplog.text)
    await soon(lambda: store.state == "ready")
    assert (await store.size()).entries == 1


async def test_a_new_epoch_when_a_slot_forgets(store: RedisStore, own_redis: RedisServer) -> None:
    """B4: who finds that a slot alone has forgotten begins a new epoch, in which everyone checks what it has there; once."""
    await store.reserve(hold("a/1"))
    await store.settle(entry("b/1"))
    await flushed(store)
    epoch, tag = store._flusher.epoch, tag_of("alpha")
    with own_redis.client() as client:
        for key in client.scan_iter(f"tollkeeper:{{{tag}}}:*"):
            client.delete(key)
        with pytest.raises(StoreUnavailable):
            await store.reserve(hold("c/1"))
        await soon(lambda: store.state == "ready" and store._flusher.epoch != epoch)
        assert (client.get(KEYS.epoch) or b"").decode() == store._flusher.epoch
        assert sums(client)[f"{tag}:project:usd:total:UTC:"] == (DIME, DIME)
        assert store._shared.renew("another") == store._flusher.epoch


async def test_a_waiter_that_has_left(store: RedisStore, own_redis: RedisServer) -> None:
    """D4: who waited for the flush and is cancelled leaves the threads as they are, whatever becomes of what he waited for."""
    await store.reserve(hold("w/1"))
    own_redis.pause()
    await store.settle(entry("w/1"))
    waits = [asyncio.create_task(asyncio.wait_for(store._current(), 0.05)) for _ in range(3)]
    assert [type(each) for each in await asyncio.gather(*waits, return_exceptions=True)] == [TimeoutError] * 3
    own_redis.resume()
    own_redis.restart(kill=True)
    await soon(lambda: store.state == "ready")
    await store.settle(entry("a/1"))
    await store._current()


async def test_applied_before_it_was_heard(store: RedisStore, own_redis: RedisServer) -> None:
    """A row that a recovery has read from the journal before this process heard of it ends its hold nevertheless."""
    await store.reserve(hold("a/1"))
    await store.settle(entry("b/1"))
    await flushed(store)
    with own_redis.client() as client:
        assert sums(client)[f"{tag_of('alpha')}:project:usd:total:UTC:"] == (DIME, DIME)
        store._flusher.push([(1, entry("a/1"))])
        await flushed(store)
        await soon(lambda: sums(client)[f"{tag_of('alpha')}:project:usd:total:UTC:"] == (DIME, 0))


async def test_signs_of_life(own_redis: RedisServer, tmp_path: Path) -> None:
    """Gateways know each other; one that leaves in good order is not waited for."""
    async with gateways(own_redis.url, tmp_path, [OWN], many=3) as stores:
        names = {store._journal.id for store in stores}
        for store in stores:
            await soon(lambda store=store: set(store._flusher.peers) == names)  # type: ignore[misc]
        await stores[2].close()
        await soon(lambda: set(stores[0]._flusher.peers) == names - {stores[2]._journal.id})
        assert stores[0].condition.peers == 1


async def test_a_slow_gateway_is_waited_for(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: after Redis was emptied nobody admits before the others have replayed, also one that takes its time."""
    catch_up, slow = Applier.catch_up, list[str]()

    def slowly(self: Applier) -> None:
        catch_up(self)
        if self._journal.id in slow:
            Event().wait(0.5)

    monkeypatch.setattr(Applier, "catch_up", slowly)
    async with gateways(own_redis.url, tmp_path, [OWN], many=2) as (one, other):
        for number in range(10):
            await other.reserve(hold(f"{number}/1"))
        slow.append(other._journal.id)
        with own_redis.client() as client:
            client.flushall()
        admitted = 0
        for number in range(100):
            try:
                await one.reserve(hold(f"x{number}/1"))
                admitted += 1
            except Exception as refusal:
                if "cannot pay" in str(refusal):
                    break
            await asyncio.sleep(0.03)
        assert admitted == 0


async def test_a_clean_end(own_redis: RedisServer, tmp_path: Path) -> None:
    """B1: what is booked when a store closes is in Redis afterwards; without Redis it closes all the same."""
    async with gateways([own_redis.url], tmp_path, [OWN]) as (store,):
        await asyncio.gather(*(store.settle(entry(f"{number}/1", scopes=of("b"))) for number in range(20)))
    with own_redis.client() as client:
        assert b"20" in client.hvals(KEYS.cursor(tag_of("b")))
    async with gateways([own_redis.url], tmp_path, [OWN]) as (store,):
        own_redis.kill()
        await store.settle(entry("late/1", at_us=NOW_US))
