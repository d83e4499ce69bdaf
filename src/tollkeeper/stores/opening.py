"""A URL → the store that it names, owned or only read. What a store needs is imported when it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tollkeeper.errors import ConfigError
from tollkeeper.stores import Reader, SharedOptions, Store
from tollkeeper.stores.redis.url import is_redis, parse
from tollkeeper.values import Budget


def open_store(
    url: str, *, budgets: Iterable[Budget] | None = (), scope_cap: int = 10_000, shared: SharedOptions | None = None
) -> Store:
    """The store of a URL, owned by this process. Raises ConfigError, StoreOwned, StoreCorrupt, StoreUnavailable.

    Without budgets (None) it keeps the balances that it has, and limits nothing. A shared store (`redis://…`) needs `shared`;
    this process owns a journal of it then.
    """
    if url == "memory:":
        from tollkeeper.stores.memory import MemoryStore

        return MemoryStore(budgets or (), scope_cap=scope_cap)
    if is_redis(url):
        from tollkeeper.stores.redis.servers import Servers
        from tollkeeper.stores.redis.store import RedisStore

        return RedisStore(Servers(parse(url)), _given(shared), budgets, scope_cap=scope_cap)
    from tollkeeper.stores.sqlite.store import SqliteStore

    return SqliteStore(sqlite_path(url), budgets, scope_cap=scope_cap)


def open_reader(url: str, *, shared: SharedOptions | None = None) -> Reader:
    """A read-only view of a ledger, also while its owner runs. Raises ConfigError, StoreUnavailable, StoreCorrupt."""
    if is_redis(url):
        from tollkeeper.stores.redis.reader import RedisReader
        from tollkeeper.stores.redis.servers import Servers

        return RedisReader.open(Servers(parse(url)), _given(shared))
    from tollkeeper.stores.sqlite.reader import SqliteReader

    return SqliteReader(sqlite_path(url))


def examine(url: str, budgets: Iterable[Budget]) -> str | None:
    """Look at a shared store before a gateway starts on it: why it does not answer now; None: it does, or is not shared.

    Raises ConfigError where a hard budget would not hold in it.
    """
    if not is_redis(url):
        return None
    from redis.exceptions import RedisError

    from tollkeeper.stores.redis.check import check_all
    from tollkeeper.stores.redis.servers import Servers

    try:
        errors = [error for found in check_all(Servers(parse(url))).values() for error in found.errors]
    except RedisError as error:
        return " ".join(str(error).split()) or type(error).__name__
    if errors and any(budget.hard and budget.limit is not None for budget in budgets):
        raise ConfigError(f"store: {errors[0]}")
    return None


def check_url(url: str) -> None:
    """Raises ConfigError for a URL that names no store."""
    if is_redis(url):
        parse(url)
    elif url != "memory:":
        sqlite_path(url)


def _given(shared: SharedOptions | None) -> SharedOptions:
    if shared is None:
        raise ConfigError(
            "store: a Redis store needs a folder for its journal; open it by configuration, or pass shared=…"
        )
    return shared


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:///` URL: three slashes for a relative path, four for an absolute one."""
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        raise ConfigError("store: expected 'sqlite:///path/to/file', 'redis://host:6379/0' or 'memory:'")
    return Path(url.removeprefix("sqlite:///"))
