"""A ledger on a disk that can be stopped and made to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.unit.stores.sqlite.disk import Disk

from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import USD, usd


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def disk() -> Iterator[Disk]:
    with Disk() as disk:
        yield disk


@pytest.fixture
async def store(path: Path, disk: Disk) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, [usd(USD)])
    yield store
    disk.failing.clear()
    disk.go()
    await store.close()
