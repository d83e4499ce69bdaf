"""AWS event streams (`application/vnd.amazon.eventstream`): binary messages cut out of a byte stream.

    total length · headers length · checksum of both │ headers │ payload │ checksum of all before     (numbers of 4 bytes)

Read like server-sent events (`sse`): the raw bytes of the events, in order, and then `rest()`, are exactly the bytes that
were fed. An event has the name in `:event-type` and the payload as its data. An exception or error in the stream is an event
named `error` with its type and message as JSON, as other streams have it. A `chunk` (InvokeModelWithResponseStream) carries
a vendor's own event in base64: its data is that event. Both checksums must be right, else the stream is broken.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

import msgspec

from tollkeeper.errors import StreamBroken
from tollkeeper.sse import MAX_EVENT, Event

_PRELUDE: Final = struct.Struct(">III")
_CHECKSUM: Final = struct.Struct(">I")
_SHORT: Final = struct.Struct(">H")
_LEAST: Final = _PRELUDE.size + _CHECKSUM.size
#: Sizes of header values by their type: true, false, byte, short, int, long; bytes and text have theirs in front; time, uuid.
_SIZES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_BYTES, _TEXT = 6, 7


class _Chunk(msgspec.Struct):
    event: bytes = msgspec.field(name="bytes")  #: base64 on the wire


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class MessageSplitter:
    """Cuts chunks into messages. Holds at most MAX_EVENT bytes between chunks."""

    __slots__ = ("_broken", "_held")

    def __init__(self) -> None:
        self._held = bytearray()
        self._broken: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes.

        Raises StreamBroken for a message that is damaged or above MAX_EVENT; messages that were whole before it are returned
        first, and the next call raises.
        """
        if self._broken is not None:
            raise StreamBroken(self._broken)
        held = self._held
        held += chunk
        events: list[Event] = []
        begin = 0
        try:
            while size := _size(held, begin):
                events.append(_event(bytes(held[begin : begin + size])))
                begin += size
        except StreamBroken as error:
            self._broken = str(error)
            held.clear()
            if not events:
                raise
            return events
        del held[:begin]
        return events

    def rest(self) -> bytes:
        """The bytes after the last whole message; the splitter is empty afterwards."""
        rest = bytes(self._held)
        self._held.clear()
        return rest


def _size(held: bytearray, begin: int) -> int:
    """Bytes of the message at `begin`, 0 while it is not all there."""
    if len(held) - begin < _PRELUDE.size:
        return 0
    total, headers, checksum = _PRELUDE.unpack_from(held, begin)
    if crc32(held[begin : begin + 8]) != checksum:
        raise StreamBroken("The provider sent a damaged event stream: the checksum of a message's start is wrong.")
    if total > MAX_EVENT:
        raise StreamBroken(f"The provider sent an event of {total} bytes, more than {MAX_EVENT}.")
    if total < _LEAST + headers:
        raise StreamBroken("The provider sent a damaged event stream: a message is shorter than its headers.")
    return int(total) if len(held) - begin >= total else 0


def _event(raw: bytes) -> Event:
    """A whole message as an Event."""
    end = len(raw) - _CHECKSUM.size
    if crc32(raw[:end]) != _CHECKSUM.unpack_from(raw, end)[0]:
        raise StreamBroken("The provider sent a damaged event stream: the checksum of a message is wrong.")
    start = _PRELUDE.size + _PRELUDE.unpack_from(raw)[1]
    try:
        headers = _headers(raw[_PRELUDE.size : start])
    except (IndexError, KeyError, struct.error):
        raise StreamBroken(
            "The provider sent a damaged event stream: the headers of a message cannot be read."
        ) from None
    payload = raw[start:end]
    match headers.get(b":message-type"):
        case b"exception":
            return Event(raw, b"error", _told(headers.get(b":exception-type", b""), payload))
        case b"error":
            return Event(raw, b"error", _told(headers.get(b":error-code", b""), headers.get(b":error-message", b"")))
    name = headers.get(b":event-type", b"")
    if name == b"chunk":
        try:
            return Event(raw, b"", _CHUNK.decode(payload).event)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return Event(raw, name, payload)


def _headers(block: bytes) -> dict[bytes, bytes]:
    """Names and values; only bytes and text have a value here."""
    headers: dict[bytes, bytes] = {}
    at = 0
    while at < len(block):
        begin = at + 1
        at = begin + block[at]
        name, kind = block[begin:at], block[at]
        at += 1
        if kind in (_BYTES, _TEXT):
            size = _SHORT.unpack_from(block, at)[0]
            at += _SHORT.size
            headers[name] = block[at : at + size]
        else:
            size = _SIZES[kind]
        at += size
    if at > len(block):
        raise IndexError
    return headers


def _told(kind: bytes, message: bytes) -> bytes:
    """An error as JSON, with the payload's own text as its message."""
    return msgspec.json.encode({"type": kind.decode(errors="replace"), "message": message.decode(errors="replace")})
