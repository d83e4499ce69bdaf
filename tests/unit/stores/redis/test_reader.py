"""tollkeeper.stores.redis.reader: who only reads sees what others book, without owning anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.shared_stores import options, shared_store

from tollkeeper.errors import ConfigError, StoreUnavailable
from tollkeeper.ledger import FOREVER_US
from tollkeeper.stores.opening import open_reader
from tollkeeper.stores.redis.reader import RedisReader
from tollkeeper.testing.redis_server import RedisServer, free_port
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, USD, an_entry, total, usd
from tollkeeper.values import Scopes


async def test_reads_beside_the_owner(redis_server: RedisServer, tmp_path: Path) -> None:
    """G1: cells, tally and entries have the same sums; a reader has no journal and closes without harm."""
    store = shared_store(redis_server, tmp_path / "owner", usd(USD))
    for number, project in enumerate(("alpha", "beta", "alpha")):
        scopes = Scopes(project=project, agent=f"a{number}", key="k")
        await store.settle(an_entry(f"{number}/1", at_us=AT_US + number * 20 * DAY_US, scopes=scopes))
    await store._current()
    reader = open_reader(redis_server.url, shared=options(tmp_path / "reader"))
    assert isinstance(reader, RedisReader)
    for scope in ("project", "agent", "key"):
        for period in ("hour", "day", "month"):
            assert total(await reader.cells(scope, period, 0, FOREVER_US), "amount_nanos") == 3 * DIME  # type: ignore[arg-type]
        assert total(await reader.tally(scope, 0, FOREVER_US), "amount_nanos") == 3 * DIME  # type: ignore[arg-type]
    assert total(await reader.cells("project", "month", 0, FOREVER_US, "alpha"), "calls") == 2
    assert total(await reader.cells("key", "day", AT_US + DAY_US, FOREVER_US, id="k"), "calls") == 2
    assert [entry.id async for entry in reader.entries(0, FOREVER_US)] == ["0/1", "1/1", "2/1"]
    assert [entry.id async for entry in reader.current(0, FOREVER_US, "beta")] == ["1/1"]
    assert await reader.verify() == []
    assert (await reader.size()).entries == 3
    await reader.close()
    assert not (tmp_path / "reader").exists()
    await store.close()


async def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2: a Redis that is not there is one error for who reads, and a reader needs to be told of its folder."""
    monkeypatch.setattr("tollkeeper.stores.redis.reader.CONNECT_MS", 50)
    url = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable, match="Redis"):
        open_reader(url, shared=options(tmp_path))
    with pytest.raises(ConfigError, match="journal"):
        open_reader(url)
