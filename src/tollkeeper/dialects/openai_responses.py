"""OpenAI responses, as OpenAI, Azure, DeepSeek, xAI and OpenRouter speak it.

A reply is one `response` object: the whole body, or inside a stream's events. Its usage is null until the event that ends
the stream: completed, incomplete, failed or cancelled. Searches, containers and images are billed beside the tokens and are
counted once, in that last object: by the provider's own count where it states one, else by the items of `output`.

A response that failed before anything was generated costs nothing; one that failed later and tells no usage is estimated.
Content is text that was seen, because that is what bounds an estimate: a thought or an image that leaves no text behind is
none, and then the hold's own bound counts. So it does where there was reasoning of which a summary or nothing was told.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec

from tollkeeper.dialects.json_body import (
    read_count,
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
)
from tollkeeper.dialects.openai_responses_prompt import prompt_of
from tollkeeper.dialects.openai_responses_usage import Response, read_response, read_spent
from tollkeeper.dialects.openai_wire import read_others, refusal, shown_error
from tollkeeper.errors import BadRequest, TollkeeperError
from tollkeeper.sse import Event
from tollkeeper.values import Ask, Part, Reading, Usage

__all__ = ["broken", "name", "path", "read_ask", "reducer", "refusal", "write_body"]

name: Final = "openai-responses"
path: Final = "/responses"


def read_ask(body: bytes, target: str = "") -> Ask:
    """A request as an Ask. Raises BadRequest naming the field, or RequestTooLarge."""
    del target
    fields = read_object(body)
    stream = read_flag(fields, "stream")
    if read_flag(fields, "background") and not stream:
        raise BadRequest(
            "background: without stream the reply ends where this gateway does not see what it used; "
            "set stream to true, or leave background out."
        )
    asked = fields.get("input")
    if asked is not None and bytes(asked)[:1] not in (b'"', b"[") and is_there(asked):
        raise BadRequest("input: expected text or a list of items.")
    bound, plain = prompt_of(body, fields)
    return Ask(
        dialect=name,
        path=path,
        model=read_model(fields),
        stream=stream,
        body=fields,
        prompt_bound=bound,
        plain=plain,
        output_cap=read_count(fields, "max_output_tokens"),
        user=read_text(fields, "user") or read_text(fields, "safety_identifier"),
        tier=read_text(fields, "service_tier"),
        others=read_others(fields),
    )


def write_body(ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
    """The body for a provider: every value byte for byte but the model, and the cap where none was set."""
    del quirks
    fields = ask.body | {"model": msgspec.Raw(msgspec.json.encode(model))}
    if ask.output_cap is None and output_cap is not None:
        fields["max_output_tokens"] = msgspec.Raw(b"%d" % output_cap)
    return write_object(fields)


class _Chunk(msgspec.Struct, gc=False):
    type: str = ""
    delta: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT
    item: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


_chunk: Final = msgspec.json.Decoder(_Chunk).decode
_NOT_GENERATED: Final = frozenset((
    "type", "id", "status", "role", "result", "results", "output", "outputs", "tools", "container_id",
))  # fmt: skip
"""Members of an item that name it or that a tool brought."""
_ENDS: Final = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled"))
_REASONING_ITEM: Final = b'"reasoning"'
_FRAMES: Final = (b'"message"', _REASONING_ITEM)
"""Items that open empty."""


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden.

    Quirk "every_search_item": the provider bills each item of a search, also one that only opened a page.
    """
    del stream, hide_usage
    return Reducer(every_search_item="every_search_item" in quirks)


