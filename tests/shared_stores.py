"""Redis stores for tests: a manual clock's instants, while keys live by Redis's own clock."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tollkeeper.clock import Clock, SystemClock
from tollkeeper.stores import Retention, SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.clock import START_US
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.values import Budget

KEPT = Retention(hour_s=None, day_s=None, month_s=None, entries_s=None)


class Standing(SystemClock):
    """The wall clock stands at the start of the tests' time, or where a test sets it; durations go on."""

    us = START_US

    def now_us(self) -> int:
        return self.us


def options(folder: Path, clock: Clock | None = None, **more: Any) -> SharedOptions:
    """Options of a store whose journals are in the folder; nothing outlives its retention."""
    given = {"retention": KEPT, "ahead_s": (SystemClock().now_us() - START_US) // 10**6, **more}
    return SharedOptions(clock=clock or Standing(), journal=folder, **given)


def shared_store(server: RedisServer, folder: Path, *budgets: Budget, **more: Any) -> RedisStore:
    """One process's store; several of one folder are several processes of one host."""
    scope_cap = more.pop("scope_cap", 10_000)
    return cast(
        RedisStore,
        open_store(server.url, budgets=_all(budgets), scope_cap=scope_cap, shared=options(folder, **more)),
    )


def _all(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    return tuple(budgets)
