"""Any ASGI application on a real socket, inside the event loop that calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TRANSPORT = "tollkeeper.transport"
"""Scope extension: the connection itself, so that a fake provider can break it where HTTP has no word for that."""


class _Protocol(HttpToolsProtocol):
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # type: ignore[dict-item]


class Served(AbstractAsyncContextManager[str]):
    """What `serving` gives: a context that yields the URL, and a server that can be taken away in the middle of it."""

    def __init__(self, app: App, host: str, port: int, grace_s: float, options: dict[str, Any]) -> None:
        self._app, self._host, self._port, self._grace_s = app, host, port, grace_s
        self._options = {
            "http": _Protocol, "log_config": None, "access_log": False, "ws": "none", "server_header": False, **options,
        }  # fmt: skip
        self._listener: socket.socket | None = None
        self._server: uvicorn.Server | None = None

    async def __aenter__(self) -> str:
        listener = self._listener = self._bound()
        await self.reopen()
        host, self._port = listener.getsockname()[:2]
        return f"http://[{host}]:{self._port}" if ":" in self._host else f"http://{host}:{self._port}"

    async def __aexit__(self, *why: object) -> None:
        if self._server is not None:
            await _stop(self._server, self._grace_s)
        if self._listener is not None:
            self._listener.close()

    async def shut(self) -> None:
        """From now on connections are refused; those that are open are dropped, and so are the requests on them."""
        server, self._server = self._server, None
        if server is None:
            return
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await _stop(server, self._grace_s)
        self._listener = self._bound()  # but not listening: the port stays ours

    async def reopen(self) -> None:
        """Serve again, at the same URL, from a new start of the application."""
        if self._server is not None:
            return
        assert self._listener is not None
        config = uvicorn.Config(self._app, **self._options)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        try:
            await server.startup(sockets=[self._listener])
        except SystemExit:  # uvicorn's way to say that the lifespan failed
            self._listener.close()
            raise RuntimeError("the application did not start; the log of uvicorn.error says why") from None
        self._server = server

    def _bound(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # asyncio sets it on sockets that were made for TCP by number, which this one was not; connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((self._host, self._port))
        except BaseException:
            listener.close()
            raise
        return listener


def serving(app: App, host: str = "127.0.0.1", port: int = 0, *, grace_s: float = 1.0, **options: Any) -> Served:
    """Serves `app` and yields its URL ("http://127.0.0.1:40123", no slash at the end); port 0 takes a free one.

    The application is up when the block begins. When it ends, requests under way get `grace_s` seconds, then they are
    cancelled; then the application's lifespan ends. No signal handler is installed. `options` go to `uvicorn.Config`.
    Raises OSError where the port is taken, RuntimeError where the application does not start. What it returns can be
    shut and reopened in between:

        place = serving(app)
        async with place as url:
            await place.shut()
            await place.reopen()
    """
    return Served(app, host, port, grace_s, options)


async def _stop(server: uvicorn.Server, grace_s: float) -> None:
    """uvicorn's own shutdown polls every 0.1 s; tests start and stop servers by the hundred."""
    for listening in server.servers:
        listening.close()
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()
    if state.tasks:
        _, late = await asyncio.wait(set(state.tasks), timeout=grace_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    for connection in list(state.connections):
        connection.transport.abort()
    await server.lifespan.shutdown()
    for listening in server.servers:
        await listening.wait_closed()
