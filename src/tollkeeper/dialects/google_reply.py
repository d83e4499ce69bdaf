"""Reads Google's replies: chunks of generateContent, whole or streamed, embeddings and token counts.

Each chunk repeats the usage so far: the last one counts, never a sum, and it is final once every candidate has its finish
reason, and no error follows. An event stream has no other end than that reason, an array ends with its bracket. A count that
shrank on the way is taken as it is last given, and marked as inferred.

A prompt that was blocked has no candidates; its usage is what the reply states.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tollkeeper.dialects.google_usage import Wire, read_tier, read_usage, searches_charged
from tollkeeper.dialects.json_reply import (
    ABSENT,
    ABSURD,
    UNREADABLE,
    error_label,
    generated_bytes,
    is_there,
    read_members,
)
from tollkeeper.dialects.likeness import Likeness
from tollkeeper.sse import Event
from tollkeeper.values import Part, Reading

MAX_QUERIES: Final = 1_000
"""Distinct searches of one call that are counted."""
DRAWN_MOST: Final = 32_768
"""Of an image or a recording inside a reply, at most: the longest output of the models that make them."""

_Index = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class _Content(msgspec.Struct, gc=False):
    parts: list[dict[str, msgspec.Raw]] | None = None


class _Candidate(msgspec.Struct, rename="camel", gc=False):
    content: _Content | None = None
    finish_reason: str | int | None = None
    index: _Index = 0
    grounding_metadata: msgspec.Raw = ABSENT


class _Feedback(msgspec.Struct, rename="camel", gc=False):
    block_reason: str | int | None = None


class _Chunk(msgspec.Struct, rename="camel", gc=False):
    candidates: list[_Candidate] | None = None
    model_version: str | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _Grounding(msgspec.Struct, rename="camel"):
    web_search_queries: list[str] | None = None


_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_wire: Final = msgspec.json.Decoder(Wire).decode
_GROUNDING: Final = msgspec.json.Decoder(_Grounding)
#: Members of a part that the model did not generate as text: signatures, marks, results of tools; media count apart.
_NO_TEXT: Final = frozenset((
    "thought", "thoughtSignature", "videoMetadata", "partMetadata", "mediaResolution", "inlineData",
    "codeExecutionResult", "toolResponse", "functionResponse",
))  # fmt: skip
_SHOWN: Final = frozenset(("inlineData", "codeExecutionResult", "toolResponse"))


class Reducer:
    """Reads one reply, chunk by chunk or whole."""

    __slots__ = (
        "_absurd",
        "_blocked",
        "_done",
        "_last",
        "_like",
        "_model",
        "_most_said",
        "_most_thought",
        "_output_bytes",
        "_queries",
        "_seen",
        "_wire",
        "content",
        "ended",
        "error",
    )

    def __init__(self) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._blocked = False  # the prompt was: there will be no candidate
        self._like = Likeness()
        self._seen: set[int] = set()  # candidates
        self._done: set[int] = set()  # candidates with a finish reason
        self._last = False  # the usage came with or after the finish, and no error after it
        self._model: str | None = None
        self._most_said = 0  # the most tokens that any chunk stated
        self._most_thought = 0
        self._output_bytes = 0
        self._queries: set[str] = set()
        self._wire: Wire | None = None

    def event(self, event: Event) -> bytes | None:
        """Read one event, or one element of an array; the bytes to relay for it."""
        data = event.data
        if data == b"]":
            self.ended = True
        elif data and self.alike(event.raw) is None:
            chunk = self._read(data)
            self._like.forget()
            if chunk is not None:
                self._learn(event, chunk)
        return event.raw

    def alike(self, raw: bytes) -> bytes | None:
        """Read the bytes of a chunk that is like the one before but for its text and its usage; None: it is not."""
        like = self._like
        size = like.text_bytes(raw)
        if size < 0:
            return None
        if like.value is not None:
            try:
                self._count(_wire(like.value))
            except UNREADABLE:
                return None
        if size:
            self.content = True
            self._output_bytes += size
        return raw

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self._read(body)
        self.ended = self.content = True
        if not self._is_stated():
            self._output_bytes = len(body)

    def reading(self) -> Reading:
        """What was read so far."""
        wire, inferred, thoughts = self._wire, False, 0
        parts: tuple[Part, ...] = ()
        model = None if self._model is None else self._model.removeprefix("models/")
        stated = self._is_stated()
        if wire is not None and stated:
            usage, inferred = read_usage(wire, searches_charged(len(self._queries), model))
            thoughts = usage.reasoning
            inferred = inferred or thoughts < self._most_thought
            inferred = inferred or usage.output_tokens - thoughts < self._most_said
            parts = (Part(usage, model),)
        return Reading(
            parts=parts,
            model=model,
            tier=None if wire is None else read_tier(wire),
            final=stated and (self._last or (self.ended and self.error is None)) and not self._absurd,
            inferred=inferred or self._absurd,
            ended=self.ended or self._is_finished(),
            output_bytes=self._output_bytes + thoughts,  # thoughts are not shown: what is seen does not bound them
            error=self.error,
            note=ABSURD if self._absurd else None,
        )

    def _read(self, data: bytes) -> _Chunk | None:
        try:
            chunk = _chunk(data)
        except UNREADABLE:
            self.content = True
            self._output_bytes += len(data)
            return None
        if chunk.candidates:
            for candidate in chunk.candidates:
                self._candidate(candidate)
        if chunk.model_version:
            self._model = chunk.model_version
        if chunk.prompt_feedback is not None and _is_reason(chunk.prompt_feedback.block_reason):
            self._blocked = True
        if is_there(chunk.usage_metadata):
            try:
                self._count(_wire(chunk.usage_metadata))
            except UNREADABLE:
                self._absurd = True
        if len(chunk.error) and is_there(chunk.error):
            self.error, self._last = _error_label(chunk.error), False  # other candidates may have been under way
        return chunk

    def _learn(self, event: Event, chunk: _Chunk) -> None:
        """The next chunk may be the same but for text and usage, if this one has one text and no more to say."""
        if not chunk.candidates or len(chunk.candidates) > 1 or len(chunk.error):
            return
        if b"[" in event.raw[: event.raw.find(b"{")]:  # what opens an array is like no other
            return
        candidate = chunk.candidates[0]
        parts = None if candidate.content is None else candidate.content.parts
        if not parts or len(parts) > 1 or candidate.finish_reason is not None or len(candidate.grounding_metadata):
            return
        said = [bytes(value) for member, value in parts[0].items() if member not in _NO_TEXT]
        if len(said) == 1 and said[0].startswith(b'"') and _SHOWN.isdisjoint(parts[0]):
            self._like.learn(event, said[0], bytes(chunk.usage_metadata) or None)

    def _candidate(self, candidate: _Candidate) -> None:
        content = candidate.content
        if content is not None and content.parts:
            for part in content.parts:
                size = generated_bytes(part, _NO_TEXT)
                if "inlineData" in part:
                    size += min(len(part["inlineData"]), DRAWN_MOST)
                if size:
                    self.content = True
                    self._output_bytes += size
                elif not _SHOWN.isdisjoint(part):
                    self.content = True
        self._seen.add(candidate.index)
        if candidate.finish_reason is not None and _is_reason(candidate.finish_reason):
            self._done.add(candidate.index)
        if len(candidate.grounding_metadata):
            self._search(candidate.grounding_metadata)

    def _count(self, wire: Wire) -> None:
        """The latest usage replaces the one before; one that states nothing replaces nothing."""
        if self._wire is not None and wire.prompt_token_count is None and not wire.counts:
            return
        self._wire, self._last, self._absurd = wire, self._is_finished(), False
        if wire.candidates_token_count is not None and wire.candidates_token_count > self._most_said:
            self._most_said = wire.candidates_token_count
        if wire.thoughts_token_count is not None and wire.thoughts_token_count > self._most_thought:
            self._most_thought = wire.thoughts_token_count

    def _search(self, raw: msgspec.Raw) -> None:
        """Queries that ran: charged once each, however often they are told; empty ones are not."""
        try:
            queries = _GROUNDING.decode(raw).web_search_queries
        except UNREADABLE:
            return
        for query in queries or ():
            if query and len(self._queries) < MAX_QUERIES:
                self._queries.add(query)

    def _is_stated(self) -> bool:
        """The reply states its usage. A count of 0 is left out on this wire: a blocked prompt may state nothing else."""
        return self._wire is not None and (self._wire.counts or self._blocked)

    def _is_finished(self) -> bool:
        """Nothing more is generated: every candidate has its finish reason, or the prompt was blocked."""
        return self._blocked or (bool(self._done) and self._done == self._seen)


def _is_reason(reason: str | int | None) -> bool:
    return bool(reason) and not (isinstance(reason, str) and reason.endswith("_UNSPECIFIED"))


def _error_label(raw: msgspec.Raw) -> str:
    """An error's status, as Google names it, before its code."""
    status = read_members(raw).get("status", ABSENT)
    return error_label(b'{"type":%b}' % bytes(status)) if is_there(status) else error_label(raw)
