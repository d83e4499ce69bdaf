"""How a shared ledger looks from one host."""

from __future__ import annotations

import os
from pathlib import Path

from tests.shared_stores import options, shared_store

from tollkeeper.stores.redis.reader import connected
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.survey import Survey, survey
from tollkeeper.stores.redis.url import parse
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import USD, a_hold, an_entry, usd


def look(server: RedisServer, folder: Path) -> Survey:
    servers = Servers(parse(server.url))
    shared = connected(servers, options(folder))
    try:
        return survey(servers, shared, folder)
    finally:
        shared.link.close()


async def test_gateways_journals_and_holds(redis_server: RedisServer, tmp_path: Path) -> None:
    """A gateway of this host and one of another: who lives, what each journal of this host has, what is held, nothing wrong."""
    one = shared_store(redis_server, tmp_path / "a", usd(USD))
    other = shared_store(redis_server, tmp_path / "b", usd(USD))
    for store, id in ((one, "x/1"), (other, "y/1")):
        await store.settle(an_entry(id))
        await store.live()
    await one.reserve(a_hold("z/1"))
    found = look(redis_server, tmp_path / "a")
    assert (found.place, list(found.servers)) == (redis_server.url, [f"127.0.0.1:{redis_server.port}"])
    assert [(member.state, member.alive) for member in found.members] == [("ready", True)] * 2
    assert [(each.rows, each.waiting, each.pid is not None) for each in found.journals] == [(1, 0, True)]
    assert (found.projects, found.holds, len(found.elsewhere)) == (1, 1, 1)
    assert {each.journal for each in found.members} == {found.journals[0].id, *found.elsewhere}
    assert found.attention == ["1 holds are past their deadline, and no gateway has booked them"] * (found.overdue > 0)
    await one.close()
    await other.close()
    assert look(redis_server, tmp_path / "a").members == []


async def test_what_needs_attention(redis_server: RedisServer, tmp_path: Path) -> None:
    """Rows that nobody brings, a file that is none, and a Redis that has nothing are told, each in a line."""
    store = shared_store(redis_server, tmp_path)
    await store.settle(an_entry("x/1"))
    await store.close()
    assert look(redis_server, tmp_path).attention == []
    with redis_server.client() as client:
        client.flushall()
    (tmp_path / "0123456789abcdef.sqlite").write_bytes(b"not a ledger")
    found = look(redis_server, tmp_path)
    assert found.epoch is None
    assert [each.waiting for each in found.journals if each.error is None] == [1]
    lines = found.attention
    assert len(lines) == 3
    assert "1 entries in the journals come back with the next gateway" in lines[0]
    assert any("journal 0123456789abcdef cannot be read" in line for line in lines)
    assert any("1 entries wait, and no process has it; start a gateway here" in line for line in lines)


async def test_a_gateway_that_says_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    """A process that has its journal and gives Redis no sign of life is told with its pid."""
    store = shared_store(redis_server, tmp_path)
    await store.settle(an_entry("x/1"))
    await store.close()
    journal = Journal.adopt(tmp_path)
    (line,) = look(redis_server, tmp_path).attention
    assert line == f"journal {journal.id}: its process {os.getpid()} gives Redis no sign of life"
    await journal.close()
