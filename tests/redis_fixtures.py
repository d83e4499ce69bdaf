"""Real Redis servers as fixtures. Where no redis-server is found, what needs one is skipped; with CI=true it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tollkeeper.testing.redis_server import RedisServer, find_redis


def skip_or_fail(reason: str) -> None:
    """Skip the calling test; where CI=true, which promises that nothing is missing, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_executable() -> str:
    """The path of a redis-server: for tests that make servers of their own."""
    path = find_redis()
    if path is None:
        skip_or_fail("no redis-server: make test installs it as root; else: sudo apt-get install redis-server")
    assert path is not None
    return path


@pytest.fixture(scope="session")
def _shared_redis(redis_executable: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), executable=redis_executable) as server:
        yield server


@pytest.fixture
def redis_server(_shared_redis: RedisServer) -> RedisServer:
    """The session's server, empty, without scripts and without clients of the tests before. Not to be killed or configured."""
    with _shared_redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
        client.flushall()
        client.script_flush()
    return _shared_redis


@pytest.fixture
def own_redis(redis_executable: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A fresh server of this test alone: to kill, pause and configure."""
    with RedisServer(tmp_path / "redis", executable=redis_executable) as server:
        yield server