class Reducer:
    """Reads one reply, event by event or whole."""

    __slots__ = (
        "_absurd",
        "_assumed",
        "_begun",
        "_done_bytes",
        "_every_search_item",
        "_inferred",
        "_model",
        "_open_bytes",
        "_parts",
        "_reported_usd",
        "_tier",
        "_unseen",
        "content",
        "ended",
        "error",
    )

    def __init__(self, *, every_search_item: bool) -> None:
        self.ended = False
        self.content = False
        self.error: str | None = None
        self._absurd = False
        self._assumed = False
        self._begun = False  # something was generated or done, also where none of it can be seen
        self._done_bytes = 0  # of finished items
        self._every_search_item = every_search_item
        self._inferred = False
        self._model: str | None = None
        self._open_bytes = 0  # of deltas since the last finished item
        self._parts: tuple[Part, ...] = ()
        self._reported_usd: Decimal | None = None
        self._tier: str | None = None
        self._unseen = False  # there was reasoning, and its text was not sent

    def event(self, event: Event) -> bytes | None:
        """Read one event; the bytes to relay for it."""
        data = event.data
        if not data:
            return event.raw
        try:
            chunk = _chunk(data)
        except UNREADABLE:
            if not data.startswith(b"[DONE]"):
                self._unknown(event)
            return event.raw
        if chunk.delta is not ABSENT and chunk.response is ABSENT:
            if (size := len(chunk.delta) - 2) > 0 and is_there(chunk.delta):
                self.content = True
                self._open_bytes += size
                if self._unseen and chunk.type == "response.reasoning_text.delta":
                    self._unseen = False
            return event.raw
        kind = chunk.type or event.name.decode("latin-1")
        if kind == "error" or is_there(chunk.error):
            self.error = _label(chunk.error, data)
            return event.raw
        match kind:
            case "response.output_item.added":
                opened = bytes(read_members(chunk.item).get("type", b""))
                self._begun = self._begun or opened not in _FRAMES
                self._unseen = self._unseen or opened == _REASONING_ITEM
            case "response.output_item.done":
                self._finish_item(read_members(chunk.item))
            case _ if kind in _ENDS:
                self.ended = True
                self._finish(chunk.response, kind.removeprefix("response."))
            case "response.created" | "response.in_progress" | "response.queued":
                self._begin(chunk.response)
            case "response.image_generation_call.partial_image":
                self._begun = True
            case _ if kind.endswith(".done"):
                self._begun = True
            case _:  # a tool's progress, annotations, empty parts, and what may come
                pass
        return event.raw

    def alike(self, raw: bytes) -> bytes | None:
        """No two events are alike: each has its number."""
        return None

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self._finish(body, None)
        self.ended = self.content = True
        if not self._parts:
            self._open_bytes = len(body)
            self._unseen = _REASONING_ITEM in body

    def reading(self) -> Reading:
        """What was read so far."""
        return Reading(
            parts=self._parts,
            model=self._model,
            tier=self._tier,
            reported_usd=self._reported_usd,
            final=bool(self._parts) and not self._absurd,
            inferred=self._absurd or self._inferred,
            assumed=self._assumed,
            ended=self.ended,
            output_bytes=self._done_bytes + self._open_bytes,
            unseen=self._unseen,
            error=self.error,
            note=ABSURD if self._absurd else None,
        )

    def _begin(self, raw: msgspec.Raw) -> None:
        """What a stream that breaks leaves behind: the model, and the tier if it is decided already."""
        if self._model is not None:
            return
        try:
            response = read_response(raw)
        except UNREADABLE:
            return
        self._model = response.model or None
        self._tier = response.service_tier if response.service_tier != "auto" else None

    def _finish_item(self, item: dict[str, msgspec.Raw]) -> None:
        """An item counts by its deltas or as it stands, whichever is more: reasoning may come sealed and without deltas."""
        self._begun = True
        self._done_bytes += max(self._open_bytes, generated_bytes(item, _NOT_GENERATED))
        self._open_bytes = 0
        self.content = self.content or self._done_bytes > 0

    def _finish(self, raw: msgspec.Raw | bytes, status: str | None) -> None:
        """Read the last response object: of the event `status`, or a whole body, which says its own."""
        try:
            response = read_response(raw)
        except UNREADABLE:
            self.error = self.error or ("failed" if status == "failed" else None)
            return
        status = response.status if status is None else status
        self._model, self._tier = response.model or self._model, response.service_tier or self._tier
        if is_there(response.error) or status == "failed":
            self.error = self.error or (error_label(response.error) if is_there(response.error) else "failed")
        if is_there(response.usage):
            self._count(response)
        elif status == "failed" and not (self.content or self._begun) and len(response.output) <= 2:
            self._parts = (Part(Usage(), self._model),)

    def _count(self, response: Response) -> None:
        """A usage object that cannot be believed counts nothing."""
        try:
            spent = read_spent(response, self._model, every_search_item=self._every_search_item)
        except UNREADABLE:
            self._absurd = True
            return
        if spent is not None:
            self._parts, self._reported_usd = spent.parts, spent.reported_usd
            self._inferred, self._assumed = spent.inferred, spent.assumed

    def _unknown(self, event: Event) -> None:
        """Relayed, and counted as content, because it may be: what was relayed cannot be called back."""
        self.content = True
        self._open_bytes += len(event.data)
        name = event.name.decode("latin-1")
        self.ended = self.ended or name in _ENDS
        if name == "error":
            self.error = "error"


def _label(error: msgspec.Raw, data: bytes) -> str:
    """What went wrong, of an `error` event: inside `error`, or beside the event's own type."""
    if is_there(error):
        return error_label(error)
    return error_label(msgspec.json.encode({k: v for k, v in read_members(data).items() if k != "type"}))


def broken(error: TollkeeperError, request_id: str, ask: Ask | None = None) -> bytes:
    """The event that ends a stream which broke after content; no response.* event follows it.

    The documented event has its members on top; the official SDK raises where they stand in `error`. So it has both. Strict
    readers ask for a number too: the gateway counts no events, so it is 0.
    """
    del ask
    shown = shown_error(error)
    documented = {"code": shown["code"], "message": shown["message"], "param": None, "sequence_number": 0}
    event = {"type": "error"} | documented | {"error": shown}
    return b"event: error\ndata: " + msgspec.json.encode(event | {"request_id": request_id}) + b"\n\n"
