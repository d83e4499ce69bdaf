"""From reply bytes to a Reading, while the bytes go on to the client.

Streams: each chunk goes in, the bytes of the events that it completed come out, less what is to be hidden. Whole
bodies: chunks go in, nothing comes out, `body` has it all. Either way the Reading does not depend on how the bytes were
cut.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.dialects import Dialect
from tollkeeper.errors import StreamBroken
from tollkeeper.json_array import ArraySplitter
from tollkeeper.sse import Event, Splitter, read_event
from tollkeeper.values import Reading

WHOLE_MAX: Final = 64 << 20
"""Bytes of a reply that is not streamed. 2,048 embeddings of 1,536 numbers as text are about 40 MB."""

_ANYTHING: Final = msgspec.json.Decoder(msgspec.Raw)


class Meter:
    """Reads one reply of one dialect."""

    __slots__ = ("_alike", "_body", "_read", "_reading", "_reducer", "_size", "_split", "_splitter", "_stream", "tail")

    def __init__(
        self, dialect: Dialect, *, stream: bool, hide_usage: bool, quirks: frozenset[str], array: bool = False
    ) -> None:
        self._reducer = dialect.reducer(stream=stream, hide_usage=hide_usage, quirks=quirks)
        self._stream = stream
        if stream:
            self._splitter = ArraySplitter() if array else Splitter()
            self._alike, self._read = self._reducer.alike, self._reducer.event  # looked up once, not for each chunk
            self._split = self._splitter.feed
        self._body: list[bytes] = []
        self._size = 0
        self._reading: Reading | None = None
        self.tail = b""  #: after finish(): a last event that lacked its blank line, completed; relay it too

    def feed(self, chunk: bytes) -> bytes:
        """Read a chunk; the bytes to relay now, of whole events. A whole body relays nothing until it is finished.

        Raises StreamBroken for an event above MAX_EVENT or a body above WHOLE_MAX.
        """
        if not self._stream:
            self._size += len(chunk)
            if self._size > WHOLE_MAX:
                self._body.clear()
                raise StreamBroken(f"The provider sent a body of more than {WHOLE_MAX} bytes.")
            self._body.append(chunk)
            return b""
        if self._splitter.between and (relay := self._alike(chunk)) is not None:
            return relay
        events, read = self._split(chunk), self._read
        if len(events) == 1:
            return read(events[0]) or b""
        return b"".join([relay for event in events if (relay := read(event)) is not None])

    def finish(self) -> Reading:
        """The bytes are over: what they said. Again: the same."""
        if self._reading is None:
            lost = 0
            if self._stream:
                lost = self._read_tail()
            else:
                self._reducer.whole(self.body)
            reading = self._reducer.reading()
            self._reading = structs.replace(reading, output_bytes=reading.output_bytes + lost) if lost else reading
        return self._reading

    @property
    def body(self) -> bytes:
        """A whole reply's bytes so far."""
        if len(self._body) > 1:
            self._body = [b"".join(self._body)]
        return self._body[0] if self._body else b""

    @property
    def ended(self) -> bool:
        """The end marker was seen; after finish() as the Reading has it."""
        return self._reducer.ended if self._reading is None else self._reading.ended

    @property
    def content(self) -> bool:
        """Something was generated: pings and chunks with a role alone are not content."""
        return self._reducer.content

    @property
    def error(self) -> str | None:
        """An error inside the reply."""
        return self._reducer.error

    def _read_tail(self) -> int:
        """A last event without its blank line is read if it is all there; half of one is dropped: how many bytes."""
        rest = self._splitter.rest()
        if not rest.strip():
            self.tail = rest
        event, lost = last_event(rest)
        relay = None if event is None else self._reducer.event(event)
        if relay is not None:
            self.tail = relay.rstrip(b"\r\n") + b"\n\n"
        return lost


def last_event(rest: bytes) -> tuple[Event | None, int]:
    """The event in what follows the last blank line, if it is all there; else how many bytes are of no use.

    There was text among them, or it was on its way.
    """
    event = read_event(rest)
    if not event.data:
        return None, 0 if rest.startswith(b":") else len(rest.strip())
    if not event.data.startswith(b"[DONE]"):
        try:
            _ANYTHING.decode(event.data)
        except (msgspec.DecodeError, RecursionError):
            return None, len(rest)
    return event, 0
