"""D1: clients that leave. One entry, no hold, and tokens for at least what was delivered."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from tests.gateway import ASKS, STREAMS, Gateway, budget, gateway, pieces, request, until

from tollkeeper.testing.provider import Cut, Endless, FakeProvider, Stall

EACH = pytest.mark.parametrize(("path", "body"), STREAMS, ids=[path for path, _ in STREAMS])
AFTER = pytest.mark.parametrize("after", [0, 1, 10, "n"])


async def leave(gw: Gateway, path: str, body: dict[str, Any], stall: Stall, *, events: int = 0) -> None:
    """Ask, read so many events, leave when the provider has stalled."""
    reader, writer = await gw.connect()
    writer.write(request(json.dumps(body).encode(), path))
    read = b""
    while read.count(b"data: ") < events:
        read += await reader.read(1 << 16)
    await stall.reached.wait()
    writer.transport.abort()  # type: ignore[attr-defined]


def stalled(path: str, body: dict[str, Any], after: int | str) -> tuple[Stall, int]:
    """A provider that stalls after so many events, "n": before its end marker; and how many the client can see."""
    events = pieces(path, body)
    count = after if isinstance(after, int) else len(events) - 1
    return Stall(after=count), sum(b'"choices":[]' not in event for event in events[:count])


@EACH
@AFTER
async def test_drained(tmp_path: Path, path: str, body: dict[str, Any], after: int | str) -> None:
    """D1: with on_disconnect = "drain" the rest is read in the background: the entry is exact and says that it left."""
    stall, events = stalled(path, body, after)
    async with gateway(tmp_path, FakeProvider(always=stall), budget("project", "1000")) as gw:
        await leave(gw, path, body, stall, events=events)
        await until(lambda: gw.app.gate.draining == 1)
        assert len(await gw.live()) == 1
        stall.release.set()
        entry = await gw.entry()
        assert gw.app.gate.draining == 0
    (billed,) = gw.fake.bill
    assert billed.complete
    assert (entry.outcome, entry.usage, entry.charge.status) == ("left", billed.usage, "priced")


@EACH
@AFTER
async def test_cancelled(tmp_path: Path, path: str, body: dict[str, Any], after: int | str) -> None:
    """D1: with on_disconnect = "cancel" the provider is left at once and an upper bound is booked, marked so.

    After "n" its usage was told already: that is booked. A response tells it with its end alone.
    """
    stall, events = stalled(path, body, after)
    async with gateway(tmp_path, FakeProvider(always=stall), 'on_disconnect = "cancel"\n') as gw:
        await leave(gw, path, body, stall, events=events)
        entry = await gw.entry()
        assert gw.app.gate.draining == 0
    (billed,) = gw.fake.bill
    told = after == "n" and "responses" not in path
    assert not billed.complete
    assert (entry.outcome, entry.charge.status) == ("left", "priced" if told else "estimated")
    assert entry.usage.output >= billed.usage.output
    assert entry.usage.input_tokens >= billed.usage.input_tokens


@pytest.mark.parametrize("policy", ["drain", "cancel"])
@pytest.mark.parametrize(("path", "body"), ASKS, ids=[path for path, _ in ASKS])
async def test_whole_replies(tmp_path: Path, path: str, body: dict[str, Any], policy: str) -> None:
    """D1: a client that leaves before a reply that is not streamed: one entry too, exact if drained."""
    stall = Stall(after=0)
    async with gateway(tmp_path, FakeProvider(always=stall), f'on_disconnect = "{policy}"\n') as gw:
        await leave(gw, path, body, stall)
        if policy == "drain":
            stall.release.set()
        entry = await gw.entry()
    expected = "priced" if policy == "drain" else "estimated"
    assert entry.charge.status == expected
    assert entry.usage.tokens >= gw.fake.bill[0].usage.tokens


async def test_drains_are_limited_in_number(tmp_path: Path) -> None:
    """D1: past drain_limit a reply is cut off at once and booked at its upper bound."""
    path, body = STREAMS[0]
    stalls = [Stall(after=4) for _ in range(4)]
    async with gateway(tmp_path, FakeProvider(stalls), "drain_limit = 2\n") as gw:
        for stall in stalls:
            await leave(gw, path, body, stall, events=4)
            await until(lambda: gw.app.gate.draining or gw.booked(1))
        await until(lambda: counted(gw, 2))
        assert gw.app.gate.draining == 2
        for stall in stalls:
            stall.release.set()
        await until(lambda: gw.booked(4))
        statuses = [entry.charge.status for entry in await gw.entries()]
    assert sorted(statuses) == ["estimated", "estimated", "priced", "priced"]


async def test_no_drain_at_all(tmp_path: Path) -> None:
    """D1: drain_limit = 0 is zero: every reply is cut off when its client leaves."""
    path, body = STREAMS[0]
    stall = Stall(after=4)
    async with gateway(tmp_path, FakeProvider(always=stall), "drain_limit = 0\n") as gw:
        await leave(gw, path, body, stall, events=4)
        assert (await gw.entry()).charge.status == "estimated"


async def test_drains_are_limited_in_time(tmp_path: Path) -> None:
    """D1: a stream that never ends is drained for drain_seconds, then booked at its upper bound."""
    path, body = STREAMS[0]
    async with gateway(tmp_path, FakeProvider(always=Endless()), "drain_seconds = 0.1\n") as gw:
        reader, writer = await gw.connect()
        writer.write(request(json.dumps(body).encode(), path))
        assert b"data: " in await reader.readuntil(b"data: ")
        writer.transport.abort()  # type: ignore[attr-defined]
        entry = await gw.entry()
        assert gw.app.gate.draining == 0
    assert (entry.outcome, entry.charge.status) == ("left", "estimated")


@pytest.mark.parametrize(("fault", "outcome", "status"), [(None, "ok", "priced"), (Cut(5), "cut", "estimated")])
async def test_leaving_while_the_ledger_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Cut | None, outcome: str, status: str
) -> None:
    """D1: a client that leaves while its call is booked changes nothing about it, whole or cut; no drain is counted."""
    path, body = STREAMS[0]
    written, go_on = asyncio.Event(), asyncio.Event()
    async with gateway(tmp_path, FakeProvider(always=fault)) as gw:
        settle = gw.app.gate.store.settle

        async def slow(entry: Any) -> Any:
            written.set()
            await go_on.wait()
            return await settle(entry)

        monkeypatch.setattr(gw.app.gate.store, "settle", slow)
        _, writer = await gw.connect()
        writer.write(request(json.dumps(body).encode(), path))
        await written.wait()
        writer.transport.abort()  # type: ignore[attr-defined]
        for _ in range(20):  # the gateway sees it go
            await asyncio.sleep(0)
        go_on.set()
        entry = await gw.entry()
        gc.collect()  # a task's exception that nobody took is told when the task goes
        assert gw.failures == []
        assert gw.app.gate.draining == 0
    assert (entry.outcome, entry.charge.status) == (outcome, status)


async def test_end_of_the_reply_follows_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: the end marker is held back until the ledger has the entry."""
    path, body = STREAMS[0]
    written, go_on = asyncio.Event(), asyncio.Event()
    async with gateway(tmp_path) as gw:
        settle = gw.app.gate.store.settle

        async def slow(entry: Any) -> Any:
            written.set()
            await go_on.wait()
            return await settle(entry)

        monkeypatch.setattr(gw.app.gate.store, "settle", slow)
        reader, writer = await gw.connect()
        writer.write(request(json.dumps(body).encode(), path))
        await written.wait()
        read = asyncio.ensure_future(reader.read())
        await asyncio.sleep(0)
        assert b"[DONE]" not in bytes(reader._buffer)  # type: ignore[attr-defined]
        go_on.set()
        assert b"[DONE]" in await read
        writer.close()
        await gw.entry()


async def counted(gw: Gateway, count: int) -> bool:
    return len(await gw.entries()) >= count
