"""Several gateways' stores on one Redis, and what must be true of the sums that they share."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tollkeeper.clock import SystemClock
from tollkeeper.stores import SharedOptions
from tollkeeper.stores.opening import open_store
from tollkeeper.stores.redis.store import RedisStore
from tollkeeper.testing.samples import DIME, a_hold, an_entry
from tollkeeper.values import Budget, Entry, Hold, Scopes

WITHIN_S = 20.0
NOW_US = SystemClock().now_us()
"""When the calls of a test are made: Redis's own clock decides how long keys stay."""


def hold(id: str, nanos: int | None = DIME, **changed: Any) -> Hold:
    """A hold of now."""
    return a_hold(id, nanos, **({"at_us": NOW_US, "deadline_us": NOW_US + 660_000_000} | changed))


def entry(id: str, nanos: int | None = DIME, **changed: Any) -> Entry:
    """An entry of now."""
    return an_entry(id, nanos, **({"at_us": NOW_US} | changed))


def of(project: str) -> Scopes:
    return Scopes(project=project)


def store_at(url: str, folder: Path, budgets: Iterable[Budget] = ()) -> RedisStore:
    """A gateway's store, not yet connected."""
    store = open_store(url, budgets=budgets, shared=SharedOptions(clock=SystemClock(), journal=folder))
    assert isinstance(store, RedisStore)
    return store


@asynccontextmanager
async def gateways(
    urls: str | Iterable[str], folder: Path, budgets: Iterable[Budget], many: int = 3
) -> AsyncIterator[list[RedisStore]]:
    """So many stores, or one for each URL, each with a folder of journals of its own as on a host of its own; ready."""
    every = [urls] * many if isinstance(urls, str) else list(urls)
    budgets = tuple(budgets)
    stores = [store_at(url, folder / f"host{number}", budgets) for number, url in enumerate(every)]
    try:
        for store in stores:
            await soon(lambda store=store: store.state == "ready")  # type: ignore[misc]
        yield stores
    finally:
        for store in stores:
            await store.close()


async def soon(true: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Wait until it is true. Raises TimeoutError."""
    end = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("it did not become true")
        await asyncio.sleep(0.005)


_ALL_AT_ONCE = """
local found = {}
for _, name in ipairs(redis.call('KEYS', '*')) do
  if name:find('}:balance:') or name:find(':holds$') or name:find(':leases$') then
    found[#found + 1] = {name, redis.call('HGETALL', name)}
  end
end
return found
"""


def scan(client: Any) -> dict[str, Any]:
    """Every balance, hold and lease: key → its hash. Of one server at one instant; of a cluster, one server after the other."""
    nodes = client.get_nodes() if hasattr(client, "get_nodes") else [None]
    found = {}
    for node in nodes:
        answer = (
            client.eval(_ALL_AT_ONCE, 0) if node is None else client.get_redis_connection(node).eval(_ALL_AT_ONCE, 0)
        )
        for name, fields in answer:
            pairs = zip(fields[::2], fields[1::2], strict=True)
            found[name.decode()] = {field.decode(): value.decode() for field, value in pairs}
    return found


def sums(client: Any) -> dict[str, tuple[int, int]]:
    """(spent, held) of every balance, by its tag, shape and id. That it holds what its holds and leases say is checked."""
    found = scan(client)
    held: Counter[str] = Counter()
    for name, fields in found.items():
        tag = name.partition("}:")[0]
        for field, text in fields.items():
            if name.endswith(":holds"):
                words = text.partition("\n")[0].partition("&")[0].partition("#")[0].split()
                for balance, amount in zip(words[::2], words[1::2], strict=True):
                    held[balance] += int(amount)
            elif name.endswith(":leases"):
                held[f"{tag}}}:{field.partition(' ')[2]}"] += int(text)
    balances = {name: fields for name, fields in found.items() if "}:balance:" in name}
    for name in balances.keys() | held.keys():
        stands = int(balances.get(name, {}).get("held", 0))
        assert stands == held[name], f"{name} holds {stands}, its holds and leases {held[name]}"
    return {
        name.partition("{")[2].rpartition(":")[0].replace("}:balance", ""): (
            int(each.get("spent", 0)),
            int(each.get("held", 0)),
        )
        for name, each in balances.items()
    }
