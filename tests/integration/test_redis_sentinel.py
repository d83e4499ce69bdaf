"""Sentinels promote the replica, and clients find it."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tollkeeper.testing.redis_sentinel import Sentinels
from tollkeeper.testing.redis_server import until


def test_a_dead_master_is_replaced(redis_executable: str, tmp_path: Path) -> None:
    """B4: the replica of a killed master is promoted, and the client finds it."""
    config = {"requirepass": "p@ss", "masterauth": "p@ss"}
    with Sentinels(tmp_path, config=config, executable=redis_executable) as sentinels, sentinels.client() as client:
        assert sentinels.master is sentinels.first
        client.set("paid", 7)
        sentinels.second.caught_up(sentinels.first)
        sentinels.first.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("paid")
        until(lambda: sentinels.master is sentinels.second, "the replica as the master")
        until(lambda: client.incr("paid") == 8, "the new master's answer")


def test_swapped_on_demand(redis_executable: str, tmp_path: Path) -> None:
    """B4: a planned fail-over leaves both running with their roles swapped."""
    with Sentinels(tmp_path, executable=redis_executable) as sentinels:
        assert sentinels.fail_over() is sentinels.second
        with sentinels.client() as client:
            assert client.connection_pool.get_master_address()[1] == sentinels.second.port
