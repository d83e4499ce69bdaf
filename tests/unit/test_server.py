"""The bounds on a request's head, at the protocol itself: no socket, the timer driven by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tollkeeper import server
from tollkeeper.server import HEAD_BYTES, HEAD_FIELDS, HEAD_S, READ_S, BoundedHttp

HEAD = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\n"


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 80)})
        self.written = b""
        self.closed = self.aborted = False
        self.waits = 0  #: bytes that the client has not read

    def write(self, data: Any) -> None:
        self.written += b"" if self.closed else data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.waits

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Timer:
    """A timer that fires when it is told to."""

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self.seconds, self.callback, self.cancelled = seconds, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Connection:
    """One connection to an application that reads the whole body and answers 200, or waits for `go_on` first."""

    def __init__(self, waiting: bool = False) -> None:
        self.seen: list[dict[str, Any]] = []
        self.timers: list[Timer] = []
        self.go_on = asyncio.Event()
        if not waiting:
            self.go_on.set()
        config = uvicorn.Config(
            self.app,
            http=BoundedHttp,
            lifespan="off",
            log_config=None,
            ws="none",
            interface="asgi3",
            proxy_headers=False,
        )
        config.load()
        loop = asyncio.get_running_loop()
        self.protocol = BoundedHttp(config, ServerState(), {}, loop)
        self.protocol.loop = self  # type: ignore[assignment]
        self.create_task = loop.create_task
        self.wire = Wire()
        self.protocol.connection_made(self.wire)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append({"path": scope["path"], "headers": scope["headers"], "body": body})
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.wire.closed:
                self.protocol.data_received(piece)
            for _ in range(4):
                await asyncio.sleep(0)

    def running(self, seconds: float = HEAD_S) -> list[Timer]:
        """Timers that would close the connection after HEAD_S, or so many seconds."""
        return [timer for timer in self.timers if not timer.cancelled and timer.seconds == seconds]

    def fire(self, seconds: float) -> None:
        """The only timer of so many seconds is over."""
        (timer,) = self.running(seconds)
        timer.cancel()
        timer.callback()

    def lose(self) -> None:
        self.wire.closed = True
        self.protocol.connection_lost(None)


async def test_a_good_request_passes() -> None:
    """A request within the bounds reaches the application as it is, and the connection stays."""
    wire = Connection()
    await wire.send(HEAD + b"content-length: 2\r\n\r\n", b"{}")
    assert wire.seen == [
        {"path": "/v1/messages", "headers": [(b"host", b"x"), (b"content-length", b"2")], "body": b"{}"}
    ]
    assert wire.wire.written.startswith(b"HTTP/1.1 200 OK")
    assert not wire.wire.closed
    assert wire.running() == []


@pytest.mark.parametrize("count", [HEAD_FIELDS - 1, HEAD_FIELDS, HEAD_FIELDS + 1])
async def test_number_of_headers(count: int) -> None:
    """H4: HEAD_FIELDS headers pass, one more is a 431."""
    wire = Connection()
    fields = b"".join(b"x-%d: y\r\n" % number for number in range(count - 1))
    await wire.send(HEAD + fields + b"\r\n")
    assert len(wire.seen) == (count <= HEAD_FIELDS)
    assert wire.wire.closed == (count > HEAD_FIELDS)
    assert wire.wire.written[9:12] == (b"200" if count <= HEAD_FIELDS else b"431")


@pytest.mark.parametrize("over", [0, 1])
async def test_size_of_the_head(over: int) -> None:
    """H4: HEAD_BYTES of path, names and values pass, one more is a 431."""
    wire = Connection()
    used = len(b"/v1/messages") + len(b"hostx") + len(b"x-a")
    await wire.send(HEAD + b"x-a: " + b"y" * (HEAD_BYTES - used + over) + b"\r\n\r\n")
    assert wire.wire.written[9:12] == (b"431" if over else b"200")


ENDLESS = {
    "header value": b"x-a: yyyyyyyy",
    "header name": b"xxxxxxxx",
    "chunk extension": b"transfer-encoding: chunked\r\n\r\n5;aaaaaaa",
    "trailer": b"transfer-encoding: chunked\r\n\r\n0\r\nx-a: yyyyyy",
}


@pytest.mark.parametrize("begin", ENDLESS.values(), ids=ENDLESS.keys())
async def test_parts_without_end(begin: bytes) -> None:
    """H4: a part that never ends is cut off when HEAD_BYTES of it have come, wherever the parser keeps it."""
    wire = Connection()
    sent = 0
    await wire.send(HEAD + begin)
    while not wire.wire.closed and sent < 1_000_000:
        await wire.send(b"z" * 4096)
        sent += 4096
    assert wire.wire.closed
    assert sent <= HEAD_BYTES + 4096
    assert wire.seen == []


async def test_a_refusal_is_json_and_whole() -> None:
    """A refused head is answered once, in JSON, with its length, and the application does not see it."""
    for sent, status in ((b"x: y\r\n" * 200, b"431"), (b"nonsense\r\n\r\n", b"400")):
        wire = Connection()
        await wire.send(HEAD + sent, b"\r\n")
        head, _, body = wire.wire.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"content-length: %d" % len(body) in head
        assert b"connection: close" in head
        assert body.startswith(b'{"error":{"message":"')
        assert wire.seen == []


async def test_time_for_the_head() -> None:
    """H4: from the connection's first moment until the first piece of the body a timer runs; when it fires, it is closed."""
    wire = Connection()
    for piece in (b"\r\n", HEAD, b"content-length: 2\r\n", b"\r\n"):
        await wire.send(piece)
        assert len(wire.running()) == 1, piece
    wire.running()[0].callback()
    assert wire.wire.closed
    assert wire.seen == []


