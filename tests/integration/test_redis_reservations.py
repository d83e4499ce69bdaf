"""tollkeeper.stores.redis.holds and holding: reservations in Redis, one at a time. Races are in tests/integration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.gateways import NOW_US, entry, gateways, hold, of, scan, soon, sums

from tollkeeper.errors import BudgetExceeded, Conflict, RateLimited, StoreUnavailable
from tollkeeper.money import MAX_NANOS
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD
from tollkeeper.values import Budget, Scopes

OWN = Budget(scope="project", limit=USD, window="total")
ALL = Budget(scope="all", limit=5 * USD, window="total")
DAY = Budget(scope="project", limit=3 * DIME, window="day")
HERE, BETA = (f"{tag_of(project)}:project:usd:total:UTC:" for project in ("alpha", "beta"))
TOGETHER = "*:all:usd:total:UTC:"


@pytest.fixture
async def store(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[RedisStore]:
    async with gateways([redis_server.url], tmp_path, [OWN, ALL]) as (store,):
        yield store


def stand(server: RedisServer) -> dict[str, tuple[int, int]]:
    with server.client() as client:
        return sums(client)


async def test_held_and_let_go(store: RedisStore, redis_server: RedisServer) -> None:
    """A hold stands in each slot, once, however often it is asked for; let go of, in none; a second time is harmless."""
    for _ in range(2):
        grant = await store.reserve(hold("a/1"))
        assert grant.tightest is not None
        assert (grant.tightest.held, grant.capped) == (DIME, True)
    assert stand(redis_server) == {HERE: (0, DIME), TOGETHER: (0, DIME)}
    with pytest.raises(Conflict):
        await store.reserve(hold("a/1", 2 * DIME))
    assert [each.id for each in await store.live()] == ["a/1"]
    for _ in range(2):
        await store.void("a/1")
    assert stand(redis_server) == {HERE: (0, 0), TOGETHER: (0, 0)}
    assert await store.live() == []


async def test_refused_with_numbers(store: RedisStore) -> None:
    """C7: a refusal has the numbers of the budget that refuses; calls that cost nothing pass, unpriced ones do not."""
    await store.reserve(hold("a/1", 95 * DIME // 10))
    with pytest.raises(BudgetExceeded) as refusal:
        await store.reserve(hold("b/1"))
    told = refusal.value.refusal
    assert (told.asked, told.standing.held, told.standing.budget) == (DIME, 95 * DIME // 10, OWN)
    with pytest.raises(BudgetExceeded, match="no price"):
        await store.reserve(hold("c/1", None))
    await store.reserve(hold("d/1", 0))
    await store.set_budgets([Budget(scope="user", measure="requests", limit=0, window="minute")])
    with pytest.raises(RateLimited):
        await store.reserve(hold("e/1", scopes=Scopes(project="alpha", user="u")))


async def test_what_no_budget_covers(store: RedisStore, redis_server: RedisServer) -> None:
    """Without budgets a hold is an intent in the journal, and Redis is not asked."""
    await store.set_budgets([])
    await store.reserve(hold("a/1"))
    assert [each.id for each in await store.live()] == ["a/1"]
    with redis_server.client() as client:
        assert not any(name.endswith(":holds") for name in scan(client))
    await store.settle(entry("a/1"))
    assert await store.live() == []


async def test_a_repeat_that_fails_keeps_the_hold(
    store: RedisStore, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold that stands is not let go of because asking for it again fails in one slot."""
    await store.reserve(hold("a/1"))
    with redis_server.client() as client:
        client.hset(f"tollkeeper:{{{GLOBAL}}}:balance:all:usd:total:UTC::0", "spent", "much")
        with pytest.raises(StoreUnavailable, match="refused a command"):
            await store.reserve(hold("a/1"))
        client.hset(f"tollkeeper:{{{GLOBAL}}}:balance:all:usd:total:UTC::0", "spent", "0")
    assert stand(redis_server) == {HERE: (0, DIME), TOGETHER: (0, DIME)}
    assert [each.id for each in await store.live()] == ["a/1"]


