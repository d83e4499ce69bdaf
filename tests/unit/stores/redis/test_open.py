"""tollkeeper.stores.redis.open with open.lua on a real Redis: what one gateway was told by a provider, the others hear."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateways import gateways, soon
from tests.shared_stores import shared_store

from tollkeeper.health import LEVELS, Name
from tollkeeper.stores.redis.open import PLACES_MAX, _field, _name
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.redis_server import RedisServer

KEY: Name = ("key", "openai", "OPENAI_API_KEY", "")
MODEL: Name = ("model", "a:b", "keys/é {x}", "llama3:8b")
S = 10**6


@asynccontextmanager
async def two(server: RedisServer, folder: Path) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two processes' stores, ready, whose clocks stand."""
    one, other = (shared_store(server, folder / name) for name in "ab")
    try:
        await soon(lambda: one.state == other.state == "ready")
        yield one, other
    finally:
        await one.close()
        await other.close()


async def test_the_other_learns(redis_server: RedisServer, tmp_path: Path) -> None:
    """E3: max() over gateways, whoever tells first; each hears all of it; what is over goes; F3: it has a deadline."""
    async with two(redis_server, tmp_path) as (one, other):
        assert await one.advice.exchange(START_US) == {}
        one.advice.tell(KEY, START_US + 60 * S)
        one.advice.tell(MODEL, START_US + 5 * S)
        one.advice.tell(MODEL, START_US + 3 * S)
        right = {KEY: START_US + 60 * S, MODEL: START_US + 5 * S}
        assert await one.advice.exchange(START_US) == right
        assert await other.advice.exchange(START_US) == right
        for store, told_s, stands_s in ((other, 30, 60), (other, 90, 90), (one, 70, 90)):
            store.advice.tell(KEY, START_US + told_s * S)
            assert (await store.advice.exchange(START_US))[KEY] == START_US + stands_s * S
        with redis_server.client() as client:
            (key,) = client.keys("*:open")
            assert 60 < client.ttl(key) <= 92
        assert await one.advice.exchange(START_US + 5 * S) == {KEY: START_US + 90 * S}
        assert await other.advice.exchange(START_US + 90 * S) == {}
        with redis_server.client() as client:
            assert client.keys("*:open") == []


async def test_it_is_bounded(redis_server: RedisServer, tmp_path: Path) -> None:
    """Clients may name models without end, and anybody's word counts for an hour at most; what is none of ours is nothing."""
    async with two(redis_server, tmp_path) as (one, other):
        for store in (one, other):
            for number in range(2 * PLACES_MAX):
                store.advice.tell(("model", "p", store._journal.id, f"made-up-{number}"), START_US + 10**12)
            found = await store.advice.exchange(START_US)
            assert len(found) == PLACES_MAX
            assert set(found.values()) == {START_US + 3600 * S}
        with redis_server.client() as client:
            (key,) = client.keys("*:open")
            later_ms = START_US // 1000 + 10**6
            strange = {"newer": later_ms, "level:a:b:c": later_ms, "a": "nan", "key:p:k:": "1e400", "b": "9" * 400}
            client.hset(key, mapping=strange)
            assert len(await one.advice.exchange(START_US)) == PLACES_MAX
            assert [name for name in strange if client.hexists(key, name)] == ["newer", "level:a:b:c"]


@pytest.mark.parametrize("how", ["pause", "kill"])
async def test_while_redis_is_away(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """F2: nothing is heard and nothing is said of it; what is new is told once Redis is back, if it is not over by then."""
    async with gateways(own_redis.url + "?timeout=0.3", tmp_path, [], many=2) as (one, other):
        now_us = one._shared.now_us()
        getattr(own_redis, how)()
        one.advice.tell(KEY, now_us + 600 * S)
        one.advice.tell(MODEL, now_us + 1)
        assert await one.advice.exchange(now_us) == {}
        await soon(lambda: one.state == other.state == "away")
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "tollkeeper"):
            for _ in range(10):
                assert await one.advice.exchange(now_us + 1) == {}
            assert caplog.records == []
        own_redis.resume() if how == "pause" else own_redis.start()
        await soon(lambda: one.state == other.state == "ready")
        heard = await one.advice.exchange(now_us + 1)
        assert heard == await other.advice.exchange(now_us + 1) == {KEY: (now_us + 600 * S) // 1000 * 1000}


@given(st.tuples(st.sampled_from(LEVELS), *[st.text(max_size=20)] * 3))
def test_names_never_meet(name: Name) -> None:
    """F3: whatever stands in a name, it is read back as it was."""
    assert _name(_field(name)) == name
