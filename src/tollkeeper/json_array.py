"""A JSON array that arrives piece by piece, cut into its elements, each with the bytes that it came in.

The shape of `streamGenerateContent` without `alt=sse`: `[{…},\\n{…}]`, one element at a time. It is read like server-sent
events (`sse`): the raw bytes of the events, in order, and then `rest()`, are exactly the bytes that were fed. The closing
bracket is an event of its own, whose data is `]`: the end marker. An object in the place of the array is its one element.

Most chunks are one whole element: that is tried first, by reading it as JSON. Else brackets are counted, outside of texts.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tollkeeper.errors import StreamBroken
from tollkeeper.sse import MAX_EVENT, Event

_ANYTHING: Final = msgspec.json.Decoder(msgspec.Raw)
_IN_TEXT: Final = re.compile(rb'[\\"]')
_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_BETWEEN: Final = b" \t\r\n,"
_BEFORE: Final = _BETWEEN + b"["


class ArraySplitter:
    """Cuts chunks into elements. Holds at most MAX_EVENT bytes between chunks; each byte is looked at once."""

    __slots__ = ("_at", "_broken", "_depth", "_held", "_in_array", "_in_text", "between")

    def __init__(self) -> None:
        self.between = True  #: the next byte begins an element, or is in front of one
        self._held = bytearray()
        self._at = 0  # bytes of `_held` that were looked at
        self._depth = 0  # of what is open there, the array itself aside
        self._in_array = False
        self._in_text = False
        self._broken = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The elements that `chunk` completes.

        Raises StreamBroken for an element above MAX_EVENT; elements that were whole before it are returned first, and the
        next call raises.
        """
        if self._broken:
            raise _too_large()
        self._held += chunk
        if self._in_array and not self._depth and not self._in_text and (one := self._one()) is not None:
            self.between = not self._held
            return [one]
        events: list[Event] = []
        while (end := self._next_end()) > 0:
            raw = bytes(self._held[:end])
            events.append(Event(raw, b"", raw.lstrip(_BEFORE)))
            del self._held[:end]
            self._at = 0
        self.between = not self._held
        if len(self._held) > MAX_EVENT:
            self._broken, self.between = True, False
            self._held.clear()
            if not events:
                raise _too_large()
        return events

    def rest(self) -> bytes:
        """The bytes after the last whole element; the splitter is empty afterwards."""
        rest = bytes(self._held)
        self._held.clear()
        self._at = 0
        return rest

    def _one(self) -> Event | None:
        """All that is held as one element, if it is one; white space behind it stays."""
        raw = bytes(self._held).rstrip()
        data = raw.lstrip(_BETWEEN)
        if len(raw) > MAX_EVENT or not (data.startswith(b"{") and data.endswith(b"}")):
            return None
        try:
            _ANYTHING.decode(data)
        except (msgspec.DecodeError, RecursionError):
            return None
        del self._held[: len(raw)]
        self._at = 0
        return Event(raw, b"", data)

    def _next_end(self) -> int:
        """Where the first element in `_held` ends; 0: not yet."""
        held = self._held
        while True:
            found = (_IN_TEXT if self._in_text else _OUTSIDE).search(held, self._at)
            if found is None:
                self._at = len(held)
                return 0
            mark, self._at = found.group(), found.end()
            if self._in_text:
                if mark == b'"':
                    self._in_text = False
                elif self._at == len(held):  # what is escaped is still to come
                    self._at -= 1
                    return 0
                else:
                    self._at += 1
            elif mark == b'"':
                self._in_text = True
            elif mark in b"{[":
                if mark == b"[" and not self._depth and not self._in_array:
                    self._in_array = True
                else:
                    self._depth += 1
            elif self._depth:
                self._depth -= 1
                if not self._depth:
                    return self._at
            elif mark == b"]":
                return self._at


def _too_large() -> StreamBroken:
    return StreamBroken(f"The provider sent an element of more than {MAX_EVENT} bytes.")
