"""Dropping everything under a prefix, so that the journals fill it again.

Gateways that live go on: they are asked to stop applying first, and begin anew when all is gone. Ended half-way it leaves a
ledger that lacks something, and running it again finishes. Blocks: for threads.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

from tollkeeper.errors import StoreOwned, StoreUnavailable
from tollkeeper.stores.redis.apply import Applier, Shared
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.flush import STOPPED
from tollkeeper.stores.redis.keys import FOREVER_S
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.survey import journals_of, members
from tollkeeper.stores.sqlite.journal import Journal, orphans

#: Seconds that gateways stand still without another word from us.
STILL_S: Final = 30
#: How often it is looked whether they do, and for how long.
LOOKS_MAX: Final = 150
LOOK_MS: Final = 100
_SCAN: Final = 1_000

Told = Callable[[str, int], None]
"""What is under way ("stop", "drop", "fill"), and how much of it is done."""


def rebuild(servers: Servers, shared: Shared, folder: Path, told: Told = lambda what, done: None) -> None:
    """Drop all that there is, and apply the journals here that no process has. Raises StoreUnavailable.

    Who asks has to know that every journal that counts is here or has a gateway that lives (`survey`).
    """
    link, keys = shared.link, shared.keys
    try:
        _stop(shared, told)
        kept = {keys.epoch.encode(), keys.members.encode(), keys.rebuild.encode()}
        for node in servers.nodes():
            with node.connect() as client:
                _drop(client, f"{keys.prefix}:{{*}}:*", kept, lambda: _hold(shared), told)
    except RedisError as error:
        raise StoreUnavailable(f"store: Redis does not answer ({error}); run it again") from None
    finally:  # also when it is stopped: who lives goes on, with what is there
        link.run(Ask(("SET", keys.epoch, secrets.token_hex(8), "EXAT", FOREVER_S)), Ask(("DEL", keys.rebuild)))
    for number, path in enumerate(orphans(folder), 1):
        try:
            journal = Journal.open(path)
        except StoreOwned:  # a gateway was quicker
            continue
        try:
            Applier(shared, journal).catch_up()
        finally:
            asyncio.run(journal.close())
        told("fill", number)
    for _ in range(LOOKS_MAX):  # gateways bring back what is in theirs
        if not any(each.pid is not None and each.waiting for each in journals_of(shared, folder)):
            break
        Event().wait(LOOK_MS / 1000)


def _hold(shared: Shared) -> None:
    """Have gateways stand still for a while longer."""
    shared.link.run(Ask(("SET", shared.keys.rebuild, "1", "EX", STILL_S)))


def _stop(shared: Shared, told: Told) -> None:
    """Wait until every gateway that lives stands still: another epoch makes it begin anew, and it may not yet."""
    _hold(shared)
    shared.link.run(Ask(("SET", shared.keys.epoch, secrets.token_hex(8), "EXAT", FOREVER_S)))
    for _ in range(LOOKS_MAX):
        going = [each.journal for each in members(shared) if each.alive and each.state != STOPPED]
        if not going:
            return
        told("stop", len(going))
        Event().wait(LOOK_MS / 1000)
    raise StoreUnavailable(f"store: these gateways do not stand still: {', '.join(going)}; stop them, and run it again")


def _drop(client: Redis, pattern: str, kept: set[bytes], hold: Callable[[], None], told: Told) -> None:
    """Every key of one server, those of a slot together."""
    cursor, dropped = -1, 0
    while cursor:
        cursor, found = client.scan(max(0, cursor), match=pattern, count=_SCAN)
        by_tag: dict[bytes, list[bytes]] = {}
        for key in map(bytes, found):  # type: ignore[arg-type]  # our clients decode nothing
            if key not in kept:
                by_tag.setdefault(key.partition(b"{")[2].partition(b"}")[0], []).append(key)
        for some in by_tag.values():
            dropped += client.unlink(*some)
        hold()
        told("drop", dropped)
