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


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (3, None),
        (1, "alpha/x/1: 100000000 nanos, 100 tokens, a journal has its correction, revision 2"),
        (2, "alpha/x/1: 200000000 nanos, 100 tokens, a journal has its correction, revision 2"),
    ],
)
async def test_a_correction_that_is_gone(
    redis_server: RedisServer, tmp_path: Path, left: int, says: str | None
) -> None:
    """B7: where Redis has only what a correction has replaced, that is found, though a journal has that as well."""
    store = shared_store(redis_server, tmp_path)
    right = an_entry("x/1")
    await store.settle(right)
    for nanos in (2 * DIME, 3 * DIME):
        right = corrected(right, nanos)
        assert await store.correct(right) == "corrected"
    await store.live()
    await store.close()
    with redis_server.client() as client:
        (key,) = client.keys("*:entries:*")
        client.ltrim(key, 0, left - 1)
    found = [f"{each.key}: {each.stored}, {each.entries}" for each in compare(redis_server, tmp_path).differences]
    assert found == ([] if says is None else [says])


async def test_another_correction(redis_server: RedisServer, tmp_path: Path) -> None:
    """B7: a correction that no journal here has is found where one of ours was applied; a newer one is right."""
    store = shared_store(redis_server, tmp_path)
    await store.settle(an_entry("x/1"))
    await store.correct(ours := corrected(an_entry("x/1")))
    await store.live()
    await store.close()
    with redis_server.client() as client:
        (key,) = client.keys("*:entries:*")
        block = unpack(client.lindex(key, -1))
        seq, _ = block.rows[-1]
        client.rpop(key)
        rows = [Counted(seq, corrected(an_entry("x/1"), 5 * DIME))]
        client.rpush(key, pack(block.applied_ms, block.journal, rows))
        assert [each.entries for each in compare(redis_server, tmp_path).differences] == [
            "journals have another correction of this id"
        ]
        rows += [Counted(seq, corrected(ours))]
        client.rpush(key, pack(block.applied_ms, block.journal, rows))
        assert compare(redis_server, tmp_path).differences == []


async def test_a_correction_on_another_host(redis_server: RedisServer, tmp_path: Path) -> None:
    """B4: what was booked on one host and corrected on another agrees on both."""
    one, other = (shared_store(redis_server, tmp_path / name, usd(9 * USD)) for name in ("one", "other"))
    await one.settle(an_entry("x/1"))
    await one.live()
    assert await other.correct(corrected(an_entry("x/1"))) == "corrected"
    await other.live()
    assert [compare(redis_server, tmp_path / name).differences for name in ("one", "other")] == [[], []]
    await one.close()
    await other.close()
