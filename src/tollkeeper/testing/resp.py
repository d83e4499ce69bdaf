"""Where commands and replies end in a stream of the Redis protocol (RESP2 and RESP3), without keeping any of it."""

from __future__ import annotations

LONGEST_HEAD = 1 << 16
"""No type, length or simple string of Redis is longer; what is longer is no RESP."""


class Ends:
    """Takes the bytes of one direction as they come. Pushes are no replies: a frame that holds one is not counted."""

    def __init__(self) -> None:
        self._head = b""  # of a line that has not yet ended
        self._string = 0  # bytes of a string that are still to come, with their CRLF
        self._open: list[int] = []  # elements that are still to come, of each aggregate around the place
        self._push = False

    def feed(self, data: bytes) -> list[int]:
        """The places in `data` after which a command or a reply is whole."""
        ends: list[int] = []
        at = 0
        while at < len(data):
            if self._string:
                step = min(self._string, len(data) - at)
                at += step
                self._string -= step
                if self._string == 0:
                    self._element(at, ends)
                continue
            stop = data.find(b"\n", at)
            if stop < 0:
                self._head = (self._head + data[at:])[:LONGEST_HEAD]
                break
            head = self._head + data[at:stop]
            self._head = b""
            at = stop + 1
            if not self._opens(head[:1], head[1:].rstrip(b"\r")):
                self._element(at, ends)
        return ends

    def _opens(self, kind: bytes, length: bytes) -> bool:
        """Whether more belongs to the element that this line begins: -1 is null and 0 is empty."""
        if not length.isdigit():
            return False
        if kind in (b"$", b"=", b"!"):
            self._string = int(length) + 2
            return True
        if kind in (b"*", b"~", b">", b"%", b"|"):
            self._push |= kind == b">" and not self._open
            # A map has two elements a pair, and so have attributes, with the reply that follows and that they are about.
            count = int(length) * (2 if kind in (b"%", b"|") else 1) + (kind == b"|")
            if count:
                self._open.append(count)
            return count > 0
        return False

    def _element(self, at: int, ends: list[int]) -> None:
        """One is whole: so are those around it whose last one it was."""
        while self._open:
            self._open[-1] -= 1
            if self._open[-1]:
                return
            self._open.pop()
        if not self._push:
            ends.append(at)
        self._push = False
