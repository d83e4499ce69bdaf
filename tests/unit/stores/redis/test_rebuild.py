"""Dropping what is in Redis, and filling it again from the journals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.shared_stores import options, shared_store

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis.flush import Flusher
from tollkeeper.stores.redis.reader import connected
from tollkeeper.stores.redis.rebuild import rebuild
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import parse
from tollkeeper.testing.redis_server import RedisServer, until
from tollkeeper.testing.samples import DIME, USD, a_hold, an_entry, booked, month_of, standing, usd


def again(server: RedisServer, folder: Path, told: Any = lambda what, done: None) -> None:
    servers = Servers(parse(server.url))
    shared = connected(servers, options(folder), 10_000)
    try:
        rebuild(servers, shared, folder, told)
    finally:
        shared.link.close()


async def filled(server: RedisServer, folder: Path) -> None:
    """Two journals that nobody has, with 40 entries."""
    for number in range(2):
        store = shared_store(server, folder, usd(9 * USD))
        held = shared_store(server, folder, usd(9 * USD))  # so that the next one makes a journal of its own
        await asyncio.gather(*(store.settle(an_entry(f"{number}-{each}/1")) for each in range(20)))
        await store.live()
        await store.close()
        await held.close()


async def sums(server: RedisServer, folder: Path) -> tuple[Any, ...]:
    store = shared_store(server, folder, usd(9 * USD))
    try:
        assert await store.verify() == []
        return sorted(await month_of(store)), (await standing(store)).spent, len(await booked(store))
    finally:
        await store.close()


async def test_the_journals_fill_it(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: everything goes, also what is wrong, and comes back from the journals, each entry once; other prefixes stay."""
    await filled(redis_server, tmp_path)
    right = await sums(redis_server, tmp_path)
    assert right[1:] == (40 * DIME, 40)
    with redis_server.client() as client:
        (key,) = client.keys("*:cells:month:project:*")
        client.hincrby(key, "fake|m|calls", 7)
        client.set("tollkeeper:{alpha}:ghost", "left by somebody")
        client.set("tollkeeper2:{*}:epoch", "another one's")
        told: list[tuple[str, int]] = []
        await asyncio.to_thread(again, redis_server, tmp_path, lambda what, done: told.append((what, done)))
        assert client.exists("tollkeeper:{alpha}:ghost", "tollkeeper:{*}:rebuild") == 0
        assert client.get("tollkeeper2:{*}:epoch") == b"another one's"
    assert {what for what, _ in told} == {"drop", "fill"}
    assert await sums(redis_server, tmp_path) == right


async def test_gateways_go_on(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: a gateway that lives stands still meanwhile, brings back its entries and holds by itself, and loses nothing."""
    await filled(redis_server, tmp_path)
    store = shared_store(redis_server, tmp_path / "b", usd(9 * USD))
    await store.settle(an_entry("mine/1"))
    await store.reserve(a_hold("h/1"))
    stop = asyncio.Event()
    settled = 0

    async def load() -> None:
        nonlocal settled
        while not stop.is_set():
            await store.settle(an_entry(f"load-{settled}/1"))
            settled += 1
            await asyncio.sleep(0.001)

    loading = asyncio.create_task(load())
    await asyncio.to_thread(again, redis_server, tmp_path)
    stop.set()
    await loading
    await asyncio.to_thread(store._shared.link.wait, lambda state: state == "ready", 10_000)
    seen = await standing(store)
    assert (seen.spent, seen.held) == ((41 + settled) * DIME, DIME)
    assert await store.verify() == []
    await store.settle(an_entry("h/1"))
    assert (await standing(store)).held == 0
    await store.close()


async def test_leases_stand_again(redis_server: RedisServer, tmp_path: Path) -> None:
    """C1: what a gateway has leased is held again after a rebuild, as much as it knows, and is free when the gateway ends."""
    budget = usd(9 * USD, lease=USD)
    store = shared_store(redis_server, tmp_path / "b", budget)
    for number in range(20):
        await store.reserve(a_hold(f"{number}/1"))
        await store.settle(an_entry(f"{number}/1"))
    await asyncio.to_thread(again, redis_server, tmp_path / "b")
    await asyncio.to_thread(store._shared.link.wait, lambda state: state == "ready", 10_000)
    seen = await standing(store)
    assert (seen.spent, seen.held <= USD) == (20 * DIME, True)
    await store.reserve(a_hold("last/1"))
    await store.settle(an_entry("last/1"))
    await store.close()
    other = shared_store(redis_server, tmp_path / "c", usd(9 * USD))
    seen = await standing(other)
    assert (seen.spent, seen.held) == (21 * DIME, 0)
    assert await other.verify() == []
    await other.close()


async def test_stopped_half_way(redis_server: RedisServer, tmp_path: Path) -> None:
    """Stopped while keys are dropped, or while journals are applied, running it again finishes; gateways are let go."""
    await filled(redis_server, tmp_path)
    right = await sums(redis_server, tmp_path)
    for at in ("drop", "fill"):

        def stopping(what: str, done: int, at: str = at) -> None:
            if what == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await asyncio.to_thread(again, redis_server, tmp_path, stopping)
        with redis_server.client() as client:
            assert client.exists("tollkeeper:{*}:rebuild") == 0
    await asyncio.to_thread(again, redis_server, tmp_path)
    assert await sums(redis_server, tmp_path) == right


async def test_a_gateway_that_goes_on(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not stand still, as an older version would not, is named, and nothing is dropped."""
    await filled(redis_server, tmp_path)
    monkeypatch.setattr("tollkeeper.stores.redis.rebuild.LOOKS_MAX", 3)
    with redis_server.client() as client:
        seconds, _ = client.time()
        client.hset("tollkeeper:{*}:members", "0123456789abcdef", f"{seconds * 1000} e w ready")
        keys = client.dbsize()
        with pytest.raises(StoreUnavailable, match="0123456789abcdef; stop them"):
            await asyncio.to_thread(again, redis_server, tmp_path)
        assert client.dbsize() == keys


async def test_a_gateway_that_begins_meanwhile(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: one that nobody had heard of when the dropping began stands still, too: it applies nothing before all is gone."""
    say, begun = Flusher._say, False
    with redis_server.client() as client:

        def told(self: Flusher, state: str, *, begin: bool = False) -> str:
            nonlocal begun
            if begin and not begun:
                begun = True
                assert client.hlen("tollkeeper:{*}:members") == 0
                client.set("tollkeeper:{*}:rebuild", "1", ex=30)
            return say(self, state, begin=begin)

        monkeypatch.setattr(Flusher, "_say", told)
        store = shared_store(redis_server, tmp_path, usd(9 * USD))
        store._begin_until_ms = 0
        await store.settle(an_entry("a/1"))
        journal = store._journal.id
        await asyncio.to_thread(
            until,
            lambda: (client.hget("tollkeeper:{*}:members", journal) or b"").endswith(b"stopped"),
            "it stands still",
        )
        assert list(client.scan_iter("*:cells:*")) == []
        client.delete("tollkeeper:{*}:rebuild")
    await asyncio.to_thread(store._shared.link.wait, lambda state: state == "ready", 10_000)
    assert (await standing(store)).spent == DIME
    await store.close()
