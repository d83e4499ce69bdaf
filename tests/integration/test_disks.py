"""The disks of tests do what they say, to a Redis server and to the embedded ledger."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from tests.disks import SlowDisk, full, small_disk

import tollkeeper
from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.redis_server import RedisServer, until
from tollkeeper.testing.samples import an_entry, booked


def test_a_redis_with_a_slow_disk(redis_executable: str, tmp_path: Path) -> None:
    """B4: with appendfsync always each write waits for the sync; the disk changes while the server runs."""
    disk = SlowDisk(tmp_path)
    config = {"appendfsync": "always"}
    with (
        RedisServer(tmp_path / "redis", config=config, executable=redis_executable, env=disk.env) as server,
        server.client() as client,
    ):
        client.set("n", 0)
        disk.syncs(ms=150)
        begun = time.monotonic()
        client.incr("n")
        assert time.monotonic() - begun >= 0.15
        disk.syncs()
        assert [client.incr("n") for _ in range(20)][-1] == 21


@pytest.mark.parametrize(("policy", "kept"), [("always", b"1"), ("no", None)])
def test_power_is_cut(redis_executable: str, tmp_path: Path, policy: str, kept: bytes | None) -> None:
    """B4: the tester is tested: what was synced before an answer outlives the cut, what was never synced does not."""
    disk = SlowDisk(tmp_path)
    config = {"appendfsync": policy}
    with (
        RedisServer(tmp_path / "redis", config=config, executable=redis_executable, env=disk.env) as server,
        server.client() as client,
    ):
        client.set("n", 1)
        server.kill()
        lost = disk.cut_power(*server.folder.glob("appendonlydir/*.incr.aof"))
        server.start()
        assert (client.get("n"), lost > 0) == (kept, kept is None)


def test_a_sync_that_fails(redis_executable: str, tmp_path: Path) -> None:
    """B6: a server that promises to sync each write ends when it cannot; its log says why."""
    disk = SlowDisk(tmp_path)
    config = {"appendfsync": "always"}
    with (
        RedisServer(tmp_path / "redis", config=config, executable=redis_executable, env=disk.env) as server,
        server.client() as client,
    ):
        disk.syncs(errno=errno.EIO)
        with pytest.raises(redis.ConnectionError):
            client.set("n", 1)
        until(lambda: "Input/output error" in server.log, "the reason in the log")


def test_a_redis_with_a_full_disk(redis_executable: str, tmp_path: Path) -> None:
    """B6: a server whose disk is full refuses writes, still answers, and takes writes again when there is room."""
    with (
        small_disk(tmp_path / "small") as folder,
        RedisServer(folder / "redis", executable=redis_executable) as server,
        server.client() as client,
    ):
        client.set("n", 1)
        with full(folder):
            client.set("large", bytes(1 << 16))  # answered before it is written: the server finds out behind it
            with pytest.raises(redis.ResponseError, match="No space left"):
                client.set("n", 0)
            assert client.get("n") == b"1"
        until(lambda: bool(client.set("n", 2)), "a write")


async def test_a_ledger_with_a_full_disk(tmp_path: Path) -> None:
    """B6: a full disk refuses an entry with a clear error, loses none before it, and takes it when there is room."""
    with small_disk(tmp_path / "small") as folder:
        store = SqliteStore(folder / "ledger.sqlite", ())
        await store.settle(an_entry("before"))
        done: list[str] = []

        async def book() -> None:
            for id in map(str, range(1000)):
                await store.settle(an_entry(id))
                done.append(id)

        with full(folder), pytest.raises(StoreUnavailable, match="check the disk's space"):
            await book()
        await store.settle(an_entry("after"))
        assert {entry.id for entry in await booked(store)} == {"before", "after", *done}
        await store.close()


BOOK = """
import asyncio, sys
from pathlib import Path
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import an_entry

async def main():
    store = SqliteStore(Path(sys.argv[1]), ())
    for id in range(1000000):
        await store.settle(an_entry(str(id)))
        print(id, flush=True)

asyncio.run(main())
"""


def killed(path: Path, env: dict[str, str], count: int) -> int:
    """Kill a process that books once it has acknowledged so many entries, and say how many it had by then."""
    source = {"PYTHONPATH": str(Path(tollkeeper.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", BOOK, str(path)], stdout=subprocess.PIPE, env=os.environ | source | env
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(count)]
        process.kill()
        told += process.stdout.readlines()
    return len([line for line in told if line.endswith(b"\n")])


async def test_a_ledger_without_power(tmp_path: Path) -> None:
    """B1: what the embedded ledger acknowledged outlives a power cut, slow disk or not."""
    disk = SlowDisk(tmp_path)
    path = tmp_path / "ledger.sqlite"
    disk.syncs(ms=2)
    done = killed(path, disk.env, 100)
    wal = path.with_name("ledger.sqlite-wal")
    assert disk.synced(wal) > 0
    disk.cut_power(wal)
    store = SqliteStore(path, ())
    assert {entry.id for entry in await booked(store)} >= {str(id) for id in range(done)}
    assert await store.verify() == []
    await store.close()
