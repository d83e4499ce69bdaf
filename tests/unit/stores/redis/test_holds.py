"""tollkeeper.stores.redis.holds: reserving in all slots of a call or in none, and what is kept here of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.shared_stores import shared_store

from tollkeeper.errors import BudgetExceeded, ConfigError, Conflict
from tollkeeper.stores.redis.holds import Holds
from tollkeeper.stores.redis.keys import tag_of
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import ALPHA, AT_US, DIME, USD, a_hold, an_entry, usd
from tollkeeper.values import Budget, Scopes


async def test_all_or_none(redis_server: RedisServer, tmp_path: Path) -> None:
    """C1: what one slot refuses stands in none of them; the refusal names the budget with its numbers."""
    store = shared_store(redis_server, tmp_path, usd(USD), Budget(scope="all", limit=DIME))
    await store.reserve(a_hold("a/1"))
    with pytest.raises(BudgetExceeded) as caught:
        await store.reserve(a_hold("b/1", scopes=Scopes(project="beta")))
    standing = caught.value.refusal.standing
    assert (standing.budget.scope, standing.held, standing.spent) == ("all", DIME, 0)
    assert [each.held for each in await store.standings(Scopes(project="beta"), "m", AT_US)] == [DIME]
    assert [hold.id for hold in await store.live()] == ["a/1"]
    await store.close()


async def test_ids(redis_server: RedisServer, tmp_path: Path) -> None:
    """B2: an id that lives with other contents is a conflict, here and from another process; voiding it frees the id."""
    one, other = (shared_store(redis_server, tmp_path, usd(USD)) for _ in range(2))
    await one.reserve(a_hold("a/1"))
    for store in (one, other):
        with pytest.raises(Conflict):
            await store.reserve(a_hold("a/1", 1))
    await one.void("a/1")
    await other.reserve(a_hold("a/1", 1))
    assert [each.held for each in await one.standings(ALPHA, "m", AT_US)] == [1]
    assert isinstance(other._holds, Holds)
    await other.settle(an_entry("a/1", 1))
    for store in (one, other):
        await store.close()


async def test_many_that_have_ended(redis_server: RedisServer, tmp_path: Path) -> None:
    """C2: of thousands of holds that an old Redis has in one slot, those that have ended are let go of and the rest stands."""
    store = shared_store(redis_server, tmp_path, usd(USD))
    await store.reserve(a_hold("a/1"))
    holds = store._shared.keys.holds(tag_of("alpha"))
    with redis_server.client() as client:
        text = client.hget(holds, "a/1")
        ended = [f"{number}/2" for number in range(10_000)]
        client.hset(holds, mapping={id: text.replace(b"a/1", id.encode()) for id in ended})
        client.hincrby(text.split()[0], "held", len(ended) * DIME)
    await asyncio.to_thread(store._holds.reassert)
    assert [each.held for each in await store.standings(ALPHA, "m", AT_US)] == [DIME]
    assert [hold.id for hold in await store.live()] == ["a/1"]
    await store.close()


async def test_limits_that_no_script_compares(redis_server: RedisServer, tmp_path: Path) -> None:
    """F4: a limit from 2^53 up is refused with what would be right; a budget that is hard is known to be."""
    store = shared_store(redis_server, tmp_path, usd(USD, hard=False))
    assert store._holds._hard is False
    with pytest.raises(ConfigError, match="9007199254740991"):
        await store.set_budgets([usd(2**53)])
    await store.set_budgets([usd(USD)])
    assert store._holds._hard is True
    await store.close()
