"""Two processes' stores on one Redis: one account, whoever books, corrects, lets expire or dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.shared_stores import shared_store

from tollkeeper.errors import Conflict
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.redis_server import RedisServer
from tollkeeper.testing.samples import DIME, USD, a_hold, an_entry, standing, usd


async def test_what_the_other_booked(redis_server: RedisServer, tmp_path: Path) -> None:
    """B2: an id counts once whoever books it, one after the other or at once; other contents are a conflict, told."""
    one, other = (shared_store(redis_server, tmp_path / name, usd(100 * USD)) for name in "ab")
    assert await one.settle(an_entry("x/1")) == "booked"
    await one._current()
    assert await other.settle(an_entry("x/1")) == "repeated"
    with pytest.raises(Conflict):
        await other.settle(an_entry("x/1", USD))
    await asyncio.gather(*(store.settle(an_entry(f"{number}/1")) for number in range(20) for store in (one, other)))
    for store in (one, other):
        await store._current()
    assert (await standing(one)).spent == 21 * DIME
    assert await one.verify() == await other.verify() == []
    for store in (one, other):
        await store.close()


async def test_what_the_other_corrects(redis_server: RedisServer, tmp_path: Path) -> None:
    """An entry of one process is corrected by another, once; a second one that was computed from the first entry is late."""
    one, other = (shared_store(redis_server, tmp_path / name) for name in "ab")
    await one.settle(an_entry("x/1"))
    await one._current()
    right = corrected(an_entry("x/1"))
    assert await other.correct(right) == "corrected"
    await other._current()
    assert await one.correct(right) == "repeated"
    assert await one.verify() == []
    for store in (one, other):
        await store.close()


async def test_what_the_other_lets_expire(redis_server: RedisServer, tmp_path: Path) -> None:
    """C2: a hold of a process that says nothing is booked by another at its estimate; its late settlement counts instead."""
    one, other = (shared_store(redis_server, tmp_path / name, usd(USD)) for name in "ab")
    hold = a_hold("h/1")
    await one.reserve(hold)
    await other._current()
    assert await other.expire(hold.deadline_us + 10_000_000) == 1
    await other._current()
    assert await one.live() == []
    assert [(seen.spent, seen.held) for seen in (await standing(one), await standing(other))] == [(DIME, 0)] * 2
    await one.settle(an_entry("h/1", 5))
    await one._current()
    assert (await standing(other)).spent == 5
    assert await other.verify() == []
    for store in (one, other):
        await store.close()
