"""Entries in Redis against the journals of one host."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.shared_stores import options, shared_store

from tollkeeper.stores.redis.audit import Audit, audit
from tollkeeper.stores.redis.blocks import Block, Counted, pack, unpack
from tollkeeper.stores.redis.reader import connected
from tollkeeper.stores.redis.servers import Servers
from tollkeeper.stores.redis.url import parse
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, USD, a_hold, an_entry, usd


def compare(server: RedisServer, folder: Path, since_us: int = 0) -> Audit:
    shared = connected(Servers(parse(server.url)), options(folder))
    try:
        return audit(shared, folder, since_us)
    finally:
        shared.link.close()


async def test_all_of_them_agree(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: settlements, corrections, an estimate and its late settlement by two processes: each id counts once, nothing differs."""
    one, other = (shared_store(redis_server, tmp_path, usd(9 * USD)) for _ in range(2))
    for store, name in ((one, "one"), (other, "other")):
        await store.settle(an_entry(f"{name}/1"))
        await store.live()
    hold = a_hold("h/1")
    await one.reserve(hold)
    await one.expire(hold.deadline_us)
    await one.live()
    await other.settle(an_entry("h/1", 5))
    await other.live()
    assert await other.correct(corrected(an_entry("one/1"))) == "corrected"
    await other.live()
    found = compare(redis_server, tmp_path)
    assert (found.journals, found.entries, found.waiting, found.differences) == (2, 3, 0, [])
    await one.close()
    await other.close()


async def test_what_waits_is_no_difference(own_redis: RedisServer, tmp_path: Path) -> None:
    """What was booked while Redis was away waits; what is older than entries are kept is not looked for."""
    store = shared_store(own_redis, tmp_path)
    await store.settle(an_entry("x/1", at_us=AT_US - 40 * DAY_US))
    await store.live()
    own_redis.stop()
    await store.settle(an_entry("y/1"))
    await store.close()
    own_redis.start()
    found = compare(own_redis, tmp_path, AT_US - 30 * DAY_US)
    assert (found.entries, found.waiting, found.differences) == (0, 1, [])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("drop", "alpha/x/1: nothing, a journal has it"),
        ("change", "alpha/x/1: 100000001 nanos, 100 tokens, journals have other contents"),
        ("ahead", "row 2, row 1 is the file's last"),
    ],
)
async def test_differences(redis_server: RedisServer, tmp_path: Path, damage: str, says: str) -> None:
    """B7: an entry that is gone in Redis, one with other contents, and a journal that is an old copy are each found."""
    store = shared_store(redis_server, tmp_path)
    await store.settle(an_entry("x/1"))
    await store.live()
    await store.close()
    with redis_server.client() as client:
        (key,) = client.keys("*:entries:*")
        block = unpack(client.lindex(key, 0))
        client.delete(key)
        client.rpush(key, _changed(block, damage))
    found = [f"{each.key}: {each.stored}, {each.entries}" for each in compare(redis_server, tmp_path).differences]
    assert len(found) == 1
    assert says in found[0]


def _changed(block: Block, damage: str) -> bytes:
    ((seq, entry),) = block.rows
    if damage == "change":
        entry = an_entry("x/1", DIME + 1)
    if damage == "drop":
        entry = an_entry("y/1")
    rows = [Counted(seq, entry), *([Counted(seq + 1, an_entry("z/1"))] if damage == "ahead" else [])]
    return pack(block.applied_ms, block.journal, rows)
