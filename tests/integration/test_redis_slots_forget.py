"""The slot of all projects agrees with the entries of each: after a crash between the two, a master that forgets, a new budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.gateways import entry, gateways, hold, of, soon, sums

from tollkeeper.errors import BudgetExceeded, StoreError, StoreUnavailable
from tollkeeper.stores.redis.apply import Applier
from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_cluster import Cluster
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD
from tollkeeper.values import Budget

OWN = Budget(scope="project", limit=100 * USD, window="total")
ALL = Budget(scope="all", limit=100 * USD, window="total")
BOTH = (OWN, ALL)
TOGETHER = "*:all:usd:total:UTC:"


@pytest.fixture(scope="module")
def three(redis_executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("three"), executable=redis_executable) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: Cluster) -> Cluster:
    with three.client() as client:
        client.flushall()
    return three


def url_of(cluster: Cluster) -> str:
    return cluster.url.replace("redis://", "redis+cluster://")


def apart(cluster: Cluster) -> str:
    """A project whose slot is on another master than that of all projects."""
    here = cluster.node_of(f"{{{GLOBAL}}}")
    return next(name for name in map(str, range(100)) if cluster.node_of(f"{{{tag_of(name)}}}") is not here)


def flush(cluster: Cluster, tag: str) -> None:
    """The master of a slot forgets everything; the others do not."""
    with cluster.node_of(f"{{{tag}}}").client() as client:
        client.flushall()


async def booked(stores: list[RedisStore], name: str, projects: str | list[str], many: int = 20) -> int:
    """Book many calls on all stores; how much they cost."""
    await asyncio.gather(
        *(
            stores[number % len(stores)].settle(entry(f"{name}-{number}/1", scopes=of(project)))
            for number in range(many)
            for project in [projects[number % len(projects)]]
        )
    )
    return many * DIME


async def agrees(stores: list[RedisStore]) -> bool:
    """Whether every gateway finds every sum as the entries say."""
    for store in stores:
        try:
            if await store.verify() != []:
                return False
        except StoreError:
            return False
    return True


async def admits_nothing(store: RedisStore, project: str, *, tries: int, within_s: float) -> None:
    """Every call is refused, in the end by its budget and not for want of Redis."""
    async with asyncio.timeout(within_s):
        for number in range(tries):
            with pytest.raises((BudgetExceeded, StoreUnavailable)) as refusal:
                await store.reserve(hold(f"z{number}/1", scopes=of(project)))
            if number > 20 and refusal.type is BudgetExceeded:
                break
            await asyncio.sleep(0.02)
    assert refusal.type is BudgetExceeded


async def until_agreed(stores: list[RedisStore]) -> None:
    for _ in range(400):
        if await agrees(stores):
            return
        await asyncio.sleep(0.05)
    raise AssertionError([await store.verify() for store in stores])


@pytest.mark.parametrize("at", [0, 1, 3])
async def test_a_crash_between_the_slots(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """B4: a flusher that fails after the project's slot and before the one of all projects makes up for it, once."""
    star, calls = Applier._star, 0

    def fails(self: Applier, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > at and calls < at + 4:
            raise StoreUnavailable("injected")
        star(self, *args)

    async with gateways(own_redis.url, tmp_path, BOTH) as stores:
        await asyncio.gather(*(store.reserve(hold(f"open{n}/1")) for n, store in enumerate(stores)))
        monkeypatch.setattr(Applier, "_star", fails)
        spent = 0
        for run in range(4):
            spent += await booked(stores, f"{run}", "abc")
            await asyncio.gather(*(store.standings(of("a"), "m", 0) for store in stores), return_exceptions=True)
        await until_agreed(stores)
        assert calls > at + 3
        with own_redis.client() as client:
            assert sums(client)[TOGETHER] == (spent, 3 * DIME)
            await asyncio.gather(*(store.void(f"open{n}/1") for n, store in enumerate(stores)))
            assert sums(client)[TOGETHER] == (spent, 0)


async def test_a_gateway_that_dies_between_the_slots(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B4: what a dead gateway had not brought to the slot of all projects is brought by whoever has its journal next."""

    def fails(self: Applier, *args: Any) -> None:
        raise StoreUnavailable("injected")

    async with gateways([own_redis.url], tmp_path, BOTH) as stores:
        await stores[0].reserve(hold("first/1"))
        monkeypatch.setattr(Applier, "_star", fails)
        spent = await booked(stores, "dead", "ab")
        await soon(lambda: stores[0]._flusher.applied(tag_of("a")) > 0)
    monkeypatch.undo()
    async with gateways([own_redis.url], tmp_path, BOTH) as stores:
        await until_agreed(stores)
        with own_redis.client() as client:
            assert sums(client)[TOGETHER] == (spent, DIME)


@pytest.mark.parametrize("which", ["project", "all"])
async def test_one_master_forgets(cluster: Cluster, tmp_path: Path, which: str) -> None:
    """B4: one master of three is emptied: its sums come back from all gateways' journals, those of the others stay right."""
    project = apart(cluster)
    async with gateways(url_of(cluster), tmp_path, BOTH) as stores:
        await stores[0].reserve(hold("live0/1", scopes=of(project)))
        await stores[1].reserve(hold("live1/1", scopes=of(project)))
        spent = await booked(stores, "before", [project, "a", "b", "c", "d"], 60)
        await until_agreed(stores)
        flush(cluster, tag_of(project) if which == "project" else GLOBAL)
        spent += await booked(stores[:1], "after", [project], 1)
        await until_agreed(stores)
        async with asyncio.timeout(10):
            while True:
                with cluster.client() as client:
                    if sums(client).get(TOGETHER) == (spent, 2 * DIME):
                        break
                await asyncio.sleep(0.05)
        await asyncio.gather(stores[0].void("live0/1"), stores[1].void("live1/1"))
        with cluster.client() as client:
            assert {held for _, held in sums(client).values()} == {0}


@pytest.mark.parametrize("which", ["project", "all"])
@pytest.mark.parametrize("what", ["spent", "held"])
async def test_nothing_is_admitted_on_what_was_forgotten(
    cluster: Cluster, tmp_path: Path, which: str, what: str
) -> None:
    """C1: a master is emptied that had another gateway's money on it, spent or held: no gateway admits a call for that money."""
    project = apart(cluster)
    tight = [structs.replace(OWN, limit=USD), ALL] if which == "project" else [OWN, structs.replace(ALL, limit=USD)]
    async with gateways(url_of(cluster), tmp_path, tight, many=2) as (one, other):
        for number in range(10):
            await other.reserve(hold(f"x{number}/1", scopes=of(project)))
            if what == "spent":
                await other.settle(entry(f"x{number}/1", scopes=of(project)))
        await until_agreed([one, other])
        with pytest.raises(BudgetExceeded):
            await one.reserve(hold("y/1", scopes=of(project)))
        flush(cluster, tag_of(project) if which == "project" else GLOBAL)
        await admits_nothing(one, project, tries=300, within_s=10)


@pytest.mark.parametrize("what", ["spent", "held", "both"])
async def test_a_lagging_replica_takes_over(redis_executable: str, tmp_path: Path, what: str) -> None:
    """B4, C1: one that lacks another gateway's money, spent or held, takes over a master that is well and says MOVED."""
    with Cluster(tmp_path / "cluster", executable=redis_executable) as cluster:
        project = apart(cluster)
        master = cluster.node_of(f"{{{tag_of(project)}}}")
        replica = cluster.replicate(master)
        async with gateways(url_of(cluster), tmp_path, [structs.replace(OWN, limit=USD), ALL], many=2) as (one, other):
            await booked([one, other], "before", [project], 2)
            await until_agreed([one, other])
            replica.caught_up(master)
            cluster.leave_behind(replica, master)
            for number in range(8):
                await other.reserve(hold(f"x{number}/1", scopes=of(project)))
                if what == "spent" or (what == "both" and number < 2):
                    await other.settle(entry(f"x{number}/1", scopes=of(project)))
            await until_agreed([one, other])
            cluster.take_over(replica, master)
            await admits_nothing(one, project, tries=500, within_s=15)
            await until_agreed([one, other])


async def test_what_the_dead_had_is_not_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    """B4: the slot of all projects is emptied, and a gateway that has gone for good had booked calls there: they count again."""
    project = apart(cluster)
    async with gateways([url_of(cluster)], tmp_path / "gone", BOTH) as stores:
        spent = await booked(stores, "gone", [project])
        await until_agreed(stores)
    async with gateways([url_of(cluster)], tmp_path / "here", BOTH) as stores:
        spent += await booked(stores, "here", [project])
        await until_agreed(stores)
        flush(cluster, GLOBAL)
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(StoreUnavailable):
                    await stores[0].reserve(hold("now/1", scopes=of(project)))
                    break
                await asyncio.sleep(0.05)
        await until_agreed(stores)
        with cluster.client() as client:
            assert sums(client)[TOGETHER] == (spent, DIME)


async def test_a_new_budget_over_all_while_others_run(own_redis: RedisServer, tmp_path: Path) -> None:
    """B7: a budget of a new shape over all projects begins with what its entries add, whoever books meanwhile."""
    async with gateways(own_redis.url, tmp_path, BOTH) as stores:
        spent = await booked(stores, "before", "abcdefgh", 80)
        new = [Budget(scope="all", measure="tokens", limit=10**9, window="day"), Budget(scope="model", limit=100 * USD)]

        async def book() -> int:
            return sum([await booked(stores[1:], f"while{run}", "abcdefgh", 40) for run in range(10)])

        async def add() -> None:
            await stores[0].set_budgets([*BOTH, *new])
            for number in range(10):
                await stores[0].reserve(hold(f"hold{number}/1", scopes=of("a")))

        more, _ = await asyncio.gather(book(), add())
        spent += more
        await until_agreed(stores)
        with own_redis.client() as client:
            found = sums(client)
        assert found[TOGETHER] == (spent, USD)
        assert found["*:model:usd:month:UTC:m"] == (spent, USD)
        assert found["*:all:tokens:day:UTC:"] == (spent // DIME * 100, 1000)
