"""tollkeeper.stores.redis.away: while Redis is away: what a budget lets each gateway admit, and what stands in Redis afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Event

import pytest
from msgspec import structs
from tests.gateways import NOW_US, entry, gateways, hold, of, soon, sums

from tollkeeper.errors import BudgetExceeded, StoreUnavailable
from tollkeeper.stores.redis.flush import Flusher
from tollkeeper.stores.redis.keys import tag_of
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD
from tollkeeper.values import Budget

OWN = Budget(scope="project", id="alpha", limit=USD, window="total", when_away=3 * DIME)
ALL = Budget(scope="all", limit=20 * USD, window="total", when_away=5 * DIME)
TOGETHER, ALPHA = "*:all:usd:total:UTC:", f"{tag_of('alpha')}:project:usd:total:UTC:"
QUICK = "?timeout=0.3"


async def gone(stores: list[RedisStore]) -> None:
    """Every gateway has noticed."""
    for store in stores:
        await soon(lambda store=store: store.state == "away")  # type: ignore[misc]


async def back(stores: list[RedisStore]) -> None:
    for store in stores:
        await soon(lambda store=store: store.state == "ready")  # type: ignore[misc]


async def admitted(store: RedisStore, name: str, many: int, project: str = "alpha", at_us: int = NOW_US) -> list[str]:
    """Calls one after the other; the ids of those that were admitted, the others having been refused since Redis is away."""
    ids = [f"{name}-{number}/1" for number in range(many)]
    told = await asyncio.gather(
        *(store.reserve(hold(id, scopes=of(project), at_us=at_us)) for id in ids), return_exceptions=True
    )
    refusals = [each for each in told if isinstance(each, BaseException)]
    assert all(isinstance(each, StoreUnavailable) and "when_away" in str(each) for each in refusals)
    return [id for id, each in zip(ids, told, strict=True) if not isinstance(each, BaseException)]


@pytest.mark.parametrize("how", ["pause", "kill"])
async def test_denied_by_default(own_redis: RedisServer, tmp_path: Path, how: str) -> None:
    """Redis paused or killed: a hard budget refuses, what none covers goes on, entries are safe; all is there afterwards."""
    hard = structs.replace(OWN, when_away=0)
    soft = Budget(scope="all", limit=0, window="total", hard=False)
    async with gateways(own_redis.url + QUICK, tmp_path, [hard, soft], many=2) as stores:
        await stores[0].reserve(hold("before/1"))
        getattr(own_redis, how)()
        await gone(stores)
        assert await admitted(stores[0], "no", 3) == []
        assert len(await admitted(stores[1], "soft", 3, project="beta")) == 3
        await asyncio.gather(*(stores[1].settle(entry(f"soft-{n}/1", scopes=of("beta"))) for n in range(3)))
        await stores[0].settle(entry("before/1"))
        await stores[0].settle(entry("told/1"))
        own_redis.resume() if how == "pause" else own_redis.start()
        await back(stores)
        assert [await store.verify() for store in stores] == [[], []]
        with own_redis.client() as client:
            assert sums(client)[TOGETHER] == (5 * DIME, 0)
            assert sums(client)[ALPHA] == (2 * DIME, 0)


@pytest.mark.parametrize("how", ["pause", "kill"])
async def test_a_declared_amount(own_redis: RedisServer, tmp_path: Path, how: str) -> None:
    """Each of two gateways admits its allowance; what is over is at most twice that; holds and entries are there afterwards."""
    async with gateways(own_redis.url + QUICK, tmp_path, [OWN, ALL], many=2) as stores:
        for number in range(10):
            await stores[number % 2].reserve(hold(f"full-{number}/1"))
        with pytest.raises(BudgetExceeded):
            await stores[0].reserve(hold("over/1"))
        for outage in range(2):
            getattr(own_redis, how)()
            await gone(stores)
            ids = [await admitted(store, f"away{outage}-{number}", 10) for number, store in enumerate(stores)]
            assert [len(each) for each in ids] == [3, 3], "the allowance begins anew with each time"
            await stores[0].void(ids[0][0])
            ids[0][:1] = await admitted(stores[0], f"instead{outage}", 2)
            assert len(ids[0]) == 3, "what came to nothing is not used up"
            await stores[0].settle(entry(ids[0][0]))
            own_redis.resume() if how == "pause" else own_redis.start()
            await back(stores)
            with pytest.raises(BudgetExceeded):
                await stores[1].reserve(hold("over/1"))
            await asyncio.gather(*(store.verify() for store in stores))
            with own_redis.client() as client:
                spent, held = sums(client)[ALPHA]
                assert (spent, held) == ((outage + 1) * DIME, 15 * DIME)
                assert sums(client)[TOGETHER] == (spent, held)
            for store, its in zip(stores, ids, strict=True):
                for id in its:
                    await store.void(id)
        for number in range(10):
            await stores[number % 2].void(f"full-{number}/1")
        with own_redis.client() as client:
            assert sums(client)[ALPHA] == (2 * DIME, 0)


async def test_per_window_and_budget(own_redis: RedisServer, tmp_path: Path) -> None:
    """The amount is of one window of one balance; the least of several budgets decides; a free call always passes."""
    minute = Budget(scope="project", limit=USD, window="minute", when_away=2 * DIME)
    async with gateways([own_redis.url + QUICK], tmp_path, [minute, ALL]) as stores:
        own_redis.kill()
        await gone(stores)
        assert len(await admitted(stores[0], "now", 9)) == 2
        assert len(await admitted(stores[0], "next", 9, at_us=NOW_US + 60_000_000)) == 2
        assert len(await admitted(stores[0], "other", 9, project="beta")) == 1, "five for all projects"
        await stores[0].reserve(hold("free/1", 0))
        with pytest.raises(StoreUnavailable, match="when_away"):
            await stores[0].reserve(hold("unpriced/1", None))


async def test_while_recovering(own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is admitted between the assertion of the holds and the end of a recovery stands in Redis; voided, it does not."""
    arrived, go_on = Event(), Event()

    def waits(self: Flusher, step: str, until_ms: int) -> None:
        if step == "asserted":
            arrived.set()
            go_on.wait(10)

    async with gateways([own_redis.url + QUICK], tmp_path, [OWN, ALL]) as stores:
        monkeypatch.setattr(Flusher, "_learn", waits)
        own_redis.kill()
        await gone(stores)
        own_redis.start()
        await asyncio.to_thread(arrived.wait, 10)
        assert stores[0].state == "recovering"
        assert len(await admitted(stores[0], "late", 5)) == 3
        await stores[0].void("late-0/1")
        await stores[0].settle(entry("late-1/1"))
        go_on.set()
        await back(stores)
        await stores[0].verify()
        with own_redis.client() as client:
            assert sums(client)[ALPHA] == (DIME, DIME)
            assert sums(client)[TOGETHER] == (DIME, DIME)


