"""Cohere's own chat (v2): metered where a caller has the reply, not spoken by the gateway.

What is billed stands in `usage.billed_units`; `usage.tokens` and `cached_tokens` count what the model saw, its template
included, and cost nothing. A stream tells its usage in `message-end`, which is its end.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.dialects.json_reply import ABSENT, ABSURD, UNREADABLE, Count, error_label, is_there, known
from tollkeeper.sse import Event
from tollkeeper.values import Part, Reading, Usage

name: Final = "cohere-chat"
provider: Final = "cohere"


class _Units(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class _Wire(msgspec.Struct):
    billed_units: _Units | None = None
    tokens: _Units | None = None


class _Delta(msgspec.Struct):
    message: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT


class _Chunk(msgspec.Struct):
    type: str = ""
    delta: _Delta | None = None


class _Whole(msgspec.Struct):
    usage: msgspec.Raw = ABSENT
    finish_reason: msgspec.Raw = ABSENT


_WIRE: Final = msgspec.json.Decoder(_Wire)
_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_WHOLE: Final = msgspec.json.Decoder(_Whole)


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden."""
    del stream, hide_usage, quirks
    return Reducer()


class Reducer:
    """Reads one reply, event by event or whole."""

    __slots__ = ("_absurd", "_output_bytes", "_usage", "content", "ended", "error")

    def __init__(self) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._output_bytes = 0
        self._usage: Usage | None = None

    def event(self, event: Event) -> bytes | None:
        """Read one event; the bytes to relay for it."""
        if not event.data or event.data.startswith(b"[DONE]"):
            return event.raw
        try:
            chunk = _CHUNK.decode(event.data)
        except UNREADABLE:
            self._generated(len(event.data))
            return event.raw
        if event.name == b"error" or chunk.type == "error":
            self.error = error_label(event.data)
        elif chunk.type == "message-end":
            self.ended = True
            self._count(chunk.delta.usage if chunk.delta is not None else ABSENT)
        elif chunk.type.endswith("-delta") and chunk.delta is not None:  # content, tool plan and tool calls
            self._generated(len(chunk.delta.message))
        return event.raw

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self.ended = self.content = True
        try:
            reply = _WHOLE.decode(body)
        except UNREADABLE:
            self._output_bytes = len(body)
            return
        if not is_there(reply.usage) and not is_there(reply.finish_reason):
            self.error = error_label(body)
        self._count(reply.usage)
        if self._usage is None:
            self._output_bytes = len(body)

    def reading(self) -> Reading:
        """What was read so far; no reply names its model."""
        return Reading(
            parts=() if self._usage is None else (Part(self._usage),),
            final=self._usage is not None,
            inferred=self._absurd,
            ended=self.ended,
            output_bytes=self._output_bytes,
            error=self.error,
            note=ABSURD if self._absurd else None,
        )

    def _generated(self, size: int) -> None:
        if size:
            self.content = True
            self._output_bytes += size

    def _count(self, usage: msgspec.Raw) -> None:
        if not is_there(usage):
            return
        try:
            wire = _WIRE.decode(usage)
        except UNREADABLE:
            self._absurd = True
            return
        billed = wire.billed_units or wire.tokens
        if billed is not None and (billed.input_tokens is not None or billed.output_tokens is not None):
            self._usage = Usage(input=known(billed.input_tokens), output=known(billed.output_tokens))
