"""tollkeeper.stores.redis.store: what the shared store adds to its parts; the suite of every store is in tests/conformance."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from tests.shared_stores import KEPT, Standing, options, shared_store

from tollkeeper.errors import ConfigError, Conflict, StoreUnavailable
from tollkeeper.ledger import expired
from tollkeeper.money import MAX_NANOS
from tollkeeper.stores import Retention
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.redis_server import RedisServer, free_port, until
from tollkeeper.testing.samples import ALPHA, AT_US, DAY_US, DIME, HOUR_US, USD, a_hold, an_entry, booked, standing, usd
from tollkeeper.values import Budget, Scopes


async def test_what_no_hold_covers_is_seen_at_once(redis_server: RedisServer, tmp_path: Path) -> None:
    """P3: what was booked without a hold, or above it, counts in the next reservation of this process."""
    store = shared_store(redis_server, tmp_path, usd(10 * DIME))
    for number in range(5):
        await store.settle(an_entry(f"{number}/1"))
        await store.reserve(a_hold(f"h{number}/1", DIME))
        await store.settle(an_entry(f"h{number}/1", DIME))
    assert (await standing(store)).spent == 10 * DIME
    await store.close()


@pytest.mark.parametrize("later_us", [HOUR_US, -HOUR_US, 40 * DAY_US])
async def test_a_repeat_elsewhere_at_another_instant(redis_server: RedisServer, tmp_path: Path, later_us: int) -> None:
    """B2: an event that another process books again, with another instant, counts once."""
    first, second = shared_store(redis_server, tmp_path), shared_store(redis_server, tmp_path)
    assert await first.settle(an_entry("a/1")) == "booked"
    await first.standings(Scopes(project="alpha"), "", AT_US)  # by now it is in Redis
    assert await second.settle(an_entry("a/1", at_us=AT_US + later_us)) == "repeated"
    assert [entry.at_us async for entry in second.entries(0, 2**62)] == [AT_US]
    await first.close()
    await second.close()


async def test_days_in_which_an_id_stands(redis_server: RedisServer, tmp_path: Path) -> None:
    """B2, C2: an estimate of one day that was replaced on another is not replaced again: the newest day counts."""
    clock = Standing()
    clock.us = AT_US
    first, second, third = (
        shared_store(redis_server, tmp_path, usd(USD, window="total"), clock=clock, dedupe_s=20 * 86400)
        for _ in range(3)
    )
    hold = a_hold("a/1")
    assert await first.settle(expired(hold)) == "booked"
    await first.standings(Scopes(project="alpha"), "", AT_US)
    clock.us += 3 * DAY_US
    await second.settle(an_entry("a/1", 5))
    await second.standings(Scopes(project="alpha"), "", AT_US)
    clock.us += 3 * DAY_US
    with pytest.raises(Conflict):
        await first.settle(an_entry("a/1", 6))
    assert await third.settle(an_entry("a/1", 5)) == "repeated"
    assert (await standing(third)).spent == 5
    for store in (first, second, third):
        await store.close()


async def test_ids_of_days_that_are_over(redis_server: RedisServer, tmp_path: Path) -> None:
    """Pruning drops the ids of a day that nobody looks at any more, before Redis would have to do it at once."""
    clock = Standing()
    store = shared_store(redis_server, tmp_path, clock=clock)
    for number in range(4):
        clock.us = AT_US + number * DAY_US
        await store.settle(an_entry(f"{number}/1"))
        await store.prune(clock.us, KEPT)
    with redis_server.client() as client:
        days = sorted(int(key.rpartition(b":")[2]) for key in client.scan_iter("*:ids:*"))
    today_us = clock.us - clock.us % DAY_US
    assert days == [today_us - DAY_US, today_us]
    await store.close()


async def test_late_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """I3, F2: without Redis it opens and says why it is not ready; recording goes on; Redis comes, and it is, with few lines."""
    port = free_port()
    with caplog.at_level(logging.INFO, "tollkeeper"):
        store = open_store(f"redis://127.0.0.1:{port}", budgets=[usd(USD)], shared=options(tmp_path / "journal"))
        assert isinstance(store, RedisStore)
        assert "Redis" in (store.trouble or "")
        await store.settle(an_entry("a/1"))
        with RedisServer(tmp_path / "redis", port=port):
            await asyncio.to_thread(until, lambda: store.trouble is None, "it is ready")
            assert (await standing(store)).spent == DIME
            await store.close()
    states = [record.message for record in caplog.records if "Redis is " in record.message]
    assert len(states) <= 4


async def test_prune_keeps_what_is_not_applied(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: pruning drops the entries of Redis and of the journal alike, and only what has outlived its time."""
    store = shared_store(redis_server, tmp_path)
    await store.settle(an_entry("old/1", at_us=AT_US - 70 * DAY_US))
    await store.settle(an_entry("new/1"))
    assert await store.prune(AT_US, Retention(hour_s=None, day_s=None, month_s=None, entries_s=30 * 86400)) > 0
    assert [entry.id async for entry in store.entries(0, 2**62)] == ["new/1"]
    assert await store._journal.entry("alpha", "old/1") is None
    await store.close()


