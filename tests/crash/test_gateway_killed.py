"""The real gateway process, stopped and killed under load before a fake provider in another process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec
import pytest

import tollkeeper
from tollkeeper.stores.opening import open_reader
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.samples import booked
from tollkeeper.values import Entry

CLIENTS = 12
PATIENCE_S = 60
SETTINGS = """
store = "sqlite:///{folder}/ledger.sqlite"
[providers.openai]
base_url = "{provider}/v1"
api_key_env = "PROVIDER_KEY"
[providers.anthropic]
base_url = "{provider}/v1"
api_key_env = "PROVIDER_KEY"
[[budgets]]
scope = "project"
limit = "1000"
[[budgets]]
scope = "all"
measure = "requests"
window = "minute"
limit = 1000000
"""
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "How much is the toll over the bridge?"}],
    "max_tokens": 30,
}
ASKS = (
    ("/v1/chat/completions", ASK | {"model": "gpt-4o-mini", "stream": True}),
    ("/v1/chat/completions", ASK | {"model": "gpt-4o-mini"}),
    ("/v1/messages", ASK | {"model": "claude-haiku-4-5", "stream": True}),
    ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "toll"}),
)
ENDS = (b"data: [DONE]\n\n", b'"type":"message_stop"}\n\n')


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """A Python process and the URL that its first line names; killed at the end if it still runs."""
    source = Path(tollkeeper.__file__).parents[1]
    environ = os.environ | {"PYTHONPATH": f"{source}", "PROVIDER_KEY": "sk-provider"}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, env=environ
    )
    try:
        assert started.stdout is not None
        first = (await started.stdout.readline()).decode()
        url = re.search(r"http://[0-9.]+:[0-9]+", first)
        assert url is not None, first
        yield started, url[0]
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


@dataclass
class Load:
    """Clients that ask until the gateway is gone, and what they got."""

    url: str
    stop_after: int
    whole: list[str] = field(default_factory=list)  #: request ids of replies received to their end
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, session: aiohttp.ClientSession, random: Random, number: int) -> None:
        for turn in count():
            path, body = random.choice(ASKS)
            headers = {"x-tollkeeper-project": f"p{number % 3}", "x-tollkeeper-session": f"{number}-{turn}"}
            try:
                async with session.post(self.url + path, json=body, headers=headers) as reply:
                    data = await reply.read()
            except (aiohttp.ClientError, OSError):
                return
            if reply.status == 503:
                return
            assert reply.status == 200, data
            if "stream" not in body or data.endswith(ENDS):
                self.whole.append(reply.headers["x-tollkeeper-request-id"])
            if len(self.whole) >= self.stop_after:
                self.enough.set()

    async def run(self, gateway: Process, sign: signal.Signals, seed: int) -> None:
        """Load the gateway, send it a signal in the midst of it, and wait until everybody has an answer or none."""
        async with aiohttp.ClientSession() as session:
            clients = [asyncio.create_task(self.client(session, Random(f"{seed}-{n}"), n)) for n in range(CLIENTS)]
            await self.enough.wait()
            gateway.send_signal(sign)
            await asyncio.gather(gateway.wait(), *clients)


async def billed(provider: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(provider + "/bill") as reply:
        bill: list[dict[str, Any]] = msgspec.json.decode(await reply.read())
        return bill


def output(bill: list[dict[str, Any]]) -> int:
    return sum(each["usage"].get("output", 0) for each in bill)


async def play(folder: Path, provider: str, sign: signal.Signals, seed: int) -> tuple[Load, int | None]:
    """One life of a gateway on this folder's ledger."""
    settings = folder / "tollkeeper.toml"
    settings.write_text(SETTINGS.format(folder=folder, provider=provider))
    async with process("tollkeeper", "serve", "--port", "0", "--config", str(settings)) as (gateway, url):
        load = Load(url, Random(seed).randint(1, 120))
        await load.run(gateway, sign, seed)
        return load, gateway.returncode


async def read(folder: Path) -> list[Entry]:
    """What a reader finds."""
    reader = open_reader(f"sqlite:///{folder}/ledger.sqlite")
    entries = await booked(reader)
    assert await reader.verify() == []
    await reader.close()
    return entries


async def opened(folder: Path) -> list[Entry]:
    """What the next owner has when it has started."""
    store = SqliteStore(folder / "ledger.sqlite")
    assert await store.live() == []
    assert store.query("holds") == []
    await store.close()
    return await read(folder)


@pytest.fixture
async def provider() -> AsyncIterator[str]:
    async with process("tollkeeper.testing.provider", "--port", "0", "--pause-ms", "2") as (_, url):
        yield url


async def test_sigterm_under_load(tmp_path: Path, provider: str, rounds: int) -> None:
    """B1: SIGTERM under load loses nothing: every call billed is booked exactly, once, and every reply begun was finished."""
    for seed in range((rounds + 2) // 3):
        async with asyncio.timeout(PATIENCE_S):
            load, code = await play(tmp_path, provider, signal.SIGTERM, seed)
        assert code == 0
        entries, bill = await read(tmp_path), await billed(provider)
        assert {(entry.outcome, entry.charge.status) for entry in entries} == {("ok", "priced")}
        assert {f"{id}/1" for id in load.whole} <= {entry.id for entry in entries}
        assert len(entries) == len({entry.id for entry in entries}) == len(bill)
        assert sum(entry.usage.output for entry in entries) == output(bill)


async def test_sigkill_under_load(tmp_path: Path, provider: str, rounds: int) -> None:
    """B1, C2: after SIGKILL each reply received whole is booked exactly, calls in flight are estimated, and the bill is covered."""
    whole: set[str] = set()
    for seed in range(rounds):
        async with asyncio.timeout(PATIENCE_S):
            load, code = await play(tmp_path, provider, signal.SIGKILL, seed + 100)
        assert code == -signal.SIGKILL
        whole |= {f"{id}/1" for id in load.whole}
        bill = await billed(provider)
        exact = {entry.id for entry in await read(tmp_path) if entry.outcome == "ok"}
        assert whole <= exact, f"seed {seed}: acknowledged and lost"
    entries = await opened(tmp_path)
    assert max(Counter(entry.id for entry in entries).values()) == 1
    estimated = [entry for entry in entries if entry.outcome == "expired"]
    assert len(estimated) > 0
    assert {entry.charge.status for entry in estimated} == {"estimated"}
    assert len(bill) <= len(entries)
    assert output(bill) <= sum(entry.usage.output for entry in entries)
    booked = Counter(entry.dialect for entry in entries)
    assert all(booked[dialect] >= times for dialect, times in Counter(each["dialect"] for each in bill).items())
