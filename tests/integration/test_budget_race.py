"""Many calls at once on one budget, through the real gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from tests.gateway import CHAT, Gateway, gateway

from tollkeeper.testing.provider import FakeProvider, Stall

RUNS = 20
PRICES = '[[price]]\nmodel = "toll"\ninput = "0"\noutput = "0"\nrequest = "0.10"\n'
SETTINGS = """
prices = "prices.toml"
[[budgets]]
scope = "session"
window = "total"
limit = "1"
[routes]
toll = "openai/toll"
"""


async def race(gateway: Gateway, session: aiohttp.ClientSession, run: int, released: asyncio.Event) -> list[int]:
    """200 calls of one session at once; what was admitted is answered when all others have been refused."""
    refused = 0

    async def call() -> int:
        nonlocal refused
        headers = {"x-tollkeeper-session": f"run{run}"}
        async with session.post(
            f"{gateway.url}/v1/chat/completions", json=CHAT | {"model": "toll", "max_tokens": 5}, headers=headers
        ) as reply:
            body = await reply.json()
            if reply.status == 402:
                assert "limit $1" in body["error"]["message"]
                refused += 1
                if refused == 190:
                    released.set()
            return reply.status

    return await asyncio.gather(*(call() for _ in range(200)))


async def test_two_hundred_calls_on_one_dollar(tmp_path: Path) -> None:
    """C1: of 200 parallel calls of $0.10 on a budget of $1 exactly 10 are admitted, reach the provider and are booked; 20 of 20."""
    (tmp_path / "prices.toml").write_text(PRICES)
    released = asyncio.Event()
    fake = FakeProvider(always=Stall(release=released))
    async with (
        gateway(tmp_path, fake, SETTINGS, store="sqlite:///ledger.sqlite") as found,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.timeout(120),
    ):
        for run in range(RUNS):
            released.clear()
            statuses = await race(found, session, run, released)
            assert (statuses.count(200), statuses.count(402)) == (10, 190), f"run {run}"
        entries = await found.entries()
        assert len(fake.bill) == len(entries) == 10 * RUNS
        assert {entry.charge.amount_nanos for entry in entries} == {100_000_000}
