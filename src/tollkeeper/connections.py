"""HTTP/1.1 to providers on httptools: a pool of connections, one request at a time on each.

Only what a provider's API needs: a POST with a body, a reply with a length, in chunks, or until the connection ends. A reader
that does not read stops the socket; nothing is buffered beyond PIECE and what the socket gave at once. No redirects, no
cookies, no proxies, no decompression.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import httptools

#: Bytes of a reply that wait to be read before the socket is stopped.
PIECE: Final = 64 * 1024
HEAD_FIELDS: Final = 200
HEAD_BYTES: Final = 64 * 1024
#: Seconds that an unused connection is kept: below the limits of the servers known, so that few close under a request.
KEEP_S: Final = 15.0


class Origin(NamedTuple):
    """Where a connection goes."""

    host: str
    port: int
    tls: bool


class Broken(Exception):
    """The connection ended before the reply did."""


class Connection(asyncio.Protocol):
    """One connection: a request, its reply, the next request."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.idle_since_s = 0.0
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.reusable = False
        self._parser: httptools.HttpResponseParser
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._head_bytes = 0
        self._has_head = self._complete = self._paused = False
        self._busy = False
        self._lost = False
        self._ends_with_connection = False
        self._failure: str | None = None

    # ── requests ──

    def send(self, data: bytes) -> None:
        """Begin a request."""
        self._parser = httptools.HttpResponseParser(self)
        self._busy, self._has_head, self._complete, self.reusable = True, False, False, False
        self.headers, self._head_bytes, self._failure = [], 0, None
        self.transport.write(data)

    async def head(self) -> None:
        """Wait for the status and the headers. Raises Broken."""
        while not self._has_head:
            if self._lost or self._failure is not None:
                raise Broken(self._failure or "the connection ended before an answer")
            await self._wait()

    async def read(self) -> bytes:
        """The next bytes of the body, at most PIECE, b"" at its end. Raises Broken."""
        while not self._pieces:
            if self._complete:
                return b""
            if self._lost or self._failure is not None:
                raise Broken(self._failure or "the connection ended before the reply did")
            await self._wait()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        if len(data) > PIECE:
            self._pieces.append(data[PIECE:])
            data = data[:PIECE]
        self._size -= len(data)
        if self._paused and self._size <= PIECE:
            self._paused = False
            self.transport.resume_reading()
        return data

    @property
    def free(self) -> bool:
        """Whether the reply is over and the connection can take another request."""
        return (
            self._complete and self.reusable and not self._pieces and not self._lost and not self.transport.is_closing()
        )

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ── the transport's callbacks ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self._busy or self._complete:  # nothing was asked: not a server to go on with
            self.reusable = False
            self.transport.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._failure = f"the reply is not HTTP: {type(error).__name__}"
            self.transport.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._busy and self._has_head and self._ends_with_connection and exc is None:
            self._complete = True
        self._wake()

    # ── the parser's callbacks ──

    def on_message_begin(self) -> None:
        if self._complete:  # more than was asked for
            self.reusable = False
            raise httptools.HttpParserError("a second reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES or len(self.headers) >= HEAD_FIELDS:
            raise httptools.HttpParserError("too many headers")
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            self.headers = []
            return
        self._has_head = True
        names = {name for name, _ in self.headers}
        self._ends_with_connection = not names & {b"content-length", b"transfer-encoding"}

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._size += len(body)
        if self._size > PIECE and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._has_head:
            self._complete = True
            self.reusable = self._parser.should_keep_alive()


class Pool:
    """Connections by origin. `addresses(host, port)` resolves a name; it may refuse with OSError."""

    def __init__(self, connect_timeout_s: float, addresses: Callable[[str, int], Awaitable[list[str]]]) -> None:
        self._timeout_s = connect_timeout_s
        self._addresses = addresses
        self._idle: dict[Origin, deque[Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def take(self, origin: Origin) -> Connection:
        """A connection that is free, or a new one. Raises OSError, TimeoutError among it."""
        now_s = asyncio.get_running_loop().time()
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.free and now_s - connection.idle_since_s < KEEP_S:
                return connection
            connection.transport.abort()
        async with asyncio.timeout(self._timeout_s):
            return await self._connect(origin)

    def give(self, origin: Origin, connection: Connection) -> None:
        """Take a connection back, or close it."""
        if connection.free:
            connection.idle_since_s = asyncio.get_running_loop().time()
            self._idle.setdefault(origin, deque()).append(connection)
        else:
            connection.transport.abort()

    def close(self) -> None:
        """Close the idle connections; those in use close when they are given back."""
        for idle in self._idle.values():
            for connection in idle:
                connection.transport.abort()
        self._idle.clear()

    async def _connect(self, origin: Origin) -> Connection:
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        failure: OSError = OSError(f"{origin.host} has no address")
        addresses = await self._addresses(origin.host, origin.port)
        for address in addresses:
            try:
                async with asyncio.timeout(self._timeout_s / len(addresses)):  # a silent one leaves time for the next
                    _, connection = await asyncio.get_running_loop().create_connection(
                        Connection, address, origin.port, ssl=self._tls if origin.tls else None,
                        server_hostname=origin.host if origin.tls else None,
                    )  # fmt: skip
            except OSError as error:
                failure = error
            else:
                return connection
        raise failure
