"""Server-sent events: a byte stream cut into whole events, each with the bytes that it came in.

An event ends with a blank line; a line ends with LF, CRLF or CR. Where the bytes so far end in a CR that may be half of a
CRLF, the splitter waits for the next byte, so that the cuts never depend on how the stream was chunked. The raw bytes of
the events, in order, and then `rest()`, are exactly the bytes that were fed: comments and blank lines too.

A stream without any CR, which is nearly every stream, is cut by `bytes.find` alone, and so is one with CRLF alone.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tollkeeper.errors import StreamBroken

MAX_EVENT: Final = 16 << 20
"""Bytes of one event: an image in base64 has a few million, all others are far below; the buffer never holds more."""

_BLANK: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_BOM: Final = b"\xef\xbb\xbf"
_OVERLAP: Final = 3
"""Bytes of a blank line that may already have been searched: all but the last of \\r\\n\\r\\n."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event. A comment (a ping) has neither name nor data."""

    raw: bytes  #: as received, with its blank line
    name: bytes = b""  #: the `event:` field
    data: bytes = b""  #: the `data:` lines, joined by \n


class Splitter:
    """Cuts chunks into events. Holds at most MAX_EVENT bytes between chunks."""

    __slots__ = ("_broken", "_held", "between")

    def __init__(self) -> None:
        self.between = True  #: the next byte begins an event
        self._held = bytearray()
        self._broken = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes.

        Raises StreamBroken for an event above MAX_EVENT; events that were whole before it are returned first, and the
        next call raises.
        """
        if self._broken:
            raise _too_large()
        held = self._held
        if not held and (event := _only_event(chunk)) is not None:
            return [event]
        start = 0
        if held:
            start = max(0, len(held) - _OVERLAP)
            held += chunk
            if _ends(held, start) < 0:
                return self._keep(b"", [])
            chunk = bytes(held)
            held.clear()
        events: list[Event] = []
        begin = 0
        if 13 not in chunk:  # no \r: several times faster than asking for the byte as bytes
            while (end := chunk.find(b"\n\n", start) + 2) > 1:
                raw = chunk[begin:end]
                if raw.startswith(b"data: ") and raw.find(b"\n", 6) == end - begin - 2:  # the one shape of most events
                    events.append(Event(raw, b"", raw[6:-2]))
                else:
                    events.append(read_event(raw))
                begin = start = end
        elif chunk.count(b"\r\n") == chunk.count(b"\r") == chunk.count(b"\n"):  # every line ends so, as Google's do
            while (end := chunk.find(b"\r\n\r\n", start) + 4) > 3:
                raw = chunk[begin:end]
                if raw.startswith(b"data: ") and raw.find(b"\r", 6) == end - begin - 4:
                    events.append(Event(raw, b"", raw[6:-4]))
                else:
                    events.append(read_event(raw))
                begin = start = end
        else:
            while (end := _ends(chunk, start)) > 0:
                events.append(read_event(chunk[begin:end]))
                begin = start = end
        for index, event in enumerate(events):
            if len(event.raw) > MAX_EVENT:
                return self._break(events[:index])
        return self._keep(chunk[begin:], events)

    def rest(self) -> bytes:
        """The bytes after the last whole event; the splitter is empty afterwards."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _keep(self, rest: bytes, events: list[Event]) -> list[Event]:
        self._held += rest
        self.between = not self._held
        return events if len(self._held) <= MAX_EVENT else self._break(events)

    def _break(self, events: list[Event]) -> list[Event]:
        self._broken, self.between = True, False
        self._held.clear()
        if not events:
            raise _too_large()
        return events


def read_event(raw: bytes) -> Event:
    """One event's bytes, with or without its blank line, as an Event. Unknown fields and comments are passed over."""
    if raw.startswith(b"event: ") and b"\r" not in raw:  # a name and one line of data, as Anthropic's are
        lines = raw.split(b"\n", 3)
        if lines[2:] == [b"", b""] and lines[1].startswith(b"data: "):
            return Event(raw, lines[0][7:], lines[1][6:])
    name = b""
    data: list[bytes] = []
    for line in raw.removeprefix(_BOM).splitlines():
        if line.startswith(b"data:"):
            data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].removeprefix(b" ")
        elif line == b"data":
            data.append(b"")
    return Event(raw, name, data[0] if len(data) == 1 else b"\n".join(data))


def _only_event(chunk: bytes) -> Event | None:
    """A chunk that is one whole event of the two usual shapes, as most chunks are: a line of data, perhaps a name before it."""
    name, at = b"", 6
    if chunk[:7] == b"event: ":
        end = chunk.find(10)
        name, at = chunk[7:end], end + 7
        if chunk[end + 1 : at] != b"data: ":
            return None
    elif chunk[:6] != b"data: ":
        return None
    if chunk.find(10, at) != len(chunk) - 2 or chunk[-1] != 10 or 13 in chunk or len(chunk) > MAX_EVENT:
        return None
    return Event(chunk, name, chunk[at:-2])


def _ends(buffer: bytes | bytearray, start: int) -> int:
    """Where the first event ends, -1 where none does yet."""
    blank = _BLANK.search(buffer, start)
    if blank is None:
        return -1
    end = blank.end()
    return -1 if end == len(buffer) and buffer[-1] == 13 else end  # 13: a \r whose \n may still come


def _too_large() -> StreamBroken:
    return StreamBroken(f"The provider sent an event of more than {MAX_EVENT} bytes without a blank line.")
