"""Amazon Bedrock's Converse and ConverseStream: metered where a caller has the reply, not spoken by the gateway.

Input, cache reads and cache writes stand apart on this wire already; `cacheDetails` splits the writes by lifetime. A stream's
usage is in its last event, `metadata`, which is its end marker. An event comes as an AWS message, which names it, or as SDKs
decode it: an object whose one member is named after the event. The model stands in the request's path alone: no reply
names it.
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
    read_members,
)
from tollkeeper.sse import Event
from tollkeeper.values import MAX_TOKENS, Part, Reading, Usage

name: Final = "bedrock-converse"
provider: Final = "bedrock"
"""Who alone speaks it: its prices differ by region from those of the models' owners."""


class _Write(msgspec.Struct, rename="camel"):
    ttl: str = ""
    input_tokens: Count = 0


class _Wire(msgspec.Struct, rename="camel"):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    total_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_write_input_tokens: Count | None = None
    cache_details: list[_Write] | None = None


class _Type(msgspec.Struct):
    type: str | None = None


class _Performance(msgspec.Struct):
    latency: str | None = None


class _Metadata(msgspec.Struct, rename="camel"):
    """What `metadata` and a whole body have in common."""

    usage: msgspec.Raw = ABSENT
    service_tier: _Type | None = None
    performance_config: _Performance | None = None


class _Body(_Metadata, rename="camel"):
    output: msgspec.Raw = ABSENT


class _Delta(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    start: dict[str, msgspec.Raw] | None = None


_WIRE: Final = msgspec.json.Decoder(_Wire)
_METADATA: Final = msgspec.json.Decoder(_Metadata)
_BODY: Final = msgspec.json.Decoder(_Body)
_DELTA: Final = msgspec.json.Decoder(_Delta)
_NESTED: Final = frozenset(("reasoningContent",))
_NO_TEXT: Final = frozenset(("signature",))


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden."""
    del stream, hide_usage, quirks
    return Reducer()


class Reducer:
    """Reads one reply, event by event or whole."""

    __slots__ = ("_absurd", "_inferred", "_output_bytes", "_speed", "_tier", "_usage", "content", "ended", "error")

    def __init__(self) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._inferred = False
        self._output_bytes = 0
        self._speed: str | None = None
        self._tier: str | None = None
        self._usage: Usage | None = None

    def event(self, event: Event) -> bytes | None:
        """Read one event; the bytes to relay for it."""
        if event.name == b"error":
            self.error = error_label(event.data)
        elif event.name:
            self._event(event.name.decode("latin-1"), event.data)
        elif members := read_members(event.data):
            for kind, value in members.items():
                self._event(kind, value)
        else:
            self._generated(len(event.data))
        return event.raw

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self.ended = self.content = True
        try:
            reply = _BODY.decode(body)
        except UNREADABLE:
            self._output_bytes = len(body)
            return
        if not is_there(reply.output) and not is_there(reply.usage):
            self.error = _body_error(read_members(body))
        self._count(reply)
        if self._usage is None:
            self._output_bytes = len(body)

    def reading(self) -> Reading:
        """What was read so far."""
        return Reading(
            parts=() if self._usage is None else (Part(self._usage),),
            tier=self._tier,
            speed=self._speed,
            final=self._usage is not None and not self._absurd,
            inferred=self._inferred or self._absurd,
            ended=self.ended,
            output_bytes=self._output_bytes,
            error=self.error,
            note=ABSURD if self._absurd else None,
        )

    def _event(self, kind: str, value: bytes) -> None:
        match kind:
            case "contentBlockDelta" | "contentBlockStart":
                try:
                    block = _DELTA.decode(value)
                except UNREADABLE:
                    self._generated(len(value))
                else:
                    self._generated(_text_bytes(block.delta) + _text_bytes(block.start))
            case "metadata":
                self.ended = True
                try:
                    self._count(_METADATA.decode(value))
                except UNREADABLE:
                    self._absurd = True
            case _ if kind.endswith("Exception"):  # as SDKs decode it
                self.error = kind
            case _:  # messageStart, contentBlockStop, messageStop, and what may come
                pass

    def _generated(self, size: int) -> None:
        if size:
            self.content = True
            self._output_bytes += size

    def _count(self, told: _Metadata) -> None:
        """The latest usage object replaces the one before; one that cannot be believed replaces nothing."""
        if told.service_tier is not None and told.service_tier.type:
            self._tier = told.service_tier.type
        if told.performance_config is not None and told.performance_config.latency:
            self._speed = told.performance_config.latency
        if not is_there(told.usage):
            return
        try:
            wire = _WIRE.decode(told.usage)
            if wire.input_tokens is None and wire.output_tokens is None:
                return
            self._usage, self._inferred = _read_usage(wire)
        except UNREADABLE:
            self._absurd = True
        else:
            self._absurd = False


def _read_usage(wire: _Wire) -> tuple[Usage, bool]:
    """Counts in disjoint kinds, and whether something had to be inferred. Raises as a decoder does for an absurd sum."""
    writes = wire.cache_details or []
    split, long = (
        sum(each.input_tokens for each in writes),
        sum(each.input_tokens for each in writes if each.ttl == "1h"),
    )
    if split > MAX_TOKENS:
        raise msgspec.ValidationError
    written = split if wire.cache_write_input_tokens is None else wire.cache_write_input_tokens
    usage = Usage(
        input=_known(wire.input_tokens),
        cache_read=_known(wire.cache_read_input_tokens),
        cache_write_5m=max(0, written - long),  # what the split does not explain has the usual lifetime
        cache_write_1h=min(long, written),
        output=_known(wire.output_tokens),
    )
    agree = wire.total_tokens is None or wire.total_tokens == usage.tokens
    return usage, wire.input_tokens is None or written < split or not agree


def _known(count: int | None) -> int:
    return 0 if count is None else count


def _text_bytes(members: dict[str, msgspec.Raw] | None) -> int:
    """Bytes that bound the text of a delta; a thought's signature was not generated."""
    if members is None:
        return 0
    thought = read_members(members.get("reasoningContent", ABSENT))
    return generated_bytes(members, _NESTED) + generated_bytes(thought, _NO_TEXT)


def _body_error(members: dict[str, msgspec.Raw]) -> str | None:
    """The error in a body without a reply: the service's `message`, or `Error` as the AWS SDK for Python has it."""
    code = read_members(members.get("Error", ABSENT)).get("Code", ABSENT)
    for value in (code, *(members.get(key, ABSENT) for key in ("__type", "message", "Message"))):
        if is_there(value):
            return error_label(value)
    return None
