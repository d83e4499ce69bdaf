"""One process's way to Redis without its threads, for tests of its steps: rows of a journal, and slots that are opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from tests.shared_stores import options

from tollkeeper.stores.redis.apply import Applier, Shared
from tollkeeper.stores.redis.reader import shared_of
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import parse
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.values import Entry


class FakeJournal:
    """As much of a journal as an Applier reads: entries, numbered from one."""

    def __init__(self, id: str, *entries: Entry) -> None:
        self.id, self.path = id.ljust(16, "0"), Path(id)
        self.placed = list(enumerate(entries, 1))

    @property
    def last(self) -> int:
        return len(self.placed)

    def book(self, *entries: Entry) -> list[tuple[int, Entry]]:
        """More of them; their rows."""
        new = list(enumerate(entries, self.last + 1))
        self.placed += new
        return new

    def rows(self, after: int, upto: int, most: int) -> list[tuple[int, Entry]]:
        return [row for row in self.placed if after < row[0] <= upto][:most]

    def projects(self) -> dict[str, int]:
        return {entry.scopes.project: seq for seq, entry in self.placed}

    def before(self) -> Iterator[Any]:
        return iter(())


def applier(shared: Shared, journal: FakeJournal) -> Applier:
    return Applier(shared, cast(Journal, journal))


@contextmanager
def shared(server: RedisServer, **more: Any) -> Iterator[Shared]:
    """What a process has in common, connected, with an epoch begun and the project alpha listed."""
    found = shared_of(Servers(parse(server.url)), options(Path(), **more), lambda state, reason: None, 10_000)
    found.link.start()
    try:
        assert found.link.wait(lambda state: state != "away", 5000)
        found.beat("epoch-1", "", "", 0)
        found.register(["alpha"])
        yield found
    finally:
        found.link.close()


def contents(server: RedisServer) -> dict[bytes, Any]:
    """All of Redis but the deadlines."""
    with server.client() as client:
        return {key: client.dump(key) for key in client.scan_iter()}
