"""uvicorn's HTTP protocol with bounds on the request's head: size, number of headers, and the time that it may take.

uvicorn sets none of these for httptools: a client could send headers for ever.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: As nginx and node.js: more is an attack or a mistake.
HEAD_BYTES: Final = 64 * 1024
HEAD_FIELDS: Final = 100
HEAD_S: Final = 10.0
_REFUSAL: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 94\r\n\r\n{"error":{"message":"The request\'s head is too large.","type":"invalid_request_error","code":431}}'
)


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 for one connection."""

    _head_bytes = 0
    _head_fields = 0
    _head_timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        self._head_bytes = self._head_fields = 0
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_fields += 1
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if (self._head_bytes > HEAD_BYTES or self._head_fields > HEAD_FIELDS) and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