async def test_cancelled_in_the_midst(store: RedisStore, redis_server: RedisServer) -> None:
    """D4: a reservation that is cancelled at any moment leaves nothing once its id is let go of."""
    await store.reserve(hold("open/1"))
    await store.void("open/1")
    for turns in range(12):
        task = asyncio.create_task(store.reserve(hold(f"{turns}/1")))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await store.void(f"{turns}/1")
    assert stand(redis_server) == {HERE: (0, 0), TOGETHER: (0, 0)}
    assert await store.live() == []


async def test_a_slot_that_is_behind(store: RedisStore, redis_server: RedisServer) -> None:
    """B4: a slot that lacks rows that it had is checked before anything is admitted there."""
    await store.reserve(hold("a/1"))
    await store.settle(entry("b/1"))
    await store._current()
    with redis_server.client() as client:
        client.hset(f"tollkeeper:{{{tag_of('alpha')}}}:cursor", store._journal.id, "0")
    with pytest.raises(StoreUnavailable, match="had more"):
        await store.reserve(hold("c/1"))
    await soon(lambda: store.state == "ready")


async def test_due_and_dead(store: RedisStore, redis_server: RedisServer, tmp_path: Path) -> None:
    """C2: one's own holds are due at their deadline, others' a grace later; each is booked at its estimate by one gateway."""
    async with gateways([redis_server.url], tmp_path / "other", [OWN, ALL]) as (other,):
        await other.reserve(hold("theirs/1", scopes=of("beta")))
    await store.reserve(hold("own/1"))
    deadline_us = NOW_US + 660_000_000
    assert await store.expire(deadline_us - 1) == 0
    with redis_server.client() as client:
        client.delete(store._shared.keys.sweeper)
    assert await store.expire(deadline_us) == 1
    await store._current()
    with redis_server.client() as client:
        client.delete(store._shared.keys.sweeper)
    assert await store.expire(deadline_us + 6_000_000) == 1
    await store._current()
    found = await store.known([("alpha", "own/1"), ("beta", "theirs/1")])
    assert {each.outcome for each in found.values()} == {"expired"}
    assert len(found) == 2
    assert stand(redis_server)[TOGETHER] == (2 * DIME, 0)