async def test_many_outages_under_load(own_redis: RedisServer, tmp_path: Path) -> None:
    """B4: Redis is killed and comes back while calls are reserved, voided and settled: every sum agrees, no hold is left."""
    wide = [structs.replace(budget, limit=1000 * USD, when_away=USD) for budget in (OWN, ALL)]
    spent = 0
    async with gateways(own_redis.url + QUICK, tmp_path, wide) as stores:
        stop = asyncio.Event()

        async def calls(number: int) -> None:
            nonlocal spent
            store, run = stores[number % 3], 0
            while not stop.is_set():
                run += 1
                id = f"{number}-{run}/1"
                try:
                    await store.reserve(hold(id))
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
                    continue
                await asyncio.sleep(0.001 * (number % 5))
                if run % 3:
                    await store.settle(entry(id, DIME // 2))
                    spent += DIME // 2
                else:
                    await store.void(id)

        tasks = [asyncio.create_task(calls(number)) for number in range(12)]
        for _ in range(4):
            await asyncio.sleep(0.2)
            own_redis.kill()
            await asyncio.sleep(0.2)
            own_redis.start()
            await back(stores)
        stop.set()
        await asyncio.gather(*tasks)
        await asyncio.gather(*(store.verify() for store in stores))  # all of it is there
        assert [await store.verify() for store in stores] == [[], [], []]
        with own_redis.client() as client:
            assert sums(client)[TOGETHER] == (spent, 0)
            assert sums(client)[ALPHA] == (spent, 0)
