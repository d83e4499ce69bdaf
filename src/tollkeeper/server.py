"""uvicorn's HTTP protocol with bounds on what a request may be before its body: size, number of headers, time.

uvicorn sets none of these for httptools: a client could send headers for ever, or nothing at all. Bytes are counted where
the parser hands parts over, and where it keeps them to itself (half a header, blank lines, chunk extensions). A trailer
never becomes a header: what stood at the front of a request, perhaps set by a proxy, stands.

A client that reads nothing of its reply is left after a time: closing alone would wait for it to read the rest, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: As nginx and node.js: more is an attack or a mistake.
HEAD_BYTES: Final = 64 * 1024
HEAD_FIELDS: Final = 100
#: Seconds until a request's head and the first piece of its body are there. The rest of the body: api.BODY_S.
HEAD_S: Final = 10.0
#: Seconds in which a client must have read some of what waits for it. A call ends before, by idle_timeout_s.
READ_S: Final = 120.0
#: The headers of which one announces a body.
_FRAMES: Final = frozenset((b"content-length", b"transfer-encoding"))


def _refusal(status: bytes, message: bytes) -> bytes:
    body = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"bad_request"}}' % message
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, len(body)) + body


_TOO_LARGE: Final = _refusal(b"431 Request Header Fields Too Large", b"The request's head is too large.")
_NO_UPGRADE: Final = _refusal(b"400 Bad Request", b"Send no Upgrade header: this speaks HTTP/1.1 alone.")
_NO_HTTP: Final = _refusal(b"400 Bad Request", b"This is not an HTTP/1.1 request.")


class _RefusedError(Exception):
    """Stops the parser from inside one of its callbacks; uvicorn then calls `send_400_response`."""


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 for one connection."""

    _in_head = False
    _head_bytes = 0
    _head_fields = 0  #: trailers too
    _parts = 0  #: that the parser has handed over
    _kept_bytes = 0  #: that came since then
    _answer = _NO_HTTP  #: to what cannot be parsed
    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_read_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_read_timer()

    def resume_writing(self) -> None:
        self._stop_read_timer()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        parts = self._parts
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._parts != parts:
            self._kept_bytes = 0
        else:
            self._kept_bytes += len(data)
            if self._kept_bytes > HEAD_BYTES:
                self._answer = _TOO_LARGE
                self.send_400_response("")
                return
        if self._head_timer is None and self.timeout_keep_alive_task is None and self.cycle.response_complete:
            self._start_timer()  # blank lines between requests end uvicorn's own wait

    def send_400_response(self, msg: str) -> None:
        self.transport.write(self._answer)
        self.transport.close()

    # ---- the parser's callbacks ----

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._head_fields = 0
        if self._head_timer is None:  # else it runs since the connection was made
            self._start_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._parts += 1
        self._head_bytes += len(url)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_fields += 1
        self._parts += 1
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES or self._head_fields > HEAD_FIELDS:
            self._refuse(_TOO_LARGE)
        if self._in_head:  # what uvicorn does with it
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade() and not _FRAMES.isdisjoint(name for name, _ in self.headers):
            self._refuse(_NO_UPGRADE)  # the parser would take the body for the other protocol's, or for a request
        super().on_headers_complete()
        if self.pipeline:  # its body is not read before the reply to the request ahead of it
            self._stop_timer()

    def on_body(self, body: bytes) -> None:
        self._parts += 1
        self._stop_timer()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self._start_timer()

    def _refuse(self, answer: bytes) -> NoReturn:
        self._answer = answer
        raise _RefusedError

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_read_timer(self) -> None:
        self._stop_read_timer()
        waits = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(READ_S, lambda: self._look(waits))

    def _look(self, waited: int) -> None:
        if self.transport.get_write_buffer_size() < waited:
            self._start_read_timer()
        else:
            self.transport.abort()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
