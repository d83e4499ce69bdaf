"""tollkeeper.stores.redis.flush: rows reach Redis by themselves, at once where somebody waits, and after it was away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.shared_stores import shared_store

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis import flush
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.keys import tag_of
from tollkeeper.stores.redis.link import State
from tollkeeper.testing.redis_server import RedisServer, until
from tollkeeper.testing.samples import DIME, USD, an_entry, standing, usd


async def test_by_itself(redis_server: RedisServer, tmp_path: Path) -> None:
    """Rows are applied within moments although nobody asks; what is applied may be pruned, nothing else."""
    store = shared_store(redis_server, tmp_path, usd(USD))
    for number in range(3):
        await store.settle(an_entry(f"{number}/1"))
    await asyncio.to_thread(until, lambda: store._flusher.done == 3, "three rows are applied")
    assert store._flusher.applied(tag_of("alpha")) == 3
    assert store._flusher.applied_upto() == 3
    await store.close()


async def test_more_than_memory_has_room_for(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: rows beyond what may wait in memory are read from the journal again: each counts once."""
    monkeypatch.setattr(flush, "WAITING_MAX", 5)
    monkeypatch.setattr(flush, "FLUSH_MS", 200)
    store = shared_store(redis_server, tmp_path, usd(100 * USD))
    await store._begun()
    await asyncio.gather(*(store.settle(an_entry(f"{number}/1")) for number in range(40)))
    await asyncio.to_thread(until, lambda: store.state == "ready" and store._flusher.done == 40, "all rows are applied")
    assert (await standing(store)).spent == 40 * DIME
    assert await store.verify() == []
    await store.close()


async def test_away(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4: while Redis is away booking goes on and who wants to read is told; afterwards everything is there."""
    store = shared_store(own_redis, tmp_path, usd(USD))
    await store.settle(an_entry("a/1"))
    await store._current()
    own_redis.kill()
    await asyncio.to_thread(until, lambda: store.state == "away", "it is noticed")
    await store.settle(an_entry("b/1"))
    with pytest.raises(StoreUnavailable, match="Redis"):
        await store.cells("project", "day", 0, 2**62)
    own_redis.restart()
    await asyncio.to_thread(until, lambda: store.state == "ready", "it is back")
    assert (await standing(store)).spent == 2 * DIME
    await store.close()


async def test_lost_while_it_recovers(own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B4, P3: a connection that is lost during a recovery, to a Redis that is an older one afterwards, begins the recovery anew."""
    store = shared_store(own_redis, tmp_path, usd(USD))
    await store.settle(an_entry("a/1"))
    await store._current()
    link, learn, ready = store._shared.link, flush.Flusher._learn, list[int]()
    with own_redis.client() as client:
        older = {key: client.dump(key) for key in client.scan_iter()}
        await store.settle(an_entry("b/1"))
        await store._current()
        changed = link._changed

        def lost(self: flush.Flusher, step: str, until_ms: int) -> None:
            learn(self, step, until_ms)
            if step == "asserted":
                monkeypatch.undo()
                client.flushall()
                for key, value in older.items():
                    client.restore(key, 0, value)
                client.client_kill_filter(_type="normal", skipme=True)
                with pytest.raises(StoreUnavailable):
                    link.run(Ask(("GET", "x")))
                assert link.wait(lambda state: state == "recovering", 5000)

        def told(state: State, reason: str) -> None:
            if state == "ready":
                ready.append(int(client.hget(store._shared.keys.cursor(tag_of("alpha")), store._journal.id) or 0))
            changed(state, reason)

        monkeypatch.setattr(flush.Flusher, "_learn", lost)
        link._changed = told
        link.tell("doubted")
        await asyncio.to_thread(until, lambda: bool(ready) and store.state == "ready", "it is ready again")
    assert ready == [2]
    assert (await standing(store)).spent == 2 * DIME
    await store.close()
