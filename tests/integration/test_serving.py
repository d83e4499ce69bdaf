"""An application on a real socket: how it starts, and how it is taken away and comes back."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tollkeeper.testing.provider import FakeProvider, Stall
from tollkeeper.testing.serving import serving

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How much is the toll?"}]}


async def test_an_application_that_does_not_start() -> None:
    """`serving` raises where the lifespan fails, and leaves no port open."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    with pytest.raises(RuntimeError, match="did not start"):
        async with serving(app):
            pass


async def test_shut_and_reopen() -> None:
    """On command connections are refused, and the open ones dropped with what waits on them; then the same URL serves again."""
    stall = Stall()
    provider = FakeProvider([None, stall])
    place = serving(provider)
    async with place as url, aiohttp.ClientSession() as session:

        async def status() -> int:
            async with session.post(url + PATH, json=CHAT) as response:
                return response.status

        assert await status() == 200
        waiting = asyncio.ensure_future(status())
        await stall.reached.wait()
        await place.shut()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await waiting
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectorError, match="Connect call failed"):
                await status()
            await place.shut()  # it is
        await place.reopen()
        assert await status() == 200
        await place.reopen()  # it is
    assert len(provider.requests) == 3


async def test_shut_to_its_end() -> None:
    """A place that is shut when its block ends leaves nothing behind: its port is free."""
    place = serving(FakeProvider())
    async with place as url:
        await place.shut()
    async with serving(FakeProvider(), port=int(url.rpartition(":")[2])) as again:
        assert again == url
