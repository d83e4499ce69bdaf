"""Anthropic messages.

A stream's usage is an overlay: `message_start` gives the base, and every member that is present and not null in a
`message_delta` replaces it. `output_tokens` is never added up, and the split of cache writes by lifetime stands in the
start alone. The first `message_start` counts; a repeated one adds nothing. A stream ends with `message_stop`, refused or not.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.dialects.anthropic_prompt import prompt_of
from tollkeeper.dialects.anthropic_usage import read_parts, read_wire
from tollkeeper.dialects.json_body import (
    read_count,
    read_field,
    read_flag,
    read_model,
    read_object,
    read_text,
    write_object,
)
from tollkeeper.dialects.json_reply import (
    ABSENT,
    ABSURD,
    UNREADABLE,
    error_label,
    generated_bytes,
    is_there,
    read_members,
    refusal_numbers,
)
from tollkeeper.dialects.likeness import Likeness
from tollkeeper.errors import BadRequest, TollkeeperError
from tollkeeper.sse import Event
from tollkeeper.values import Ask, Reading

name: Final = "anthropic-messages"
path: Final = "/messages"
COUNT_PATH: Final = "/messages/count_tokens"

_ERROR_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


class _Metadata(msgspec.Struct):
    user_id: str | None = None


_METADATA: Final = msgspec.json.Decoder(_Metadata | None)


def read_ask(body: bytes, target: str = "") -> Ask:
    """A request as an Ask. Raises BadRequest naming the field, or RequestTooLarge."""
    fields = read_object(body)
    model, cap = read_model(fields), read_count(fields, "max_tokens")
    counting = target.partition("?")[0].endswith(COUNT_PATH)
    if cap is None and not counting:
        raise BadRequest("max_tokens: this dialect needs it; give the most tokens that the reply may have.")
    metadata = read_field(fields, "metadata", _METADATA, "an object with user_id as text")
    bound, plain = prompt_of(body, fields)
    return Ask(
        dialect=name,
        path=COUNT_PATH if counting else path,
        free=counting,
        model=model,
        stream=read_flag(fields, "stream"),
        body=fields,
        prompt_bound=bound,
        plain=plain,
        output_cap=cap,
        user=None if metadata is None else metadata.user_id,
        tier=read_text(fields, "service_tier"),
        speed=read_text(fields, "speed"),
        geo=read_text(fields, "inference_geo"),
    )


def write_body(ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
    """The body for a provider: every value byte for byte but the model, and the cap where none was set."""
    del quirks
    fields = ask.body | {"model": msgspec.Raw(msgspec.json.encode(model))}
    if ask.output_cap is None and output_cap is not None:
        fields["max_tokens"] = msgspec.Raw(b"%d" % output_cap)
    return write_object(fields)


class _Message(msgspec.Struct):
    model: str | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _Chunk(msgspec.Struct, gc=False):
    type: str = ""
    delta: msgspec.Raw = ABSENT
    content_block: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_MESSAGE: Final = msgspec.json.Decoder(_Message)
_NO_TEXT: Final = frozenset(("type", "signature"))


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden."""
    del stream, hide_usage, quirks
    return Reducer()


