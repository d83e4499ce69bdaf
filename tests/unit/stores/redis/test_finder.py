"""tollkeeper.stores.redis.finder: entries by id, with what came since the last question, also from other processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.shared_stores import shared_store

from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DAY_US, an_entry


async def found(store: RedisStore, *ids: str) -> dict[str, list[int]]:
    """The revisions of ids."""
    revisions = await asyncio.to_thread(store._finder.revisions, "alpha", ids)
    return {id: [entry.revision for entry in entries] for id, entries in revisions.items()}


async def test_grows(redis_server: RedisServer, tmp_path: Path) -> None:
    """What another process books and corrects later is found; what is not there is left out; months do not matter."""
    one, other = (shared_store(redis_server, tmp_path) for _ in range(2))
    await one.settle(an_entry("a/1"))
    await one.settle(an_entry("b/1", at_us=AT_US + 40 * DAY_US))
    await one._current()
    assert await found(other, "a/1", "b/1", "c/1") == {"a/1": [0], "b/1": [0]}
    await other.correct(corrected(an_entry("a/1")))
    await other._current()
    assert await found(one, "a/1") == {"a/1": [0, 1]}
    assert await one.known([("alpha", "a/1"), ("beta", "a/1")]) == {("alpha", "a/1"): await one.entry("alpha", "a/1")}
    for store in (one, other):
        await store.close()


async def test_redis_that_has_forgotten(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: an index over what was lost is dropped: nothing is found that is not there, and what came back is."""
    store = shared_store(redis_server, tmp_path)
    for number in range(3):
        await store.settle(an_entry(f"{number}/1"))
        await store._current()
    assert len(await found(store, "0/1", "1/1", "2/1")) == 3
    redis_server.client().flushall()
    assert await found(store, "0/1") == {}
    await store.close()
    store = shared_store(redis_server, tmp_path)
    await store._current()
    assert len(await found(store, "0/1", "1/1", "2/1")) == 3
    await store.close()
