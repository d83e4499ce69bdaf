"""The ledger behind a tracker: one opening, and the periodic work that whoever comes by does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.tracking import tracker

from tollkeeper.config import load
from tollkeeper.errors import ConfigError, StoreOwned, StoreUnavailable
from tollkeeper.stores import Retention
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.testing.clock import ManualClock
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.tracker import CostTracker, accounts


class Watched(MemoryStore):
    """Counts the periodic work; fails it while `failing`."""

    def __init__(self) -> None:
        super().__init__()
        self.expired, self.pruned, self.failing = list[int](), list[int](), False

    async def expire(self, now_us: int) -> int:
        if self.failing:
            raise StoreUnavailable("the disk is full")
        self.expired.append(now_us)
        return await super().expire(now_us)

    async def prune(self, now_us: int, retention: Retention) -> int:
        self.pruned.append(now_us)
        return await super().prune(now_us, retention)


async def test_periodic_work(caplog: pytest.LogCaptureFixture) -> None:
    """Dead holds are looked for at most once a second, retention once an hour and not at once; a failure is logged."""
    clock, store = ManualClock(), Watched()
    books = accounts.Accounts(store, load({}, {}), clock)
    for seconds, expired, pruned in (
        (0, 1, 0),
        (0, 1, 0),
        (0.5, 1, 0),
        (0.5, 2, 0),
        (3600, 3, 1),
        (0, 3, 1),
        (3599, 4, 1),
    ):
        clock.advance(seconds)
        await books.store()
        assert (len(store.expired), len(store.pruned)) == (expired, pruned)
    store.failing = True
    clock.advance(1)
    assert await books.store() is store
    assert "periodic work failed: the disk is full" in caplog.text


async def test_opened_once(tmp_path: Path) -> None:
    """Many first uses at once open one ledger; a second owner is refused; closing lets go of it."""
    config, clock, url = load({}, {}), ManualClock(), f"sqlite:///{tmp_path}/ledger.sqlite"
    books = accounts.Accounts(url, config, clock)
    stores = await asyncio.gather(*(books.store() for _ in range(20)))
    assert len({id(store) for store in stores}) == 1
    prices = await asyncio.gather(*(books.prices() for _ in range(20)))
    assert len({id(book) for book in prices}) == 1
    second = accounts.Accounts(url, config, clock)
    with pytest.raises(StoreOwned):
        await second.store()
    await books.close()
    await second.store()  # a failed opening may be tried again
    await second.close()


async def test_wrong_price_file(tmp_path: Path) -> None:
    """A mistake in the price file is told at the first use, and nothing is booked at a wrong price."""
    costs = tracker(tmp_path)
    (tmp_path / "prices.toml").write_text('[[price]]\nmodel = "x"\ninput = "-1"\n')
    with pytest.raises(ConfigError, match="input"):
        await costs.record_usage("p", "a", "x", 1, 1)
    await costs.close()


async def test_providers() -> None:
    """A configured provider wins over a preset of its name; any other name is looked up in the price data."""
    config = load({"providers": {"openai": {"api_key_env": "KEY", "prices": "azure"}}}, {"KEY": "secret"})
    books = accounts.Accounts("memory:", config, ManualClock())
    found = [books.provider(name) for name in ("openai", "anthropic", "fireworks-ai", None)]
    assert [None if each is None else each.prices for each in found] == ["azure", "anthropic", "fireworks-ai", None]
    prices = await books.prices()
    named = [
        accounts.provider_name(*pair, prices)
        for pair in ((None, "gpt-4o"), ("mine", "gpt-4o"), (None, "no-such-model"))
    ]
    assert named == ["openai", "mine", "unknown"]
    await books.close()


async def test_shared_ledger(redis_server: RedisServer, tmp_path: Path) -> None:
    """Two trackers on one Redis, by its URL, are one account; each has a journal where the settings say."""
    settings = {"data_dir": str(tmp_path), "journal": "here", "redis_prefix": "mine"}
    async with (
        CostTracker(store=redis_server.url, settings=settings) as one,
        CostTracker(store=redis_server.url, settings=settings) as other,
    ):
        for each in (one, other):
            await each.record_usage("shop", "writer", "gpt-4o-mini", prompt_tokens=1000, completion_tokens=0)
        await one.get_project_usage("shop")  # what each has booked is there as soon as it asks
        assert (await other.get_project_usage("shop")).total_requests == 2
        assert len(list((tmp_path / "here").glob("*.sqlite"))) == 2
    with redis_server.client() as client:
        assert {key.partition(b":")[0] for key in client.keys("*")} == {b"mine"}


def test_wrong_store() -> None:
    """A URL that names no store is told at once, without a part of it."""
    with pytest.raises(ConfigError, match="names several hosts"):
        accounts.Accounts("redis://:canary@a,b/0", load({}, {}), ManualClock())