class Reducer:
    """Reads one reply, event by event or whole."""

    __slots__ = ("_absurd", "_delta", "_like", "_model", "_output_bytes", "_overlay", "content", "ended", "error")

    def __init__(self) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._like = Likeness()
        self._delta = False  # a later count than message_start's was read
        self._model: str | None = None
        self._output_bytes = 0
        self._overlay: dict[str, msgspec.Raw] = {}

    def event(self, event: Event) -> bytes | None:
        """Read one event; the bytes to relay for it."""
        data = event.data
        if not data or self.alike(event.raw) is not None:
            return event.raw
        try:
            chunk = _chunk(data)
        except UNREADABLE:
            self._generated(len(data))
            if event.name == b"error":
                self.error = error_label(data)
            return event.raw
        match chunk.type or event.name.decode("latin-1"):
            case "content_block_delta":
                self._generate(event, chunk)
            case "content_block_start":
                self._start_block(chunk.content_block)
            case "message_start":
                self._start(chunk.message)
            case "message_delta":
                self._delta = self._lay(chunk.usage) or self._delta
            case "message_stop":
                self.ended = True
            case "error":
                self.error = error_label(chunk.error)
            case _:  # ping, content_block_stop, and what may come
                pass
        return event.raw

    def alike(self, raw: bytes) -> bytes | None:
        """Read the bytes of an event that is like the one before; None: it is not."""
        size = self._like.text_bytes(raw)
        if size < 0:
            return None
        if size:
            self.content = True
            self._output_bytes += size
        return raw

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self.ended = self.content = True
        try:
            message = _MESSAGE.decode(body)
        except UNREADABLE:
            self._output_bytes = len(body)
            return
        self._model = message.model or None
        if is_there(message.error):
            self.error = error_label(message.error)
        self._delta = self._lay(message.usage)
        if not self._delta:
            self._output_bytes = len(body)

    def reading(self) -> Reading:
        """What was read so far."""
        note = ABSURD if self._absurd else None
        if not self._overlay:
            return Reading(
                model=self._model,
                inferred=self._absurd,
                ended=self.ended,
                output_bytes=self._output_bytes,
                error=self.error,
                note=note,
            )
        wire = read_wire(msgspec.json.encode(self._overlay))
        parts, inferred = read_parts(wire, self._model)
        return Reading(
            parts=parts,
            model=self._model,
            tier=wire.service_tier,
            speed=wire.speed,
            geo=wire.inference_geo,
            final=self._delta and not self._absurd,
            inferred=inferred or self._absurd,
            ended=self.ended,
            output_bytes=self._output_bytes,
            error=self.error,
            note=note,
        )

    def _generated(self, size: int) -> None:
        if size:
            self.content = True
            self._output_bytes += size

    def _generate(self, event: Event, chunk: _Chunk) -> None:
        """A delta. The next one may be the same but for its text, if this one has one text, and says itself what it is."""
        delta = read_members(chunk.delta)
        self._generated(generated_bytes(delta, _NO_TEXT))
        said = [bytes(value) for member, value in delta.items() if member not in _NO_TEXT]
        if len(said) == 1 and said[0].startswith(b'"') and chunk.type:
            self._like.learn(event, said[0])

    def _start_block(self, raw: msgspec.Raw) -> None:
        """A block that opens with content: a tool's call, a redacted thought. A tool's result was not generated."""
        block = read_members(raw)
        size = generated_bytes(block, _NO_TEXT)
        if bytes(block.get("type", b"")).endswith(b'_result"'):
            self.content = True
        else:
            self._generated(size)

    def _start(self, raw: msgspec.Raw) -> None:
        if self._model is not None or self._overlay:
            return
        try:
            message = _MESSAGE.decode(raw)
        except UNREADABLE:
            return
        self._model = message.model or None
        self._lay(message.usage)

    def _lay(self, usage: msgspec.Raw) -> bool:
        """Lay a usage object over the one so far; one that cannot be believed changes nothing. True if it counted."""
        if not is_there(usage):
            return False
        try:
            wire = read_wire(usage)
        except UNREADABLE:
            self._absurd = True
            return False
        if wire.input_tokens is None and wire.output_tokens is None:
            return False
        self._overlay.update((key, value) for key, value in read_members(usage).items() if is_there(value))
        self._absurd = False
        return True


def refusal(error: TollkeeperError, request_id: str) -> bytes:
    """The body of a refused or failed call, as Anthropic shapes errors, with a budget's numbers beside."""
    return msgspec.json.encode({"type": "error", "error": _error(error), "request_id": request_id})


def broken(error: TollkeeperError, request_id: str, ask: Ask | None = None) -> bytes:
    """The event that ends a stream which broke after content; no message_stop follows it."""
    del ask
    return b"event: error\ndata: " + refusal(error, request_id) + b"\n\n"


def _error(error: TollkeeperError) -> dict[str, object]:
    kind = _ERROR_TYPES.get(error.http_status) or ("invalid_request_error" if error.http_status < 500 else "api_error")
    return {"type": kind, "message": str(error), "code": error.code, **refusal_numbers(error)}
