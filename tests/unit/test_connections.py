"""Connections to providers: what a reply may look like, what is bounded, and which connections are used again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from tollkeeper import connections
from tollkeeper.connections import HEAD_BYTES, HEAD_FIELDS, PIECE, Broken, Connection, Origin, Pool

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Wire(asyncio.Transport):
    """A transport that keeps what is written and whether reading is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.paused = b"", False, False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


def asked(*pieces: bytes, lost: bool = False) -> tuple[Connection, Wire]:
    """A connection that has sent a request and got these bytes."""
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    connection.send(b"POST / HTTP/1.1\r\n\r\n")
    for piece in pieces:
        if not wire.closed:
            connection.data_received(piece)
    if lost:
        connection.connection_lost(None)
    return connection, wire


async def whole(connection: Connection) -> bytes:
    await connection.head()
    data = b""
    while piece := await connection.read():
        assert len(piece) <= PIECE
        data += piece
    return data


GOOD = {
    "a length": OK,
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
    "early hints first": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhi",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    "the connection ends": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize(("name", "reply"), GOOD.items(), ids=GOOD.keys())
@pytest.mark.parametrize("step", [1, 1000])
async def test_good_replies(name: str, reply: bytes, step: int) -> None:
    """Each framing of HTTP/1.1 is read alike, at once or byte by byte; only some leave the connection free."""
    pieces = [reply[at : at + step] for at in range(0, len(reply), step)]
    connection, _ = asked(*pieces, lost=name == "until the end")
    assert await whole(connection) == b"hi"
    assert connection.status == 200
    assert (b"link", b"x") not in connection.headers
    assert connection.free == (name in ("a length", "chunks", "early hints first"))


BAD = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nx: y",
    "nonsense": b"nonsense\r\n\r\n",
    "a short body": b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi",
    "half of a chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhi",
    "no last chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * (HEAD_FIELDS + 1) + b"\r\n",
    "too large a head": b"HTTP/1.1 200 OK\r\nx: " + b"y" * HEAD_BYTES + b"\r\n\r\n",
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
async def test_bad_replies(reply: bytes) -> None:
    """D3: a reply that is none, breaks off or is past a bound is told, and its connection is not used again."""
    connection, _ = asked(reply, lost=True)
    with pytest.raises(Broken):
        await whole(connection)
    assert not connection.free


async def test_a_reader_that_waits_is_woken() -> None:
    """What comes later wakes the reader, and so does the end."""
    connection, _ = asked()
    reading = asyncio.ensure_future(whole(connection))
    for piece in (b"HTTP/1.1 200 OK\r\ncontent-", b"length: 4\r\n\r\nto", b"ll"):
        await asyncio.sleep(0)
        assert not reading.done()
        connection.data_received(piece)
    assert await reading == b"toll"
    connection, _ = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nto")
    reading = asyncio.ensure_future(whole(connection))
    await asyncio.sleep(0)
    connection.connection_lost(None)
    with pytest.raises(Broken):
        await reading


async def test_a_reader_that_does_not_read_stops_the_socket() -> None:
    """D6: past PIECE bytes nothing more is read from the socket, until what waits is below it again."""
    connection, wire = asked(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", b"x" * PIECE)
    assert not wire.paused
    connection.data_received(b"x" * PIECE)
    assert wire.paused
    await connection.head()
    assert len(await connection.read()) == PIECE
    assert not wire.paused


async def test_what_was_not_asked_for() -> None:
    """A server that sends a second reply, or sends before it is asked, is closed and not trusted with another request."""
    connection, wire = asked(OK)
    assert await whole(connection) == b"hi"
    connection.data_received(OK)
    assert wire.closed
    assert not connection.free
    connection, _ = asked(OK + OK)
    assert not connection.free
    fresh, wire = Connection(), Wire()
    fresh.connection_made(wire)
    fresh.data_received(OK)
    assert wire.closed


# ---- the pool -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(**more: Any) -> AsyncIterator[tuple[Pool, Origin, list[int]]]:
    """A pool, a server that answers OK to each request, and the port of the client of each."""
    ports: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            ports.append(writer.get_extra_info("peername")[1])
            writer.write(OK)
        writer.close()

    async def addresses(host: str, port: int) -> list[str]:
        return list(more.get("addresses", ["127.0.0.1"]))

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    pool = Pool(1, addresses)
    async with server:
        yield pool, Origin("provider.example", server.sockets[0].getsockname()[1], tls=False), ports
        pool.close()
        await asyncio.sleep(0.01)  # the server sees them go


async def call(pool: Pool, origin: Origin, *, read: bool = True) -> Connection:
    connection = await pool.take(origin)
    connection.send(b"POST / HTTP/1.1\r\n\r\n")
    if read:
        assert await whole(connection) == b"hi"
    pool.give(origin, connection)
    return connection


async def test_connections_are_used_again() -> None:
    """A connection whose reply was read is used again; one whose reply was not is closed."""
    async with served() as (pool, origin, ports):
        first = await call(pool, origin)
        assert await call(pool, origin) is first
        assert await call(pool, origin, read=False) is first
        assert await call(pool, origin) is not first
    assert len(set(ports)) >= 2
    assert ports[0] == ports[1]


async def test_old_connections_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was idle for KEEP_S is closed: its server may do so at any moment."""
    async with served() as (pool, origin, _):
        first = await call(pool, origin)
        monkeypatch.setattr(connections, "KEEP_S", 0.0)
        assert await call(pool, origin) is not first
        assert first.transport.is_closing()


async def test_each_origin_has_its_own() -> None:
    """H3: a connection to one provider never serves another, nor one without TLS one that wants it."""
    async with served() as (pool, origin, _):
        first = await call(pool, origin)
        assert await call(pool, origin._replace(host="other.example")) is not first
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the TLS library
            await pool.take(origin._replace(tls=True))


async def test_every_address_is_tried() -> None:
    """Where the first address of a host does not answer, the next one does; where none does, it is told."""
    async with served(addresses=["127.0.0.2", "127.0.0.1"]) as (pool, origin, ports):
        await call(pool, origin)
        assert len(ports) == 1
    async with served(addresses=[]) as (pool, origin, _):
        with pytest.raises(OSError, match="no address"):
            await pool.take(origin)


async def test_a_silent_address() -> None:
    """One that never says anything, as where IPv6 leads nowhere, leaves time for those behind it."""
    async with served(addresses=["127.0.0.2", "127.0.0.1"]) as (pool, origin, _):
        pool._timeout_s = 0.2
        with ExitStack() as stack:
            silent = ("127.0.0.2", origin.port)
            stack.enter_context(socket.create_server(silent, backlog=0))
            for _ in range(3):  # its queue is full: nobody else is answered
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(silent)
            await call(pool, origin)


async def test_time_to_connect() -> None:
    """Connecting is bounded: a name that is not found in time is a TimeoutError, which is an OSError."""

    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(TimeoutError):
        await Pool(0.01, never).take(Origin("x", 1, tls=False))
    assert issubclass(TimeoutError, OSError)
