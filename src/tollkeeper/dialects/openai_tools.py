"""What a response says of tools that ran at the provider: units to price, and pictures at the picture model's own price.

A count that the provider states comes first, because it knows what it bills: OpenAI's `tool_usage` (searches without the
discounted ones), xAI's and OpenRouter's counts inside `usage` (read in `openai_wire`). Else the items of the output are
counted: `web_search_call` that searched (opening a page and looking into it are no searches; items without an action are
from before there were others), `file_search_call`, and each container in which code ran. The quirk "every_search_item" is
for resellers that bill every search item, whatever it did and whatever is stated.

Calls of MCP servers and of the caller's own functions cost nothing by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class _ToolUsage(msgspec.Struct):
    web_search: _Searches | None = None
    image_gen: _Pictures | None = None


class _Tool(msgspec.Struct):
    type: str = ""
    model: str | None = None


_ITEM: Final = msgspec.json.Decoder(Item)
_ITEMS: Final = msgspec.json.Decoder(list[Item] | None)
_TOOL_USAGE: Final = msgspec.json.Decoder(_ToolUsage | None)
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


def units(
    items: Iterable[Item], stated: dict[str, int], tool_usage: msgspec.Raw, *, every_item: bool
) -> dict[str, int]:
    """Units by their kind in `Usage`. `stated` are those of the usage object, `every_item` is the quirk."""
    items = list(items)
    searches = [item for item in items if item.type == "web_search_call"]
    counts = {
        "web_search": sum(map(_searched, searches)),
        "file_search": sum(item.type == "file_search_call" for item in items),
        "code_session": len(_containers(items)),
    } | stated
    told = _read_tool_usage(tool_usage).web_search
    if told is not None and told.num_requests is not None:
        counts["web_search"] = told.num_requests
    if every_item:
        counts["web_search"] = len(searches)
    return counts


def _searched(item: Item) -> bool:
    return not isinstance(item.action, _Action) or item.action.type in (None, "search")


def _containers(items: Iterable[Item]) -> set[str | int]:
    """The containers in which code ran, each once; a run that does not name its own had one of its own."""
    found: set[str | int] = set()
    for number, item in enumerate(items):
        place = item.container_id or (None if item.environment is None else item.environment.container_id)
        if item.type == "code_interpreter_call" or (item.type == "shell_call" and place):
            found.add(place or number)
    return found


def pictures(items: Iterable[Item], tools: msgspec.Raw, tool_usage: msgspec.Raw) -> Part | None:
    """The usage of the model that drew; None where nothing was drawn.

    Pictures without a count are usage of PICTURES, which has no price: what they cost is not known, and not 0.
    """
    drawn = any(item.type == "image_generation_call" for item in items)
    counted = _read_tool_usage(tool_usage).image_gen
    if counted is None or not (counted.input_tokens or counted.output_tokens):
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


def _read_tool_usage(raw: msgspec.Raw) -> _ToolUsage:
    try:
        return _TOOL_USAGE.decode(raw) or _ToolUsage()
    except UNREADABLE:
        return _ToolUsage()
