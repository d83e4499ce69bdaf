"""A master, its replica and the Sentinels that promote it, as real processes on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from tollkeeper.testing.redis_server import RedisServer, until

NAME: Final = "tollkeeper"
"""What the Sentinels call the master."""


class SentinelServer(RedisServer):
    """One Sentinel: a redis-server in that mode, with few of the directives."""

    defaults: ClassVar[Mapping[str, str]] = {"bind": "127.0.0.1", "daemonize": "no"}
    arguments = ("--sentinel",)


class Sentinels:
    """Two servers, `first` the master to begin with, and `count` Sentinels, of which a majority decides.

    A master that does not answer for `down_after_ms` is replaced. `config` is added to both servers'.
    """

    def __init__(
        self,
        folder: Path | str,
        count: int = 3,
        *,
        down_after_ms: int = 500,
        config: Mapping[str, str] | None = None,
        executable: str | None = None,
    ) -> None:
        folder = Path(folder)
        self.first = RedisServer(folder / "first", config=config, executable=executable)
        self.second = RedisServer(folder / "second", config=config, executable=executable)
        told = {
            f"sentinel monitor {NAME}": f"127.0.0.1 {self.first.port} {count // 2 + 1}",
            f"sentinel down-after-milliseconds {NAME}": str(down_after_ms),
            f"sentinel failover-timeout {NAME}": "5000",
        }
        if password := self.first.config.get("requirepass"):
            told[f"sentinel auth-pass {NAME}"] = password
        self.sentinels = [
            SentinelServer(folder / f"sentinel-{index}", config=told, executable=executable) for index in range(count)
        ]

    def __enter__(self) -> Self:
        try:
            self.first.start()
            self.second.start().replica_of(self.first)
            for sentinel in self.sentinels:
                sentinel.start()
            until(self._knows_all, "Sentinels that know each other and the replica")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill them all."""
        for server in (*self.sentinels, self.first, self.second):
            server.kill()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the Sentinels are asked."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    @property
    def master(self) -> RedisServer:
        """Whom the Sentinels call the master now, as soon as one of them knows; the first that does is believed."""
        found: list[int] = []

        def known() -> bool:
            with suppress(RedisError):
                found.append(self._directory().discover_master(NAME)[1])
            return bool(found)

        until(known, "a master that a Sentinel knows")
        return self.first if found[0] == self.first.port else self.second

    def client(self, **options: Any) -> redis.Redis:
        """A client of the master, whoever that is at each connection; it tries nothing twice."""
        tries_once: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
        password = self.first.config.get("requirepass")
        client: redis.Redis = self._directory().master_for(NAME, **{"password": password, **tries_once, **options})
        return client

    def _directory(self) -> Any:
        untyped: Any = Sentinel
        return untyped(self.addresses, socket_timeout=1)

    def fail_over(self) -> RedisServer:
        """Swap master and replica though both are well, as for maintenance; returns the new master when it is one."""
        before = self.master
        with self.sentinels[0].client() as client:
            until(lambda: _accepts(client), "a replica that can be promoted")
        until(lambda: all(self._master_of(sentinel) != before.port for sentinel in self.sentinels), "another master")
        return self.master

    def _knows_all(self) -> bool:
        return all(self._sees(sentinel) for sentinel in self.sentinels)

    def _sees(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            told = client.sentinel_master(NAME)
            return (told["num-slaves"], told["num-other-sentinels"]) == (1, len(self.sentinels) - 1)

    def _master_of(self, sentinel: RedisServer) -> int:
        with sentinel.client() as client:
            return int(client.sentinel_get_master_addr_by_name(NAME)[1])


def _accepts(sentinel: Any) -> bool:
    """Whether a sentinel begins to swap now: it does not before it has heard from a replica lately."""
    try:
        sentinel.execute_command("SENTINEL FAILOVER", NAME)
    except ResponseError:
        return False
    return True
