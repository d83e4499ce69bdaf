"""OpenAI responses, as OpenAI, Azure, xAI, DeepSeek, OpenRouter and Groq speak them.

A stream ends with the event that carries the whole response once more: `response.completed`, `response.incomplete` (capped
or filtered, and billed) or `response.failed`. Usage stands there alone; before it is null. `[DONE]`, which some resellers
add, ends nothing. A response that fails with `usage: null` before anything was generated used nothing: that is the
provider's last word. After content its usage is not known.

Text is what comes in a `delta`. An item of the output that came without any (a search, a call) is counted by its own bytes.
Reasoning of which a summary or nothing is shown is `unseen`. An event of an unknown kind is relayed, and is content if it
has a delta.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.dialects import openai_tools
from tollkeeper.dialects.json_body import (
    FILE_TOKENS,
    media_tokens,
    read_count,
    read_field,
    read_flag,
    read_model,
    read_object,
    read_text,
    template_tokens,
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
from tollkeeper.dialects.openai_wire import Counted, error_members, read_response_usage, refusal
from tollkeeper.errors import BadRequest, TollkeeperError
from tollkeeper.sse import Event
from tollkeeper.values import Ask, Part, Reading, Usage

__all__ = ["broken", "name", "path", "read_ask", "reducer", "refusal", "write_body"]

name: Final = "openai-responses"
path: Final = "/responses"

IMAGE_TOKENS: Final = 50_000
"""An image, by URL, by id or inline: gpt-4o-mini counts the most, 2,833 + 8 tiles of 5,667 = 48,169."""
HOSTED_TOKENS: Final = 200_000
"""What the provider may add to the prompt by rounds of its own: a tool that runs there, whose results come back as input,
or reasoning in another mode than standard. A declared bound, not a proven one: recorded searches added up to 10,000
tokens, mode "pro" 1,500."""
HELD_TOKENS: Final = 2_000_000
"""What the provider holds and the body only names: an earlier response, a conversation, an item, a prompt. No prompt is
larger than its model's context, and this is the largest in the price data (grok-4-fast; OpenAI's is 1,050,000)."""
UNFINISHED: Final = "unfinished"
"""`Reading.note` of a body that is no end: its response is queued or in progress."""

_HOSTED: Final = re.compile(
    rb'"type"\s*:\s*"(?:openrouter:)?(?:web_search(?:_preview)?(?:_\d{4}_\d\d_\d\d)?|x_search|file_search|collections_search'
    rb'|code_interpreter|code_execution|container_auto|container_reference|mcp|image_generation)"'
)
_MEDIA: Final = (
    (b"input_image", re.compile(rb'"type"\s*:\s*"input_image"'), IMAGE_TOKENS),
    (b"computer_screenshot", re.compile(rb'"type"\s*:\s*"computer_screenshot"'), IMAGE_TOKENS),
    (b"image_generation_call", re.compile(rb'"type"\s*:\s*"image_generation_call"'), IMAGE_TOKENS),
    (b"input_file", re.compile(rb'"type"\s*:\s*"input_file"'), FILE_TOKENS),
    (b'"tools"', _HOSTED, HOSTED_TOKENS),
)
_HOLDERS: Final = ("previous_response_id", "conversation", "prompt")


def read_ask(body: bytes, target: str = "") -> Ask:
    """A request as an Ask. Raises BadRequest naming the field, or RequestTooLarge."""
    del target
    fields = read_object(body)
    stream = read_flag(fields, "stream")
    if read_flag(fields, "background") and not stream:
        raise BadRequest(
            "background: the end of a response in the background is not seen here, so it cannot be counted; "
            'leave it out, or add "stream": true.'
        )
    inline, refers = _input(fields)
    beyond = media_tokens(body, _MEDIA)
    if refers or any(is_there(fields.get(holder, ABSENT)) for holder in _HOLDERS):
        beyond += HELD_TOKENS
    reasoning = read_field(fields, "reasoning", _REASONING, "an object with mode as text")
    if reasoning is not None and reasoning.mode not in (None, "standard"):
        beyond += HOSTED_TOKENS
    return Ask(
        dialect=name,
        path=path,
        model=read_model(fields),
        stream=stream,
        body=fields,
        prompt_bound=len(body) - inline + template_tokens(fields) + beyond,
        output_cap=read_count(fields, "max_output_tokens"),
        user=read_text(fields, "user") or read_text(fields, "safety_identifier"),
        tier=read_text(fields, "service_tier"),
    )


def write_body(ask: Ask, *, model: str, output_cap: int | None, quirks: frozenset[str]) -> bytes:
    """The body for a provider: every value byte for byte but the model, and the cap where none was set."""
    del quirks
    fields = ask.body | {"model": msgspec.Raw(msgspec.json.encode(model))}
    if ask.output_cap is None and output_cap is not None:
        fields["max_output_tokens"] = msgspec.Raw(b"%d" % output_cap)
    return write_object(fields)


class _Reasoning(msgspec.Struct):
    mode: str | None = None


_REASONING: Final = msgspec.json.Decoder(_Reasoning | None)


class _Piece(msgspec.Struct):
    type: str | None = None
    image_url: msgspec.Raw = ABSENT


class _Item(msgspec.Struct):
    type: str | None = None
    role: str | None = None
    content: list[_Piece] | str | None = None
    output: list[_Piece] | _Piece | str | None = None  #: of a tool's call
    result: msgspec.Raw = ABSENT  #: an image that an earlier response made


_IMAGES: Final = frozenset(("input_image", "computer_screenshot"))
_INPUT: Final = msgspec.json.Decoder(list[_Item] | str | None)


def _input(fields: dict[str, msgspec.Raw]) -> tuple[int, bool]:
    """Bytes of images inside the input, and whether one of its items only names what the provider holds.

    Images are pixels, not text, so IMAGE_TOKENS bounds their tokens and not their length.
    """
    try:
        items = _INPUT.decode(fields.get("input", b"null"))
    except UNREADABLE:
        return 0, False
    if not isinstance(items, list):
        return 0, False
    inline, refers = 0, False
    for item in items:
        refers = refers or item.type == "item_reference" or (item.type is None and item.role is None)
        for part in (item.content, item.output):
            pieces = part if isinstance(part, list) else [part] if isinstance(part, _Piece) else []
            urls = (bytes(piece.image_url) for piece in pieces if piece.type in _IMAGES)
            inline += sum(len(url) for url in urls if url.startswith(b'"data:image/'))
        if item.type == "image_generation_call":
            inline += len(item.result)
    return inline, refers


class _Chunk(msgspec.Struct, gc=False):
    type: str = ""
    delta: msgspec.Raw = ABSENT
    response: msgspec.Raw = ABSENT
    item: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _Response(msgspec.Struct):
    model: str | None = None
    status: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    tool_usage: msgspec.Raw = ABSENT


_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_RESPONSE: Final = msgspec.json.Decoder(_Response)
_NULL: Final = msgspec.Raw(b"null")
_ERROR: Final = msgspec.Raw(b'"error"')
_ENDS: Final = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.done")
)
_NO_TEXT: Final = frozenset(("id", "type", "status", "role", "call_id", "output_index", "result"))


def reducer(*, stream: bool, hide_usage: bool, quirks: frozenset[str]) -> Reducer:
    """What reads one reply. Usage is part of this dialect's streams, so none is ever hidden."""
    del stream, hide_usage
    return Reducer(every_search_item="every_search_item" in quirks)


