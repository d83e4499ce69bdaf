"""What a response says of tools that ran at the provider: units to price, and pictures at the picture model's own price.

A count that the provider states comes first, because it knows what it bills: OpenAI's `tool_usage` (searches without the
discounted ones), xAI's and OpenRouter's counts inside `usage` (read in `openai_wire`). Else the items of the output are
counted: `web_search_call` that searched (opening a page and looking into it are no searches; items without an action are
from before there were others), `file_search_call`, and each container in which code ran. The quirk "every_search_item" is
for resellers that bill every search item, whatever it did and whatever is stated.

Calls of MCP servers and of the caller's own functions cost nothing by themselves.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.dialects.json_reply import UNREADABLE, Count
from tollkeeper.values import Part, Usage

PICTURES: Final = "image_generation"
"""The model of pictures where the response does not name it. No price data knows it; a price file may."""


class _Action(msgspec.Struct):
    type: str | None = None


class _Place(msgspec.Struct):
    container_id: str | None = None


class Item(msgspec.Struct):
    """One item of a response's output, as far as it costs something."""

    type: str = ""
    action: _Action | str | None = None
    container_id: str | None = None
    environment: _Place | None = None


class _Split(msgspec.Struct):
    text_tokens: Count | None = None
    image_tokens: Count | None = None


class _Cached(msgspec.Struct):
    cached_text_tokens: Count | None = None
    cached_image_tokens: Count | None = None


class _Pictures(msgspec.Struct):
    input_tokens: Count | None = None
    input_tokens_details: _Split | None = None
    cached_tokens: Count | None = None
    cached_tokens_details: _Cached | None = None
    output_tokens: Count | None = None
    output_tokens_details: _Split | None = None


class _Searches(msgspec.Struct):
    num_requests: Count | None = None


class ToolUsage(msgspec.Struct):
    """What a response states of its tools beside `usage`."""

    web_search: _Searches | None = None
    image_gen: _Pictures | None = None


class _Tool(msgspec.Struct):
    type: str = ""
    model: str | None = None


_ITEM: Final = msgspec.json.Decoder(Item)
_ITEMS: Final = msgspec.json.Decoder(list[Item] | None)
_TOOL_USAGE: Final = msgspec.json.Decoder(ToolUsage | None)
_TOOLS: Final = msgspec.json.Decoder(list[_Tool] | None)


def read_item(raw: msgspec.Raw) -> Item:
    """One item; of another shape it is an item that costs nothing."""
    try:
        return _ITEM.decode(raw)
    except UNREADABLE:
        return Item()


def read_items(raw: msgspec.Raw) -> list[Item]:
    """The items of an output; none for another shape."""
    try:
        return _ITEMS.decode(raw) or []
    except UNREADABLE:
        return []


def read_tool_usage(raw: msgspec.Raw) -> ToolUsage:
    """What is stated; nothing for another shape."""
    try:
        return _TOOL_USAGE.decode(raw) or ToolUsage()
    except UNREADABLE:
        return ToolUsage()


def units(items: list[Item], stated: dict[str, int], told: ToolUsage, *, every_item: bool) -> dict[str, int]:
    """Units by their kind in `Usage`. `stated` are those of the usage object, `every_item` is the quirk."""
    kinds = [item.type for item in items]
    searches = [item for item in items if item.type == "web_search_call"]
    counts = {
        "web_search": sum(map(_searched, searches)),
        "file_search": kinds.count("file_search_call"),
        "code_session": len(_containers(items)),
    } | stated
    if told.web_search is not None and told.web_search.num_requests is not None:
        counts["web_search"] = told.web_search.num_requests
    if every_item:
        counts["web_search"] = len(searches)
    return counts


def _searched(item: Item) -> bool:
    return not isinstance(item.action, _Action) or item.action.type in (None, "search")


def _containers(items: list[Item]) -> set[str | int]:
    """The containers in which code ran, each once; a run that does not name its own had one of its own."""
    found: set[str | int] = set()
    for number, item in enumerate(items):
        place = item.container_id or (None if item.environment is None else item.environment.container_id)
        if item.type == "code_interpreter_call" or (item.type == "shell_call" and place):
            found.add(place or number)
    return found


def pictures(items: list[Item], tools: msgspec.Raw, told: ToolUsage) -> Part | None:
    """The usage of the model that drew; None where nothing was drawn.

    Pictures without a count are usage of PICTURES, which has no price: what they cost is not known, and not 0.
    """
    counted = told.image_gen
    if counted is None or not (counted.input_tokens or counted.output_tokens):
        drawn = any(item.type == "image_generation_call" for item in items)
        return Part(Usage(), PICTURES) if drawn else None
    asked, given = counted.input_tokens_details or _Split(), counted.output_tokens_details or _Split()
    cached = counted.cached_tokens_details or _Cached()
    read_text, read_image = cached.cached_text_tokens or 0, cached.cached_image_tokens or 0
    read = max(counted.cached_tokens or 0, read_text + read_image)
    read_text = read - read_image
    seen = asked.image_tokens or 0
    text = max(0, (counted.input_tokens or 0) - seen)
    said = given.text_tokens or 0
    usage = Usage(
        input=max(0, text - read_text),
        cache_read=read,
        input_image=max(0, seen - read_image),
        output=said,
        output_image=max(0, (counted.output_tokens or 0) - said),
    )
    return Part(usage, _drawing_model(tools))


def _drawing_model(tools: msgspec.Raw) -> str:
    try:
        known = _TOOLS.decode(tools) or []
    except UNREADABLE:
        known = []
    return next((tool.model for tool in known if tool.type == "image_generation" and tool.model), PICTURES)