async def test_time_stops_with_the_body() -> None:
    """The timer ends with the first piece of the body: what is left of it the application bounds."""
    wire = Connection()
    await wire.send(HEAD + b"content-length: 2\r\n\r\n{")
    assert wire.running() == []
    wire.lose()


async def test_time_between_requests() -> None:
    """H4: blank lines between requests do not keep a connection open for ever: the timer runs again."""
    wire = Connection()
    await wire.send(HEAD + b"\r\n")
    assert len(wire.seen) == 1
    assert wire.running() == []  # uvicorn's own wait for the next request runs
    await wire.send(b"\r\n")
    assert len(wire.running()) == 1
    await wire.send(HEAD + b"\r\n")
    assert len(wire.seen) == 2
    assert wire.running() == []


async def test_time_of_a_pipelined_request() -> None:
    """A request that waits for the reply ahead of it is not timed; when its turn comes, it is."""
    wire = Connection(waiting=True)
    await wire.send(HEAD + b"\r\n" + HEAD + b"content-length: 2\r\n\r\n")
    assert wire.running() == []
    wire.go_on.set()
    await wire.send()
    for _ in range(9):
        await asyncio.sleep(0)
    assert len(wire.seen) == 1
    assert len(wire.running()) == 1
    wire.lose()


async def test_lost_connections_leave_no_timer() -> None:
    """A connection that goes takes its timer along."""
    wire = Connection()
    await wire.send(HEAD)
    wire.lose()
    assert wire.running() == []


@pytest.mark.parametrize("closes", [True, False])
async def test_a_client_that_does_not_read(closes: bool) -> None:
    """D6: as long as some of its reply goes out it has time, also when the connection is closed; then it is cut off."""
    connection = Connection()
    connection.wire.waits = 1000
    connection.protocol.pause_writing()
    connection.wire.closed = closes
    for waits in (999, 1):
        connection.wire.waits = waits
        connection.fire(READ_S)
        assert not connection.wire.aborted
    connection.fire(READ_S)
    assert connection.wire.aborted
    connection.lose()
    assert connection.running(READ_S) == []


async def test_a_client_that_reads_again() -> None:
    """D6: its time is over only if it stops anew."""
    connection = Connection()
    connection.protocol.pause_writing()
    connection.protocol.resume_writing()
    assert connection.running(READ_S) == []
    connection.protocol.pause_writing()
    connection.lose()
    assert connection.running(READ_S) == []


@pytest.mark.parametrize("frame", [b"content-length: 0", b"content-length: 9", b"transfer-encoding: chunked"])
@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
async def test_no_upgrade_with_a_body(upgrade: bytes, frame: bytes) -> None:
    """H4: its body is neither lost nor read as a request: it is refused in words, and the connection closed."""
    connection = Connection()
    head = b"upgrade: %b\r\nconnection: Upgrade, HTTP2-Settings\r\n%b\r\n\r\n" % (upgrade, frame)
    await connection.send(HEAD + head, HEAD + b"content-length: 0\r\n\r\n")
    assert connection.wire.written.startswith(b"HTTP/1.1 400 ")
    assert b"Upgrade" in connection.wire.written
    assert connection.wire.closed
    assert connection.seen == []


async def test_trailers_are_dropped() -> None:
    """H4: fields behind a chunked body are never headers."""
    wire = Connection()
    await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-tollkeeper-project: stolen\r\n\r\n")
    assert wire.seen[0]["headers"] == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]
    assert wire.seen[0]["body"] == b"{}"


async def test_a_refused_head_does_not_touch_the_call_before() -> None:
    """H4: the body behind a refused head never becomes part of the request before it."""
    wire = Connection(waiting=True)
    await wire.send(
        HEAD + b"content-length: 2\r\n\r\n{}" + HEAD + b"x: y\r\n" * 200 + b"content-length: 5\r\n\r\nstray"
    )
    assert [request["body"] for request in wire.seen] == [b"{}"]
    assert b"431" in wire.wire.written
    wire.lose()


def test_bounds_are_usual() -> None:
    """The bounds leave room for honest clients: nginx and node.js have 8 to 32 kB and 100 to 2,000 fields."""
    assert HEAD_BYTES >= 32 * 1024
    assert HEAD_FIELDS >= 100
    assert server.HEAD_S >= 5