class Reducer:
    """Reads one reply, event by event or whole."""

    __slots__ = (
        "_absurd",
        "_begun",
        "_counted",
        "_every_item",
        "_items",
        "_model",
        "_note",
        "_output_bytes",
        "_pictures",
        "_since",
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
        self._begun = False  # an item of the output was begun: something is generated, if unseen
        self._counted: Counted | None = None
        self._every_item = every_search_item
        self._items: list[openai_tools.Item] = []
        self._model: str | None = None
        self._note: str | None = None
        self._output_bytes = 0
        self._pictures: Part | None = None
        self._since = 0  # bytes of text when the last item was done
        self._tier: str | None = None
        self._unseen = False  # there was reasoning whose text was not sent

    def event(self, event: Event) -> bytes | None:
        """Read one event; the bytes to relay for it."""
        data = event.data
        try:
            chunk = _CHUNK.decode(data)
        except UNREADABLE:
            if data and not data.startswith(b"[DONE]"):
                self._unknown(event)
            return event.raw
        size = len(chunk.delta)
        if size > 2 and (size != 4 or chunk.delta != _NULL):  # longer than "" and {}
            self.content = True
            self._output_bytes += size - 2
            if self._unseen and chunk.type == "response.reasoning_text.delta":
                self._unseen = False
            return event.raw
        kind = chunk.type or event.name.decode("latin-1")
        if kind in _ENDS:
            self.ended = True
            self._close(chunk.response, kind.removeprefix("response."))
        elif kind == "response.output_item.added":
            self._begun = True
            self._unseen = self._unseen or openai_tools.read_item(chunk.item).type == "reasoning"
        elif kind == "response.output_item.done":
            self._item(chunk.item)
        elif kind == "error" or is_there(chunk.error):
            self.error = self.error or _label(chunk.error if is_there(chunk.error) else data)
        elif self._model is None and len(chunk.response):
            self._open(chunk.response)
        return event.raw

    def whole(self, body: bytes) -> None:
        """Read a body that is not streamed."""
        self._close(msgspec.Raw(body), None)
        self.ended = self.content = True
        if self._counted is None:
            self._output_bytes = len(body)
            self._unseen = any(item.type == "reasoning" for item in self._items)

    def reading(self) -> Reading:
        """What was read so far."""
        counted, drawn = self._counted, self._pictures
        parts = () if counted is None else (Part(counted.usage, self._model),)
        return Reading(
            parts=parts if drawn is None else (*parts, drawn),
            model=self._model,
            tier=self._tier or (None if counted is None else counted.tier),
            reported_usd=None if counted is None else counted.reported_usd,
            final=counted is not None and not self._absurd,
            inferred=self._absurd or (counted is not None and counted.inferred),
            ended=self.ended,
            output_bytes=self._output_bytes,
            unseen=self._unseen,
            error=self.error,
            note=ABSURD if self._absurd else self._note,
        )

    def _open(self, raw: msgspec.Raw) -> None:
        """A response as it begins: who serves it."""
        try:
            response = _RESPONSE.decode(raw)
        except UNREADABLE:
            return
        self._model, self._tier = response.model or None, response.service_tier

    def _item(self, raw: msgspec.Raw) -> None:
        """An item is done. Its text came in deltas, or it did not come at all and its bytes stand for it."""
        self._items.append(openai_tools.read_item(raw))
        if self._output_bytes == self._since:
            self._output_bytes += generated_bytes(read_members(raw), _NO_TEXT)
        self._since = self._output_bytes

    def _close(self, raw: msgspec.Raw, state: str | None) -> None:
        """A response at its end; `state` is the word of the event that brought it."""
        try:
            response = _RESPONSE.decode(raw)
        except UNREADABLE:
            return
        self._model = response.model or self._model
        self._tier = response.service_tier or self._tier
        state = response.status or state
        if self.error is None and is_there(response.error):
            self.error = _label(response.error)
        elif self.error is None and state in ("failed", "cancelled"):
            self.error = state
        if state in ("queued", "in_progress"):
            self._note = UNFINISHED
        self._items = openai_tools.read_items(response.output) or self._items
        if is_there(response.usage):
            self._count(response)
        elif state == "failed" and response.usage == _NULL and not (self._items or self._begun or self.content):
            self._counted = Counted(Usage())

    def _count(self, response: _Response) -> None:
        """The usage at the end; one that cannot be believed is no usage."""
        try:
            counted = read_response_usage(response.usage)
        except UNREADABLE:
            self._absurd = True
            return
        if counted is None:
            return
        told = openai_tools.read_tool_usage(response.tool_usage)
        units = openai_tools.units(self._items, counted.tools, told, every_item=self._every_item)
        if counted.tools or any(units.values()):
            counted = structs.replace(counted, usage=structs.replace(counted.usage, **units))
        self._counted = counted
        self._pictures = openai_tools.pictures(self._items, response.tools, told)

    def _unknown(self, event: Event) -> None:
        self.content = True
        self._output_bytes += len(event.data)
        if event.name == b"error":
            self.error = error_label(event.data)


def _label(raw: msgspec.Raw | bytes) -> str:
    """An error's label. An event of type "error" may carry its code and message beside that type, without an object."""
    members = read_members(raw)
    if members.get("type") == _ERROR:
        del members["type"]
        return error_label(msgspec.json.encode(members))
    return error_label(raw)


def broken(error: TollkeeperError, request_id: str, ask: Ask | None = None) -> bytes:
    """The event that ends a stream which broke after content; no response.completed follows it.

    In the form that OpenAI's own SDKs raise on: with `error` as an object. The gateway does not count events: number 0.
    """
    del ask
    members = error_members(error)
    told = {"type": "error", "sequence_number": 0, "error": members, "request_id": request_id}
    return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"
