"""Many clients at once: budgets hold exactly, and every call is booked once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.gateway import ASKS, CHAT, budget, gateway, until

from tollkeeper.testing.provider import Cut, FakeProvider, Refuse, Stall

PRICES = '[[price]]\nmodel = "dime"\ninput = "0"\noutput = "1000"\n'  # a hundred tokens are ten cents
DIME = CHAT | {"model": "openai/dime", "max_tokens": 100}


@pytest.mark.parametrize(
    "limits", [budget("project", "1"), budget("project", 10, measure="requests")], ids=["usd", "requests"]
)
async def test_exactly_what_the_budget_pays_for(tmp_path: Path, limits: str) -> None:
    """C1: of 100 calls of $0.10 at once on a budget of $1, and of 100 on one of 10 requests, exactly 10 are admitted."""
    (tmp_path / "prices.toml").write_text(PRICES)
    stall = Stall()
    async with gateway(
        tmp_path,
        FakeProvider(always=stall),
        'prices = "prices.toml"\n' + limits,
        store=f"sqlite:///{tmp_path}/l.sqlite",
    ) as gw:
        found: list[int] = []

        async def one() -> None:
            async with gw.post("/v1/chat/completions", DIME) as response:
                await response.read()
                found.append(response.status)

        asked = [asyncio.ensure_future(one()) for _ in range(100)]
        await until(lambda: len(found) == 90)  # the others are held at the provider, which has stalled
        assert found == [402] * 90
        assert len(await gw.live()) == 10
        stall.release.set()
        await asyncio.gather(*asked)
        await until(lambda: gw.booked(10))
        spent = sum(entry.charge.amount_nanos or 0 for entry in await gw.entries())
    assert found[90:] == [200] * 10
    assert len(gw.fake.requests) == 10
    assert 0 < spent <= 1_000_000_000


async def test_everything_at_once(tmp_path: Path) -> None:
    """B2: 150 calls of every kind at once, some of them failing: one entry each, the good ones as the provider billed."""
    script = [None, None, Refuse(500), None, Cut(2)] * 40
    async with gateway(
        tmp_path, FakeProvider(script), budget("project", "1000"), store=f"sqlite:///{tmp_path}/l.sqlite"
    ) as gw:

        async def one(number: int) -> None:
            path, body = ASKS[number % len(ASKS)]
            stream = {"stream": True} if number % 2 and "messages" in body else {}
            async with gw.post(path, body | stream, {"x-tollkeeper-agent": f"a{number % 7}"}) as response:
                await response.read()

        await asyncio.gather(*(one(number) for number in range(150)))
        await until(lambda: gw.booked(150))
        entries = await gw.entries()
    assert len({entry.call for entry in entries}) == len(entries) == len(gw.fake.requests) == 150
    good = [entry for entry in entries if entry.outcome == "ok"]
    billed = [each for each in gw.fake.bill if each.complete]
    assert sorted(repr(entry.usage) for entry in good) == sorted(repr(each.usage) for each in billed)
    assert sum(entry.outcome == "error" for entry in entries) == 30
    cut = [entry for entry in entries if entry.outcome == "cut"]
    owed = [each for each in gw.fake.bill if not each.complete]
    assert len(cut) == len(owed) > 0
    assert sum(entry.usage.tokens for entry in cut) >= sum(each.usage.tokens for each in owed)


async def test_expect_continue(tmp_path: Path) -> None:
    """A client that asks before it sends its body is told to go on, or refused before it sends."""
    async with gateway(tmp_path, settings="body_limit = 2000\n") as gw:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        body = b'{"model": "text-embedding-3-small", "input": "toll"}'
        reader, writer = await gw.connect()
        writer.write(head % len(body))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await writer.wait_closed()
        assert (await gw.raw(head % 2001))[0] == 413
        await gw.entry()