async def test_one_alert_of_five_gateways(redis_server: RedisServer, tmp_path: Path) -> None:
    """G2: of five gateways that see 500 calls pass 80 % of a budget one is to tell; one that dies with it is followed."""
    stores = [shared_store(redis_server, tmp_path, usd(500 * DIME)) for _ in range(5)]
    told: list[int] = []

    async def calls(number: int, store: RedisStore) -> None:
        for call in range(100):
            await store.settle(an_entry(f"{number}-{call}/1"))
            if (await standing(store)).spent >= 400 * DIME and await store.claim("alert", AT_US, 60_000_000):
                told.append(number)

    await asyncio.gather(*(calls(*each) for each in enumerate(stores)))
    assert len(told) == 1
    with redis_server.client() as client:
        (key,) = client.keys("*:once:*")
        assert 0 < client.pttl(key) <= 60_000
        client.delete(key)  # as if its time were over
    others = [store for number, store in enumerate(stores) if number != told[0]]
    assert [await store.claim("alert", AT_US, 60_000_000) for store in others] == [True, False, False, False]
    await others[0].done("alert", AT_US + DAY_US)
    assert [await store.claim("alert", AT_US, 60_000_000) for store in stores] == [False] * 5
    await asyncio.gather(*(store.close() for store in stores))


async def test_more_than_a_double_counts(redis_server: RedisServer, tmp_path: Path) -> None:
    """F4, B7: entries that together come to more than 2^53 nano-dollars count as all others, and stop nobody else's."""
    store = shared_store(redis_server, tmp_path)
    await asyncio.gather(*(store.settle(an_entry(f"{number}/1", MAX_NANOS)) for number in range(3)))
    assert len(await booked(store)) == 3
    await store.close()
    store = shared_store(redis_server, tmp_path, usd(USD), Budget(scope="all", limit=USD, window="total"))
    assert [each.spent for each in await store.standings(ALPHA, "m", AT_US)] == [3 * MAX_NANOS] * 2
    await store.settle(an_entry("more/1", MAX_NANOS))
    assert await store.verify() == []
    await store.close()


async def test_names_of_balances_go_with_them(redis_server: RedisServer, tmp_path: Path) -> None:
    """I4: balances that Redis drops at their deadline leave no names behind, in no slot, and those that it keeps stay listed."""
    clock = Standing()
    budgets = usd(USD, window="minute"), Budget(scope="all", limit=USD, window="minute"), usd(USD, window="total")
    store = shared_store(redis_server, tmp_path, *budgets, clock=clock)
    await store.settle(an_entry("a/1"))
    await store.settle(an_entry("b/1", at_us=AT_US + DAY_US))
    await store.standings(ALPHA, "m", AT_US)
    with redis_server.client() as client:

        def listed() -> list[bytes]:
            names = [name for key in client.scan_iter("*:index") for name in client.zrange(key, 0, -1)]
            return sorted(name for name in names if name.startswith(b"balance:"))

        assert len(listed()) == 5
        ahead_us = store._shared.deadlines.balance(AT_US) * 10**6 - AT_US  # as the deadline of an instant says
        clock.us = AT_US + ahead_us + HOUR_US
        await store.prune(clock.us, KEPT)
        assert [name.split(b":")[1] for name in listed() if b":total:" not in name] == [b"all", b"project"]
        assert len(listed()) == 3
    await store.close()


async def test_a_slot_that_opens_while_redis_is_doubted(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P3: a call whose slot is opened as Redis becomes doubtful is not admitted before the recovery is over."""
    store = shared_store(redis_server, tmp_path, usd(USD))
    await store._begun()
    open_, go_on = store._holds._open, Event()
    monkeypatch.setattr(store._flusher, "_recover", go_on.wait)

    def opening(*args: Any) -> None:
        open_(*args)
        store._shared.link.tell("doubted")

    monkeypatch.setattr(store._holds, "_open", opening)
    try:
        with pytest.raises(StoreUnavailable):
            await store.reserve(a_hold("a/1"))
    finally:
        monkeypatch.undo()
        go_on.set()
    await asyncio.to_thread(until, lambda: store.state == "ready", "it is over")
    assert [each.held for each in await store.standings(ALPHA, "m", AT_US)] == [0]
    await store.close()


def test_nothing_half_started(redis_server: RedisServer, tmp_path: Path) -> None:
    """I2: a limit that no script can compare is refused before a journal is owned or a thread begun."""
    before = threading.active_count()
    with pytest.raises(ConfigError, match="above what a Redis store compares"):
        shared_store(redis_server, tmp_path, usd(MAX_NANOS + 1))
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
