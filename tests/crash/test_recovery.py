"""What the fault suite has found, each as small as it gets."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event

import pytest
import redis
from msgspec import structs
from tests.crash.rig import until

from tollkeeper.clock import SystemClock
from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis import flush
from tollkeeper.stores.redis.keys import Keys
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.testing.fault_proxy import FaultProxy
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD, a_hold, an_entry, standing, usd
from tollkeeper.values import Budget, Entry, Hold, Scopes

KEYS = Keys()
CLOCK = SystemClock()
BUDGETS = (usd(USD),)


def hold(id: str) -> Hold:
    return a_hold(id, at_us=CLOCK.now_us())


def entry(id: str) -> Entry:
    return an_entry(id, at_us=CLOCK.now_us())


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits long for who will not come; changes of state are seen."""
    monkeypatch.setattr(flush, "LEARN_MS", 1000)
    caplog.set_level("INFO", "tollkeeper")


@asynccontextmanager
async def opened(
    url: str, folder: Path, budgets: tuple[Budget, ...] = BUDGETS, *, ready: bool = True
) -> AsyncIterator[RedisStore]:
    store = open_store(url, budgets=budgets, shared=SharedOptions(clock=CLOCK, journal=folder))
    assert isinstance(store, RedisStore)
    try:
        if ready:
            await soon(lambda: store.state == "ready")
        yield store
    finally:
        await store.close()


async def soon(true: Callable[[], bool]) -> None:
    """Wait until it is true, while the loop goes on."""
    await asyncio.to_thread(until, true, "what is waited for", 10)


async def ready_again(caplog: pytest.LogCaptureFixture) -> None:
    """Wait until Redis is ready, for the second time since the log was cleared."""
    await soon(lambda: caplog.text.count("Redis is ready") >= 2)


def peer(server: RedisServer, name: str, state: str = "ready") -> None:
    """A gateway elsewhere gives a sign of life, its last one."""
    with server.client() as client:
        now_ms = time.time_ns() // 10**6
        client.hset(KEYS.members, name, f"{now_ms} {client.get(KEYS.epoch).decode()} 00000000 {state}")  # type: ignore[union-attr]


async def test_a_settlement_does_not_wait_for_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4: an entry without a hold is booked when Redis goes away in the midst of it."""
    with FaultProxy(own_redis.port) as proxy:
        async with opened(f"redis://127.0.0.1:{proxy.port}/0?timeout=0.2", tmp_path) as store:
            proxy.stall()
            assert await store.settle(entry("a/1")) == "booked"


async def test_flushall_and_the_others(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """B4, C1: after FLUSHALL a gateway waits for the others that it knew, though Redis names none of them any more."""
    async with opened(own_redis.url, tmp_path) as store:
        peer(own_redis, "7000000000000000")
        await soon(lambda: "7000000000000000" in store._flusher.peers)
        with own_redis.client() as client:
            client.flushall()
        await soon(lambda: "1 gateways that were alive have not come back yet" in caplog.text)


async def test_dead_neighbours_first(own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """B4, C1: what a gateway of this host had booked when it died counts before anything is admitted again."""
    folder = tmp_path / "journals"
    async with opened(own_redis.url, folder) as store:
        dead = Journal.open(folder / "7000000000000000.sqlite")
        await dead.settle(entry("a/1"))
        await dead.close()
        own_redis.restart(kill=True)
        await ready_again(caplog)
        assert (await store._holds.standings(entry("a/1").scopes, "m", CLOCK.now_us()))[0].spent == DIME


async def test_living_neighbours_first(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """B4, C1: a gateway that starts waits for those of this host that it has not heard of: Redis may have forgotten them."""
    folder = tmp_path / "journals"
    folder.mkdir()
    neighbour = Journal.open(folder / "7000000000000000.sqlite")
    async with opened(own_redis.url, folder):
        assert "1 gateways that were alive have not come back yet" in caplog.text
    await neighbour.close()


async def test_a_neighbour_that_dies_while_it_is_waited_for(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4, C1: what it had booked counts before anything is admitted again."""
    folder = tmp_path / "journals"
    folder.mkdir()
    neighbour = Journal.open(folder / "7000000000000000.sqlite")
    await neighbour.settle(entry("a/1"))
    async with opened(own_redis.url, folder, ready=False) as store:
        with own_redis.client() as client:
            await soon(lambda: (client.hget(KEYS.members, store._journal.id) or b"").endswith(b"replayed"))  # type: ignore[union-attr]
        await neighbour.close()
        await soon(lambda: store.state == "ready")
        assert (await store._holds.standings(entry("a/1").scopes, "m", CLOCK.now_us()))[0].spent == DIME


