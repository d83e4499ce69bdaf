"""tollkeeper.stores.redis.leases: calls reserve without asking Redis, and no limit is passed, whatever dies."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec import structs
from tests.gateways import entry, gateways, hold, of, soon, sums

from tollkeeper.errors import BudgetExceeded, StoreUnavailable
from tollkeeper.stores.redis.keys import tag_of
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD
from tollkeeper.values import Budget

ALL = Budget(scope="all", limit=100 * USD, window="total", lease=10 * USD)
OWN = Budget(scope="project", limit=50 * USD, window="total", lease=5 * USD)
TOGETHER, ALPHA = "*:all:usd:total:UTC:", f"{tag_of('alpha')}:project:usd:total:UTC:"


async def leased(store: RedisStore, name: str) -> None:
    """Make a call or two, until there is a lease."""
    number = 0
    while not any(kept.lease.state == "leased" for kept in store._leases._leases.values()):
        number += 1
        await store.reserve(hold(f"{name}-{number}/1"))
        await store.void(f"{name}-{number}/1")
        await asyncio.sleep(0.005)


async def test_without_asking(own_redis: RedisServer, tmp_path: Path) -> None:
    """Calls on leased budgets are reserved and settled without a question to Redis; the sums are right at every moment."""
    async with gateways([own_redis.url], tmp_path, [ALL, OWN]) as (store,):
        with own_redis.client() as client:
            await leased(store, "first")
            await asyncio.sleep(0.1)
            asked = client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
            before = sums(client)
            begin = time.perf_counter()
            for number in range(20):
                await store.reserve(hold(f"{number}/1"))
            print("reserve:", (time.perf_counter() - begin) / 20 * 1000, "ms")
            assert sums(client)[TOGETHER] == before[TOGETHER]
            print("asked", client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0) - asked)
            for number in range(20):
                if number % 4:
                    await store.settle(entry(f"{number}/1", DIME // 2))
                else:
                    await store.void(f"{number}/1")
            await store.verify()
            spent = 15 * DIME // 2
            assert sums(client)[TOGETHER][0] == sums(client)[ALPHA][0] == spent
            await soon(lambda: sums(client)[TOGETHER] == (spent, 0))
            await soon(lambda: sums(client)[ALPHA] == (spent, 0))


async def spend(store: RedisStore, name: str, least: int, live: list[str]) -> int:
    """Calls until the budget refuses many in a row; how much was spent. Some come to nothing, some cost less than they hold."""
    spent = refused = number = 0
    while refused < 20:
        number += 1
        id = f"{name}-{number}/1"
        try:
            await store.reserve(hold(id))
        except BudgetExceeded:
            refused += 1
            await asyncio.sleep(0.05)
            continue
        refused = 0
        live.append(id)
        await asyncio.sleep(0)
        live.remove(id)
        if number % 7 == 0:
            await store.void(id)
        else:
            cost = DIME if number % 3 else least
            await store.settle(entry(id, cost))
            spent += cost
    return spent


async def test_to_the_last_cent(own_redis: RedisServer, tmp_path: Path) -> None:
    """C1: three gateways spend a budget by leases to its end: it is never passed, and nothing of it stays behind with any."""
    limit = 20 * USD
    budgets = [structs.replace(ALL, limit=limit, lease=4 * USD), structs.replace(OWN, limit=25 * USD)]
    most = 0
    async with gateways(own_redis.url, tmp_path, budgets) as stores:
        done = asyncio.Event()

        async def watch() -> None:
            nonlocal most
            with own_redis.client() as client:
                while not done.is_set():
                    most = max(most, sum(sums(client).get(TOGETHER, (0, 0))))
                    await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        live: list[str] = []
        spent = await asyncio.gather(
            *(spend(store, f"{n}-{task}", DIME // 2, live) for n, store in enumerate(stores) for task in range(4))
        )
        done.set()
        await watching
        for store in stores:
            await store.verify()
        with own_redis.client() as client:
            assert sums(client)[TOGETHER] == (sum(spent), 0)
        assert limit - DIME < sum(spent) <= limit
        assert most <= limit
        assert [await store.verify() for store in stores] == [[], [], []]


async def test_a_race_of_leases(own_redis: RedisServer, tmp_path: Path) -> None:
    """C1: of 200 calls at once on three gateways, again and again, no budget with leases admits too many."""
    budgets = [structs.replace(ALL, limit=USD, lease=2 * DIME)]
    async with gateways(own_redis.url, tmp_path, budgets) as stores:
        for run in range(10):

            async def call(id: str, store: RedisStore) -> bool:
                try:
                    await store.reserve(hold(id))
                except BudgetExceeded:
                    return False
                return True

            ids = [f"{run}-{number}/1" for number in range(200)]
            told = await asyncio.gather(*(call(id, stores[n % 3]) for n, id in enumerate(ids)))
            assert sum(told) <= 10
            with own_redis.client() as client:
                assert sum(told) * DIME <= sums(client)[TOGETHER][1] <= USD
            await asyncio.gather(*(stores[n % 3].void(id) for n, id in enumerate(ids) if told[n]))
            await asyncio.sleep(0.1)


async def test_limits_change(own_redis: RedisServer, tmp_path: Path) -> None:
    """C5: a limit that is lowered holds at once on the gateway that hears it, and what it had leased goes back."""
    async with gateways([own_redis.url], tmp_path, [ALL]) as (store,):
        await leased(store, "first")
        await store.set_budgets([structs.replace(ALL, limit=0)])
        try:
            await store.reserve(hold("a/1"))
        except BudgetExceeded:
            pass
        else:
            raise AssertionError("admitted under a limit of 0")
        with own_redis.client() as client:
            await soon(lambda: sums(client)[TOGETHER] == (0, 0))


async def test_limits_change_under_calls(own_redis: RedisServer, tmp_path: Path) -> None:
    """C5: a limit that is lowered while calls hold parts of a lease is that of every lease from then on."""
    async with gateways([own_redis.url], tmp_path, [ALL]) as (store,):
        await leased(store, "first")
        await store.reserve(hold("under/1"))
        await store.set_budgets([structs.replace(ALL, limit=5 * DIME)])
        admitted = 1
        for number in range(20):
            with suppress(BudgetExceeded):
                await store.reserve(hold(f"{number}/1"))
                admitted += 1
            await asyncio.to_thread(store._flusher.flushed().result)  # by then a lease that was wanted is there
        assert admitted <= 5


async def test_a_void_that_fails(own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: a leased call that the journal could not let go of is let go of, in lease and slot, when that is asked for again."""
    async with gateways([own_redis.url], tmp_path, [ALL, structs.replace(OWN, lease=0)]) as (store,):
        await leased(store, "first")
        await store.reserve(hold("a/1"))

        async def fails(hold_id: str) -> None:
            raise StoreUnavailable("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(store._journal, "void", fails)
            with pytest.raises(StoreUnavailable, match="disk full"):
                await store.void("a/1")
        await store.void("a/1")
        assert await store.live() == []
        assert [kept.lease.live for kept in store._leases._leases.values()] == [0]
        with own_redis.client() as client:
            assert sums(client)[ALPHA] == (0, 0)


async def test_redis_forgets(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4: Redis is emptied under leases: what calls hold of them stands there again, what was settled is spent."""
    async with gateways(own_redis.url, tmp_path, [ALL, OWN]) as stores:
        for number, store in enumerate(stores):
            await leased(store, f"first{number}")
            for call in range(4):
                await store.reserve(hold(f"{number}-{call}/1"))
            await store.settle(entry(f"{number}-0/1", DIME // 2))
        with own_redis.client() as client:
            client.flushall()
            await soon(lambda: all(store.state != "ready" for store in stores))
            await soon(lambda: all(store.state == "ready" for store in stores))
            for store in stores:
                await store.settle(entry(f"{stores.index(store)}-1/1"))
                await store.verify()
            spent = 3 * DIME // 2 + 3 * DIME
            assert [await store.verify() for store in stores] == [[], [], []]
            assert sums(client)[TOGETHER] == (spent, 6 * DIME)
            assert sums(client)[ALPHA] == (spent, 6 * DIME)
            for number, store in enumerate(stores):
                await store.void(f"{number}-2/1")
                await store.void(f"{number}-3/1")
            await soon(lambda: sums(client)[TOGETHER] == sums(client)[ALPHA] == (spent, 0))


async def test_a_gateway_leaves(own_redis: RedisServer, tmp_path: Path) -> None:
    """C2: what a gateway had leased when it ended is ended by the next owner of its journal, once its calls are booked."""
    with own_redis.client() as client:
        async with gateways([own_redis.url], tmp_path, [ALL]) as (store,):
            await leased(store, "first")
            for call in range(4):
                await store.reserve(hold(f"{call}/1"))
            await store.settle(entry("0/1", DIME // 2))
        assert sum(sums(client)[TOGETHER]) >= 3 * DIME
        async with gateways([own_redis.url], tmp_path, [ALL]) as (store,):
            await store.verify()
            assert sums(client)[TOGETHER] == (DIME // 2 + 3 * DIME, 0)


async def test_per_tenant_and_all(own_redis: RedisServer, tmp_path: Path) -> None:
    """Only the part of a call that no lease pays for is asked of Redis; refused there, the lease gets its part back."""
    budgets = [ALL, structs.replace(OWN, id="beta", limit=3 * DIME, lease=0)]
    async with gateways([own_redis.url], tmp_path, budgets) as (store,):
        await leased(store, "first")
        admitted = 0
        for number in range(10):
            try:
                await store.reserve(hold(f"{number}/1", scopes=of("beta")))
                admitted += 1
            except BudgetExceeded:
                pass
        assert admitted == 3
        (kept,) = store._leases._leases.values()
        assert kept.lease.live == 3 * DIME
        assert {each.id for each in await store.live()} == {f"{number}/1" for number in range(3)}
