"""OpenAI chat completions, as OpenAI and the many compatible providers speak it.

A reply's usage is its last usage object: on the chunk with `choices: []` that `include_usage` asks for, on the finish
chunk (DeepSeek, Mistral, OpenRouter), in `x_groq`, or cumulative on every chunk (vLLM, Perplexity). Never a sum. A stream
ends with `[DONE]`; providers with the quirk "no_done" end theirs with the chunk that carries a finish reason.

A chunk of an unknown shape is relayed and counts as content, because it may be: what was relayed cannot be called back.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tollkeeper.dialects.json_body import (
    read_count,
    read_field,
    read_flag,
    read_larger,
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
)
from tollkeeper.dialects.likeness import Likeness
from tollkeeper.dialects.openai_prompt import prompt_of
from tollkeeper.dialects.openai_wire import Counted, broken, read_others, read_usage, refusal
from tollkeeper.sse import Event
from tollkeeper.values import Ask, Part, Reading

__all__ = ["broken", "name", "path", "read_ask", "reducer", "refusal", "write_body"]

name: Final = "openai-chat"
path: Final = "/chat/completions"

MAX_CHOICES: Final = 128

_STREAM_OPTIONS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)
_TRUE: Final = msgspec.Raw(b"true")


def read_ask(body: bytes, target: str = "") -> Ask:
    """A request as an Ask. Raises BadRequest naming the field, or RequestTooLarge."""
    del target
    fields = read_object(body)
    cap = read_larger(fields, "max_completion_tokens", "max_tokens")
    choices = read_count(fields, "n", 1, MAX_CHOICES)
    stream = read_flag(fields, "stream")
    options = read_field(fields, "stream_options", _STREAM_OPTIONS, "an object") or {}
    model = read_model(fields)
    bound, plain = prompt_of(body, fields, model)
    return Ask(
        dialect=name,
        path=path,
        model=model,
        stream=stream,
        body=fields,
        prompt_bound=bound,
        plain=plain,
        output_cap=cap,
        choices=1 if choices is None else choices,
        wants_usage=read_flag(options, "include_usage"),
        user=read_text(fields, "user"),
        tier=read_text(fields, "service_tier"),
        others=read_others(fields),
    )


def write_body(ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
    """The body for a provider: every value byte for byte but the model, `include_usage`, and the cap if none was set.

    Quirks: "no_stream_options" (the provider refuses that member), "max_tokens" (it knows only the cap's older name).
    """
    fields = dict(ask.body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if ask.stream and not ask.wants_usage and "no_stream_options" not in quirks:
        options = _STREAM_OPTIONS.decode(fields.get("stream_options", b"null")) or {}
        options["include_usage"] = _TRUE
        fields["stream_options"] = msgspec.Raw(write_object(options))
    if ask.output_cap is None and output_cap is not None:
        fields["max_tokens" if "max_tokens" in quirks else "max_completion_tokens"] = msgspec.Raw(b"%d" % output_cap)
    return write_object(fields)


class _Choice(msgspec.Struct, gc=False):
    delta: dict[str, msgspec.Raw] | None = None
    finish_reason: msgspec.Raw = ABSENT


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | msgspec.UnsetType | None = msgspec.UNSET
    model: str | None = None
    usage: msgspec.Raw = ABSENT
    x_groq: msgspec.Raw = ABSENT
    service_tier: str | None = None
    error: msgspec.Raw = ABSENT


class _Groq(msgspec.Struct):
    usage: msgspec.Raw = ABSENT


class _Whole(msgspec.Struct):
    model: str | None = None
    usage: msgspec.Raw = ABSENT
    service_tier: str | None = None
    error: msgspec.Raw = ABSENT


_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_GROQ: Final = msgspec.json.Decoder(_Groq)
_WHOLE: Final = msgspec.json.Decoder(_Whole)
_NO_TEXT: Final = frozenset(("role",))
_NOTHING_SAID: Final = (msgspec.Raw(b"null"), msgspec.Raw(b'""'))
_UNASKED: Final = b',"usage":null'
_NULL_USAGE: Final = re.compile(rb'\s*,\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. `hide_usage`: the client did not ask for the usage that write_body asks for."""
    del stream
    return Reducer(hide_usage=hide_usage, quirks=quirks)


class Reducer:
    """Reads one reply, event by event or whole."""

    __slots__ = (
        "_absurd",
        "_counted",
        "_finished",
        "_hide",
        "_last",
        "_like",
        "_model",
        "_no_done",
        "_output_bytes",
        "_tier",
        "_unasked",
        "content",
        "ended",
        "error",
    )

    def __init__(self, *, hide_usage: bool, quirks: frozenset[str]) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._hide = hide_usage
        self._like = Likeness()
        self._unasked = False  # chunks like the last one have a `usage` to be hidden
        self._no_done = "no_done" in quirks
        self._absurd = False
        self._counted: Counted | None = None
        self._finished = False  # a finish reason was seen
        self._last = False  # the usage came with or after the finish
        self._model: str | None = None
        self._tier: str | None = None
        self._output_bytes = 0

    def event(self, event: Event) -> bytes | None:
        """Read one event; the bytes to relay for it, None to hide it."""
        data = event.data
        if not data:
            return event.raw
        if (relay := self.alike(event.raw)) is not None:
            return relay
        self._like.forget()
        if data.startswith(b"[DONE]"):
            self.ended = True
            return event.raw
        try:
            chunk = _chunk(data)
        except UNREADABLE:
            self._unknown(event)
            return event.raw
        choices = chunk.choices
        if choices:
            for choice in choices:
                if choice.delta and (size := generated_bytes(choice.delta, _NO_TEXT)):
                    self.content = True
                    self._output_bytes += size
                if len(choice.finish_reason) > 4:  # longer than null and ""
                    self._finished = True
        if chunk.model:
            self._model = chunk.model
        if chunk.service_tier:
            self._tier = chunk.service_tier
        if event.name or chunk.error is not ABSENT:
            failed = is_there(chunk.error) or event.name == b"error"
            if failed:
                self.error = error_label(chunk.error if len(chunk.error) else data)
        else:
            failed = False
        if chunk.x_groq is not ABSENT and is_there(usage := _groq_usage(chunk.x_groq)):
            self._count(usage, last=True)
        if chunk.usage is ABSENT:
            self._learn(event, chunk)
            return event.raw
        if is_there(chunk.usage):
            self._count(chunk.usage, last=self._finished or not choices)
            only_usage = not choices and choices is not msgspec.UNSET and not failed
            return None if self._hide and only_usage else event.raw
        self._learn(event, chunk)
        return _without_null_usage(event.raw) if self._hide else event.raw

    def alike(self, raw: bytes) -> bytes | None:
        """Read the bytes of an event that is like the one before; the bytes to relay for it, None: it is not."""
        size = self._like.text_bytes(raw)
        if size < 0:
            return None
        if size:
            self.content = True
            self._output_bytes += size
        return raw.replace(_UNASKED, b"", 1) if self._unasked else raw

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self.ended = self.content = True
        try:
            reply = _WHOLE.decode(body)
        except UNREADABLE:
            self._output_bytes = len(body)
            return
        self._model, self._tier = reply.model or None, reply.service_tier
        if is_there(reply.error):
            self.error = error_label(reply.error)
        if is_there(reply.usage):
            self._count(reply.usage, last=True)
        if self._counted is None:
            self._output_bytes = len(body)

    def reading(self) -> Reading:
        """What was read so far."""
        counted = self._counted
        return Reading(
            parts=() if counted is None else (Part(counted.usage, self._model),),
            model=self._model,
            tier=self._tier or (None if counted is None else counted.tier),
            reported_usd=None if counted is None else counted.reported_usd,
            final=counted is not None and (self._last or self.ended) and not self._absurd,
            inferred=self._absurd or (counted is not None and counted.inferred),
            ended=self.ended or (self._no_done and self._finished),
            output_bytes=self._output_bytes,
            error=self.error,
            note=ABSURD if self._absurd else None,
        )

    def _learn(self, event: Event, chunk: _Chunk) -> None:
        """The next chunk may be the same but for its text, if this one has one text and nothing else to say."""
        if not chunk.choices or len(chunk.choices) > 1 or chunk.x_groq is not ABSENT or chunk.error is not ABSENT:
            return
        if event.name:
            return
        choice = chunk.choices[0]
        if len(choice.finish_reason) > 4 or not choice.delta:
            return
        said = [value for name, value in choice.delta.items() if name not in _NO_TEXT and value not in _NOTHING_SAID]
        if len(said) == 1 and (text := bytes(said[0])).startswith(b'"'):
            self._unasked = self._hide and _UNASKED in event.raw
            if self._unasked or not self._hide or chunk.usage is ABSENT:
                self._like.learn(event, text)

    def _count(self, usage: msgspec.Raw, *, last: bool) -> None:
        """The latest usage object replaces the one before; one that cannot be believed replaces nothing."""
        try:
            counted = read_usage(usage)
        except UNREADABLE:
            self._absurd = True
            return
        if counted is not None:
            self._counted, self._last, self._absurd = counted, last, False

    def _unknown(self, event: Event) -> None:
        self.content = True
        self._output_bytes += len(event.data)
        if event.name == b"error":
            self.error = error_label(event.data)


def _without_null_usage(raw: bytes) -> bytes:
    """An unasked `"usage": null` cut out. Quotes inside JSON text are escaped, so no text matches."""
    cut = raw.replace(_UNASKED, b"", 1)
    return cut if len(cut) < len(raw) else _NULL_USAGE.sub(b"", raw, 1)


def _groq_usage(raw: msgspec.Raw) -> msgspec.Raw:
    try:
        return _GROQ.decode(raw).usage
    except UNREADABLE:
        return ABSENT
