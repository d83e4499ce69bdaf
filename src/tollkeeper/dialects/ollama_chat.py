"""Ollama's own chat and generate: metered where a caller has the reply, not spoken by the gateway.

A stream is a JSON object a line; the last one has `done` and the counts. A prompt that Ollama had read already may come without
`prompt_eval_count`: then the reading is not final, since what it does not say is not 0.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.dialects.json_reply import (
    ABSENT,
    ABSURD,
    UNREADABLE,
    Count,
    error_label,
    generated_bytes,
    is_there,
    known,
)
from tollkeeper.sse import Event
from tollkeeper.values import Part, Reading, Usage

name: Final = "ollama-chat"


class _Counts(msgspec.Struct):
    prompt_eval_count: Count | None = None
    eval_count: Count | None = None


class _Line(msgspec.Struct):
    model: str | None = None
    message: dict[str, msgspec.Raw] | None = None
    response: msgspec.Raw = ABSENT  #: of generate
    done: bool = False
    error: msgspec.Raw = ABSENT


_LINE: Final = msgspec.json.Decoder(_Line)
_COUNTS: Final = msgspec.json.Decoder(_Counts)
_NO_TEXT: Final = frozenset(("role",))


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden."""
    del stream, hide_usage, quirks
    return Reducer()


class Reducer:
    """Reads one reply: lines as events, or all of them as a body."""

    __slots__ = ("_absurd", "_counts", "_model", "_output_bytes", "content", "ended", "error")

    def __init__(self) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._counts: _Counts | None = None
        self._model: str | None = None
        self._output_bytes = 0

    def event(self, event: Event) -> bytes | None:
        """Read one event, which is a line's object; the bytes to relay for it."""
        if event.data:
            self._line(event.data)
        return event.raw

    def whole(self, body: bytes) -> None:
        """Read a body: one object, or a stream's lines."""
        for line in body.splitlines() if b"\n{" in body else (body,):
            if line.strip():
                self._line(line)
        self.content = True

    def reading(self) -> Reading:
        """What was read so far."""
        counts = self._counts
        stated = counts is not None and counts.prompt_eval_count is not None and counts.eval_count is not None
        usage = (
            None if counts is None else Usage(input=known(counts.prompt_eval_count), output=known(counts.eval_count))
        )
        return Reading(
            parts=() if usage is None else (Part(usage, self._model),),
            model=self._model,
            final=stated,
            inferred=self._absurd,
            ended=self.ended,
            output_bytes=self._output_bytes,
            error=self.error,
            note=ABSURD if self._absurd else None,
        )

    def _line(self, data: bytes) -> None:
        try:
            line = _LINE.decode(data)
        except UNREADABLE:
            self._generated(len(data))
            return
        self._model = line.model or self._model
        if is_there(line.error):
            self.error = error_label(line.error)
        self._generated(generated_bytes(line.message or {}, _NO_TEXT) + max(0, len(line.response) - 2))
        if line.done:
            self.ended = True
            try:
                counts = _COUNTS.decode(data)
            except UNREADABLE:
                self._absurd = True
                return
            if counts.prompt_eval_count is not None or counts.eval_count is not None:
                self._counts = counts

    def _generated(self, size: int) -> None:
        if size:
            self.content = True
            self._output_bytes += size
