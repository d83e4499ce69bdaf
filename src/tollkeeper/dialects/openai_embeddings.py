"""OpenAI embeddings: one JSON body, input tokens only."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tollkeeper.dialects.json_body import media_tokens, read_model, read_object, read_text, write_object
from tollkeeper.dialects.json_reply import ABSENT, ABSURD, UNREADABLE, error_label, is_there
from tollkeeper.dialects.openai_wire import IMAGE_TOKENS, Counted, broken, read_usage, refusal
from tollkeeper.sse import Event
from tollkeeper.values import Ask, Part, Reading

__all__ = ["broken", "name", "path", "read_ask", "reducer", "refusal", "write_body"]

name: Final = "openai-embeddings"
path: Final = "/embeddings"

_MEDIA: Final = ((b'"image', re.compile(rb'"image(?:_url)?"\s*:'), IMAGE_TOKENS),)


def read_ask(body: bytes, target: str = "") -> Ask:
    """A request as an Ask. Raises BadRequest naming the field, or RequestTooLarge.

    The prompt bound is the body's bytes: text has no more tokens, and a token given by number takes two bytes.
    """
    del target
    fields, media = read_object(body), media_tokens(body, _MEDIA)
    return Ask(
        dialect=name,
        path=path,
        model=read_model(fields),
        stream=False,
        body=fields,
        prompt_bound=len(body) + media,
        plain=not media,
        output_cap=0,
        generates=False,
        user=read_text(fields, "user"),
    )


def write_body(ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
    """The body for a provider: every value byte for byte but the model."""
    del output_cap, quirks
    return write_object(ask.body | {"model": msgspec.Raw(msgspec.json.encode(model))})


class _Whole(msgspec.Struct):
    model: str | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_WHOLE: Final = msgspec.json.Decoder(_Whole)


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply; embeddings are never streamed and their usage is never hidden."""
    del stream, hide_usage, quirks
    return Reducer()


class Reducer:
    """Reads one body."""

    __slots__ = ("_absurd", "_counted", "_model", "content", "ended", "error")

    def __init__(self) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._counted: Counted | None = None
        self._model: str | None = None

    def event(self, event: Event) -> bytes | None:
        """Nothing to read: relayed as it came."""
        self.content = True
        return event.raw

    def alike(self, raw: bytes) -> bytes | None:
        """Every event is read for itself."""
        return None

    def whole(self, body: bytes) -> None:
        """Read the body."""
        self.ended = self.content = True
        try:
            reply = _WHOLE.decode(body)
            self._model = reply.model or None
            if is_there(reply.error):
                self.error = error_label(reply.error)
            if is_there(reply.usage):
                self._absurd = True
                self._counted = read_usage(reply.usage)
                self._absurd = False
        except UNREADABLE:
            return

    def reading(self) -> Reading:
        """What was read so far."""
        counted = self._counted
        return Reading(
            parts=() if counted is None else (Part(counted.usage, self._model),),
            model=self._model,
            reported_usd=None if counted is None else counted.reported_usd,
            final=counted is not None,
            inferred=self._absurd or (counted is not None and counted.inferred),
            ended=self.ended,
            error=self.error,
            note=ABSURD if self._absurd else None,
        )
