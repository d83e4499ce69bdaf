"""Any ASGI application on a real socket, inside the event loop that calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def serving(
    app: App, host: str = "127.0.0.1", port: int = 0, *, grace_s: float = 1.0, **options: Any
) -> AsyncIterator[str]:
    """Serves `app` and yields its URL ("http://127.0.0.1:40123", no slash at the end); port 0 takes a free one.

    The application is up when the block begins. When it ends, requests under way get `grace_s` seconds, then they are
    cancelled; then the application's lifespan ends. No signal handler is installed. `options` go to `uvicorn.Config`.
    Raises OSError where the port is taken, RuntimeError where the application does not start.
    """
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
    )
    # asyncio sets it on sockets that were made for TCP by number, which this one was not; connections inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    options = {
        "http": _Protocol,
        "log_config": None,
        "access_log": False,
        "ws": "none",
        "server_header": False,
        **options,
    }
    config = uvicorn.Config(app, **options)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    try:
        await server.startup(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the lifespan failed
        listener.close()
        raise RuntimeError("the application did not start; the log of uvicorn.error says why") from None
    try:
        at = listener.getsockname()
        yield f"http://[{at[0]}]:{at[1]}" if ":" in host else f"http://{at[0]}:{at[1]}"
    finally:
        await _stop(server, grace_s)


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