async def test_a_refusal_that_was_not_cleared_up(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2, P3: a gateway dies before it has let go of what one slot had granted and another one refused: that is not booked."""
    both = [OWN, structs.replace(ALL, limit=DIME)]
    async with gateways([redis_server.url] * 2, tmp_path, both) as (store, dies):
        for each, project in ((store, "alpha"), (dies, "beta")):  # both slots have begun
            await each.settle(entry(f"{project}/1", 1, at_us=NOW_US - 10**9, scopes=of(project)))
            await each.standings(of(project), "m", NOW_US)
        monkeypatch.setattr(dies._holds.stand, "release", lambda held, tag: Ask(("ECHO", "killed"), tag))
        later_us = NOW_US + 3600 * 10**6
        with pytest.raises(BudgetExceeded):
            await dies.reserve(hold("a/1", scopes=of("beta"), at_us=later_us, deadline_us=later_us))
        assert stand(redis_server)[BETA] == (1, DIME)
        assert await store.expire(later_us + 6_000_000) == 0
        assert stand(redis_server)[BETA] == (1, 0)
        assert await store.live() == []
        assert await store.known([("beta", "a/1")]) == {}


async def test_a_hold_that_stands_for_an_entry(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2, P3: a gateway dies before its entry counts in the slot of all projects: until it does, the hold there stands for it."""
    async with gateways([redis_server.url], tmp_path / "here", [OWN, ALL]) as (store,):
        async with gateways([redis_server.url], tmp_path / "gone", [OWN, ALL]) as (dies,):
            await dies.settle(entry("first/1", scopes=of("beta"), at_us=NOW_US - 10**9))
            await dies._current()
            await dies.reserve(hold("a/1", scopes=of("beta")))

            def fails(*args: Any) -> None:
                raise StoreUnavailable("killed")

            monkeypatch.setattr(dies._flusher._applier, "_star", fails)
            await dies.settle(entry("a/1", scopes=of("beta")))
            await soon(lambda: stand(redis_server)[BETA] == (2 * DIME, 0))
        for _ in range(2):
            with redis_server.client() as client:
                client.delete(store._shared.keys.sweeper)
            await store.expire(NOW_US + 700_000_000)
            assert stand(redis_server)[TOGETHER] == (DIME, DIME)
        async with gateways([redis_server.url], tmp_path / "gone", [OWN, ALL]):
            await soon(lambda: stand(redis_server)[TOGETHER] == (2 * DIME, 0))


async def test_a_journal_that_fails(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B6: where the intent of a leased call cannot be written the call is refused, and its part of lease and slot is free."""
    budgets = [Budget(scope="all", limit=5 * USD, window="total", lease=USD), OWN]
    async with gateways([redis_server.url], tmp_path, budgets) as (store,):
        kept = None
        while kept is None or kept.lease.state != "leased":
            await store.reserve(hold("first/1"))
            await store.void("first/1")
            (kept,) = store._leases._leases.values()
            await asyncio.sleep(0.01)

        async def fails(hold: object) -> None:
            raise StoreUnavailable("disk full")

        monkeypatch.setattr(store._journal, "reserve", fails)
        with pytest.raises(StoreUnavailable, match="disk full"):
            await store.reserve(hold("a/1"))
        assert kept.lease.live == 0
        assert stand(redis_server)[HERE] == (0, 0)


async def test_more_than_a_double_counts(store: RedisStore, redis_server: RedisServer) -> None:
    """P2: sums of 2^53 nanos and more are booked in one batch, and a new shape's balances begin with them; both still refuse."""
    await asyncio.gather(*(store.settle(entry(f"{number}/1", MAX_NANOS)) for number in range(3)))
    assert await store.verify() == []
    assert stand(redis_server)[HERE] == (3 * MAX_NANOS, 0)
    await store.set_budgets([OWN, Budget(scope="project", limit=USD, window="month")])
    with pytest.raises(BudgetExceeded):
        await store.reserve(hold("a/1"))
    found = stand(redis_server)
    assert found[f"{tag_of('alpha')}:project:usd:month:UTC:"] == found[HERE] == (3 * MAX_NANOS, 0)


async def test_a_new_budget_while_redis_is_away(own_redis: RedisServer, tmp_path: Path) -> None:
    """P3: calls in flight count on a budget that came while Redis was away, as soon as it is back."""
    async with gateways([own_redis.url], tmp_path, [OWN]) as (store,):
        await store.reserve(hold("a/1"))
        own_redis.kill()
        await soon(lambda: store.state == "away")
        await store.set_budgets([OWN, DAY])
        own_redis.start()
        await soon(lambda: store.state == "ready")
        assert stand(own_redis)[f"{tag_of('alpha')}:project:usd:day:UTC:"] == (0, DIME)
        await store.settle(entry("a/1"))
        assert await store.verify() == []
        assert {held for _, held in stand(own_redis).values()} == {0}


async def test_a_new_budget_while_a_call_is_asked_for(
    store: RedisStore, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: a call that is granted while the budgets change counts on the new one before it goes out; one refused never does."""
    asks = store._shared.link.asks

    async def changes(asked: Any) -> list[Any]:
        found = await asks(asked)
        if not changed:
            changed.append(True)
            await store.set_budgets([OWN, DAY])
        return found

    monkeypatch.setattr(store._shared.link, "asks", changes)
    day = f"{tag_of('alpha')}:project:usd:day:UTC:"
    for id, nanos, held in (("a/1", DIME, DIME), ("b/1", USD, DIME)):
        changed = list[bool]()
        await store.set_budgets([OWN])
        if nanos == USD:
            with pytest.raises(BudgetExceeded):
                await store.reserve(hold(id, nanos))
        else:
            await store.reserve(hold(id, nanos))
        assert stand(redis_server)[day] == (0, held)


async def test_a_call_let_go_while_budgets_change(
    store: RedisStore, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2: a call that is let go of while it is told again under new budgets holds nothing afterwards."""
    keep, loop = store._holds._keep, asyncio.get_running_loop()

    def lets_go(slots: Any) -> None:
        monkeypatch.undo()
        asyncio.run_coroutine_threadsafe(store.void("a/1"), loop).result(5)
        keep(slots)

    await store.reserve(hold("a/1"))
    monkeypatch.setattr(store._holds, "_keep", lets_go)
    await store.set_budgets([OWN, DAY])
    assert {held for _, held in stand(redis_server).values()} == {0}
    assert await store.live() == []
