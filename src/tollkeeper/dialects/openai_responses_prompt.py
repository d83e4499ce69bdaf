"""How many tokens the prompt of a response can have: what its bytes bound, and declared bounds for what they do not.

Text has at most one token a byte. Images and files are bounded by what the documentation says; beside them stand what the
provider holds already, and what tools that run there may add.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tollkeeper.dialects.json_body import (
    FILE_TOKENS,
    SERVER_TOOL_TOKENS,
    Body,
    media_tokens,
    read_field,
    template_tokens,
)
from tollkeeper.dialects.json_reply import ABSENT, UNREADABLE, is_there
from tollkeeper.dialects.openai_wire import IMAGE_TOKENS

HELD_TOKENS: Final = 250_000
"""What the provider already holds and puts into the prompt: an earlier response, a conversation, a stored item or prompt.
A declared bound, not a proven one: the largest context windows have four times as much."""
MODE_TOKENS: Final = 50_000
"""What `reasoning.mode` ("pro") adds to the prompt: a declared bound. One recorded call went from 235 bytes to 1,522 tokens."""

_MEDIA: Final = (
    (b"image", re.compile(rb'"type"\s*:\s*"(?:input_image|image_generation_call)"'), IMAGE_TOKENS),
    (b"computer_screenshot", re.compile(rb'"type"\s*:\s*"computer_screenshot"'), IMAGE_TOKENS),
    (b'"input_file"', re.compile(rb'"type"\s*:\s*"input_file"'), FILE_TOKENS),
)
_HELD: Final = ("previous_response_id", "conversation", "prompt")
_AT_THE_CLIENT: Final = frozenset((
    "function", "custom", "namespace", "local_shell", "apply_patch", "computer", "computer_use", "computer_use_preview",
))  # fmt: skip
"""Tools that the caller runs. Every other one runs at the provider, also one that is not known yet."""


class _Tool(msgspec.Struct):
    type: str = ""


class _Reasoning(msgspec.Struct):
    mode: str | None = None


_TOOLS: Final = msgspec.json.Decoder(list[_Tool] | None)
_REASONING: Final = msgspec.json.Decoder(_Reasoning | None)


def prompt_of(body: bytes, fields: Body) -> tuple[int, bool]:
    """The most tokens that the prompt of a body has, and whether it is text and nothing else. Raises BadRequest."""
    items = _read_items(fields)
    beyond = _beyond_bytes(body, fields, items)
    bound = len(body) - sum(map(_inline_images, items)) + template_tokens(fields) + beyond
    return bound, not beyond and b"input_audio" not in body


def _beyond_bytes(body: bytes, fields: Body, items: list[_Item]) -> int:
    """Prompt tokens that do not stand in the body."""
    tokens = media_tokens(body, _MEDIA)
    if any(is_there(fields.get(field, ABSENT)) for field in _HELD) or any(map(_is_reference, items)):
        tokens += HELD_TOKENS
    reasoning = read_field(fields, "reasoning", _REASONING, "an object, with mode as text")
    if reasoning is not None and reasoning.mode not in (None, "standard"):
        tokens += MODE_TOKENS
    for tools in ("tools", "plugins"):  # OpenRouter's plugins search, too
        tokens += SERVER_TOOL_TOKENS * sum(
            tool.type not in _AT_THE_CLIENT for tool in _tools(fields.get(tools, ABSENT))
        )
    return tokens


def _tools(raw: msgspec.Raw) -> list[_Tool]:
    try:
        return (_TOOLS.decode(raw) if len(raw) else None) or []
    except UNREADABLE:
        return []


class _Piece(msgspec.Struct):
    type: str = ""
    image_url: msgspec.Raw = ABSENT


class _Item(msgspec.Struct):
    type: str | None = None
    role: str | None = None
    content: list[_Piece] | str | None = None
    output: list[_Piece] | _Piece | str | None = None  #: of a tool that the caller ran
    result: msgspec.Raw = ABSENT  #: of image_generation_call


_IMAGES: Final = frozenset(("input_image", "computer_screenshot"))
_ITEMS: Final = msgspec.json.Decoder(list[_Item] | str | None)


def _read_items(fields: Body) -> list[_Item]:
    """The items of the input; none where it is text, or of another shape."""
    try:
        items = _ITEMS.decode(fields.get("input", b"null"))
    except UNREADABLE:
        return []
    return items if isinstance(items, list) else []


def _is_reference(item: _Item) -> bool:
    """Whether an item only names what the provider holds; such a one need not say its type."""
    return item.type == "item_reference" or (item.type is None and item.role is None)


def _inline_images(item: _Item) -> int:
    """Bytes of images inside an item: pixels, not text, so IMAGE_TOKENS bounds their tokens and not their length."""
    size = len(item.result) if item.type == "image_generation_call" else 0
    for place in (item.content, item.output):
        pieces = place if isinstance(place, list) else [place] if isinstance(place, _Piece) else []
        urls = (bytes(piece.image_url) for piece in pieces if piece.type in _IMAGES)
        size += sum(len(url) for url in urls if url.startswith(b'"data:image/'))
    return size
