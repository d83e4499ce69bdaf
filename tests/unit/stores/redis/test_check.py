"""What is said of a Redis server by what it says of itself."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as TooLate

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis.check import ASKED, Watch, check, check_all, judge
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import parse
from tollkeeper.testing.redis_server import RedisServer

INFO: dict[str, Any] = {
    "redis_version": "7.0.15",
    "run_id": "ab12",
    "role": "master",
    "cluster_enabled": 0,
    "maxmemory": 0,
    "maxmemory_policy": "noeviction",
    "aof_enabled": 1,
}
CONFIG = {
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "save": "",
}


def said(kind: Any = "server", /, **changed: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Errors and warnings of a good server with some of what it says changed; `_` stands for `-`."""
    config = CONFIG | {name: value for each, value in changed.items() if (name := each.replace("_", "-")) in CONFIG}
    info = INFO | {name: value for name, value in changed.items() if name.replace("_", "-") not in CONFIG}
    found = judge(info, config, kind)
    return found.errors, found.warnings


def test_a_good_one() -> None:
    """A server that keeps everything has neither errors nor warnings, and all that it says is there."""
    found = judge(INFO, CONFIG, "server")
    assert (found.errors, found.warnings) == ((), ())
    assert (found.server, found.version, found.run_id, found.role) == ("Redis", "7.0.15", "ab12", "master")
    assert (found.cluster, found.maxmemory, found.policy, found.snapshots) == (False, 0, "noeviction", "")
    assert (found.aof, found.fsync, found.fsync_on_rewrite) == (True, "always", True)


@pytest.mark.parametrize(
    ("versions", "error"),
    [
        ({"redis_version": "6.2.14"}, "Redis 6.2.14 is too old; use Redis 7.0, Valkey 8.0 or newer"),
        ({"redis_version": "7.0.0"}, None),
        ({"redis_version": "10.0.1"}, None),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.7"}, "Valkey 7.2.7 is too old; use Redis 7.0"),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.0"}, None),
    ],
)
def test_versions(versions: dict[str, str], error: str | None) -> None:
    """Redis counts from 7.0 and Valkey, which also tells a version of Redis, from 8.0."""
    errors, _ = said(**versions)
    assert [each.startswith(error or "") for each in errors] == ([True] if error else [])


def test_eviction() -> None:
    """Any policy but noeviction throws balances away once memory is bounded."""
    assert said(maxmemory_policy="allkeys-lru") == ((), ())
    assert said(maxmemory="1000") == ((), ())
    for policy in ("allkeys-lru", "volatile-ttl"):
        errors, _ = said(maxmemory="1000", maxmemory_policy=policy)
        assert errors == (f"maxmemory-policy {policy} throws balances away when memory is full; set it to noeviction",)


def test_the_wrong_server() -> None:
    """A replica, and a server that is no cluster where the URL says so or the reverse, are errors."""
    assert "replica" in said(role="slave")[0][0]
    assert "write redis+cluster://" in said("server", cluster_enabled=1)[0][0]
    assert "write redis+cluster://" in said("sentinel", cluster_enabled=1)[0][0]
    assert "write redis://" in said("cluster")[0][0]
    assert said("cluster", cluster_enabled=1) == said(None, cluster_enabled=1) == said(None) == ((), ())


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({"appendonly": "no"}, "the server keeps nothing over a restart"),
        ({"appendonly": "no", "save": "3600 1"}, "the server goes back to its last snapshot at a restart"),
        ({"appendfsync": "everysec"}, "appendfsync everysec: after a power cut the server lacks its last second"),
        ({"appendfsync": "no"}, "appendfsync no: after a power cut the server lacks what the system had not"),
        ({"no_appendfsync_on_rewrite": "yes"}, "no-appendfsync-on-rewrite yes: nothing is synced during a rewrite"),
    ],
)
def test_persistence(changed: dict[str, str], warning: str) -> None:
    """What is lost at a restart or a power cut is one warning."""
    errors, (warned,) = said(**changed)
    assert errors == ()
    assert warned.startswith(warning)


class Server:
    """A client of a server that answers, or fails, as it is told."""

    def __init__(self, info: Any, config: Any) -> None:
        self._info, self._config = info, config

    def info(self) -> Any:
        return self._answer(self._info)

    def config_get(self, *names: str) -> Any:
        assert names == ASKED
        return self._answer(self._config)

    def _answer(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_may_not_be_asked() -> None:
    """Forbidden or unknown commands leave things unknown, and one warning says which and what would allow them."""
    denied = NoPermissionError("no permissions to run the 'info' command")
    found = check(cast("Redis", Server(denied, ResponseError("unknown command 'CONFIG'"))))
    assert (found.server, found.run_id, found.maxmemory, found.aof, found.errors) == (None, None, None, None, ())
    (warned,) = found.warnings
    assert warned == (
        "INFO and CONFIG GET cannot be asked; unknown: its version, its run id, eviction, persistence; "
        "allow +info +config|get to this user, or see to it yourself"
    )
    found = check(cast("Redis", Server(INFO, denied)))
    assert (found.policy, found.aof) == ("noeviction", True)
    assert found.warnings[0].startswith("CONFIG GET cannot be asked; unknown: persistence; allow +config|get")
    found = check(cast("Redis", Server(denied, {name.encode(): value.encode() for name, value in CONFIG.items()})))
    assert (found.policy, found.snapshots) == ("noeviction", "")
    assert found.warnings[0].startswith("INFO cannot be asked; unknown: its version, its run id; allow +info to")


def test_a_server_that_is_away() -> None:
    """Nobody answering is no finding."""
    with pytest.raises(TooLate):
        check(cast("Redis", Server(TooLate(), {})))


# ── every server of a place ──────────────────────────────────────────────────────────────────────────────────────────


def test_all_servers(redis_server: RedisServer) -> None:
    """Each server that takes writes is looked at, by its name."""
    found = check_all(Servers(parse(redis_server.url)))
    assert [(name, each.errors) for name, each in found.items()] == [(f"127.0.0.1:{redis_server.port}", ())]


def test_watch(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """F2, I2: a server process is looked at once and what is found is said once; hard budgets wait until an error is gone."""
    watch = Watch(Servers(parse(own_redis.url)))
    watch.look({"a": "1"}, hard=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with own_redis.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        watch.look({"a": "1"}, hard=True)  # the same process
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="set it to noeviction"):
                watch.look({"a": "2"}, hard=True)
        watch.look({"a": "2"}, hard=False)
        assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
        client.config_set("maxmemory-policy", "noeviction")
    watch.look({"a": "3"}, hard=True)
    own_redis.stop()
    with pytest.raises(StoreUnavailable, match="cannot be looked at"):
        watch.look({"a": "4"}, hard=True)