async def test_an_orphan_that_is_an_old_copy(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """B4: a dead gateway's journal that cannot be used is told of, and stops nobody."""
    monkeypatch.setattr(flush, "ORPHANS_MS", 50)
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    async with opened(own_redis.url, elsewhere) as store:
        await store.settle(entry("a/1"))
        name = store._journal.path.name
    shutil.copytree(elsewhere, tmp_path / "old")
    async with opened(own_redis.url, elsewhere) as store:
        await store.settle(entry("b/1"))
    async with opened(own_redis.url, here) as store:
        (tmp_path / "old" / name).rename(here / name)
        await soon(lambda: "it is an old copy" in caplog.text)
        caplog.clear()
        await soon(lambda: "it is an old copy" in caplog.text)
        assert store.state == "ready"
        assert "is checked against" not in caplog.text
        await store.settle(entry("c/1"))
        assert (await standing(store, at_us=CLOCK.now_us())).spent == 3 * DIME


async def test_voided_while_it_is_asserted_again(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C2: a hold that is let go of in the midst of a recovery does not stand after it."""
    async with opened(own_redis.url, tmp_path) as store:
        await store.reserve(hold("a/1"))
        keep, loop = store._holds._keep, asyncio.get_running_loop()

        def meanwhile(slots: object) -> None:
            keep(slots)  # type: ignore[arg-type]
            asyncio.run_coroutine_threadsafe(store.void("a/1"), loop).result(10)

        store._holds._keep = meanwhile  # type: ignore[method-assign,assignment]
        own_redis.restart(kill=True)
        await ready_again(caplog)
        assert await store.live() == []


async def test_admitted_while_others_are_waited_for(own_redis: RedisServer, tmp_path: Path) -> None:
    """C1: what a gateway admits by `when_away` until the last moment of a recovery stands in Redis after it."""
    async with opened(own_redis.url, tmp_path, (usd(USD, when_away=2 * DIME),)) as store:
        peer(own_redis, "7000000000000000")
        await soon(lambda: "7000000000000000" in store._flusher.peers)
        with own_redis.client() as client:
            client.flushall()
        await soon(lambda: store.state == "recovering")
        with own_redis.client() as client:
            await soon(lambda: client.hget(KEYS.members, store._journal.id).endswith(b"replayed"))  # type: ignore[union-attr]
        for id in ("a/1", "b/1"):
            await store.reserve(hold(id))
        with pytest.raises(StoreUnavailable):
            await store.reserve(hold("c/1"))
        await soon(lambda: store.state == "ready")
        await asyncio.wrap_future(store._flusher.flushed())  # its thread has gone on
        assert (await standing(store, at_us=CLOCK.now_us())).held == 2 * DIME


def restored(client: redis.Redis, copy: dict[bytes, bytes]) -> None:
    """Redis goes back to an older state, and its clients lose their connections."""
    client.flushall()
    for key, dump in copy.items():
        client.restore(key, 0, dump)
    client.client_kill_filter(_type="normal", skipme=True)


async def test_an_older_redis_brings_holds_back(
    own_redis: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """B4, C2: holds that were let go of do not come back with an old copy; those that stand, also of dead gateways, do."""
    with own_redis.client() as client:
        async with opened(own_redis.url, tmp_path / "dead") as store:
            await store.reserve(hold("dead/1"))
        caplog.clear()
        async with opened(own_redis.url, tmp_path / "here") as store:
            for id in ("voided/1", "settled/1", "stands/1"):
                await store.reserve(hold(id))
            copy = {key: client.dump(key) for key in client.scan_iter()}
            await store.void("voided/1")
            await store.settle(entry("settled/1"))
            restored(client, copy)  # type: ignore[arg-type]
            await ready_again(caplog)
            assert {hold.id for hold in await store.live()} == {"dead/1", "stands/1"}
            assert [each.id async for each in store.current(0, FOREVER_US)] == ["settled/1"]


async def test_one_of_two_slots_was_counted(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4, C2: who dies between a project's slot and the one without a project leaves no hold behind in that."""
    budgets = (usd(USD), usd(USD, scope="key", id="*", project="*"))
    scopes, tried = Scopes(project="alpha", key="k"), Event()

    def lost(*arguments: object) -> None:
        tried.set()
        raise StoreUnavailable("store: it is lost")

    async with opened(own_redis.url, tmp_path, budgets) as store:
        await store.reserve(structs.replace(hold("a/1"), scopes=scopes))
        store._flusher._applier._star = lost  # type: ignore[method-assign]
        await store.settle(structs.replace(entry("a/1"), scopes=scopes))
        await soon(tried.is_set)
    async with opened(own_redis.url, tmp_path, budgets) as store:
        found = await store.standings(scopes, "m", CLOCK.now_us())
        assert [(each.spent, each.held) for each in found] == [(DIME, 0), (DIME, 0)]


async def test_settled_while_others_are_waited_for(own_redis: RedisServer, tmp_path: Path) -> None:
    """C1: what is settled in the midst of a recovery is held or spent in Redis before anything is admitted again."""
    async with opened(own_redis.url, tmp_path) as store:
        for id in ("a/1", "b/1"):
            await store.reserve(hold(id))
        peer(own_redis, "7000000000000000")
        await soon(lambda: "7000000000000000" in store._flusher.peers)
        stands: list[int] = []
        with own_redis.client() as client:
            tell = store._holds.ready
            key = KEYS.balance(store._holds.covering(hold("a/1").scopes, "m", CLOCK.now_us()).budgets[0][1])

            def ready(*arguments: object) -> None:
                stands.extend(int(each or 0) for each in client.hmget(key, "spent", "held"))  # type: ignore[union-attr]
                tell(*arguments)  # type: ignore[arg-type]

            store._holds.ready = ready  # type: ignore[method-assign,assignment]
            client.flushall()
            await soon(lambda: (client.hget(KEYS.members, store._journal.id) or b"").endswith(b"replayed"))  # type: ignore[union-attr]
            await store.settle(entry("a/1"))
            await soon(lambda: bool(stands))
        assert sum(stands) == 2 * DIME
