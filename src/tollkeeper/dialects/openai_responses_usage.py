"""What a response of OpenAI's costs: its tokens, and beside them searches, containers and images.

A count that the provider states is its own word: `tool_usage`, xAI's `server_side_tool_usage_details`, OpenRouter's
`server_tool_use`. Without one the items of `output` are counted: a `web_search_call` whose action is a search (opening a page
or finding in it is none), a `file_search_call`, and each container that code ran in once. MCP and function calls cost
nothing by themselves. Images that a tool drew have tokens of their own, at the drawing model's price; where model or
tokens are not stated they stand under the response's own model, which has no price for images: the charge is partial.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.dialects.json_reply import ABSENT, UNREADABLE, Count, is_there, read_members
from tollkeeper.dialects.openai_wire import read_response_usage
from tollkeeper.values import Part, Usage

DRAWN_MOST: Final = 6_240
"""An image that was drawn and whose tokens are not stated: the most that gpt-image-1 takes for one."""


class Response(msgspec.Struct):
    """A response object, as far as its account depends on it."""

    status: str | None = None
    model: str | None = None
    service_tier: str | None = None
    usage: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    tool_usage: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class Spent(msgspec.Struct, frozen=True):
    """A response's account."""

    parts: tuple[Part, ...]
    inferred: bool  #: some of it was worked out, not stated
    reported_usd: Decimal | None


class _Item(msgspec.Struct):
    type: str = ""
    action: msgspec.Raw = ABSENT
    container_id: msgspec.Raw = ABSENT


class _Tool(msgspec.Struct):
    type: str = ""
    model: str | None = None


class _Searches(msgspec.Struct):
    num_requests: Count | None = None


class _ToolUsage(msgspec.Struct):
    web_search: _Searches | None = None
    image_gen: msgspec.Raw = ABSENT


read_response: Final = msgspec.json.Decoder(Response).decode
_ITEMS: Final = msgspec.json.Decoder(list[_Item])
_TOOLS: Final = msgspec.json.Decoder(list[_Tool])
_TOOL_USAGE: Final = msgspec.json.Decoder(_ToolUsage)
_NOTHING: Final = _ToolUsage()


def read_spent(response: Response, model: str | None, *, every_search_item: bool) -> Spent | None:
    """The account of a response that states its usage; None where it states no count at all.

    Raises one of UNREADABLE for a usage of another shape or with a count that no call can have.
    """
    counted, stated = read_response_usage(response.usage)
    if counted is None:
        return None
    told = _TOOL_USAGE.decode(response.tool_usage) if is_there(response.tool_usage) else _NOTHING
    if told.web_search is not None and told.web_search.num_requests is not None:
        stated = stated | {"web_search": told.web_search.num_requests}
    items = _items(response.output)
    calls = _calls(items, every_search_item=every_search_item)
    units = calls | stated
    if every_search_item:
        units["web_search"] = calls["web_search"]
    main = Part(structs.replace(counted.usage, **units), model)
    drawn, assumed = _drawn(told.image_gen, sum(item.type == "image_generation_call" for item in items))
    parts = (
        (main,) if drawn is None else (main, Part(drawn, model if assumed else _image_model(response.tools) or model))
    )
    return Spent(parts, counted.inferred or assumed, counted.reported_usd)


def _items(output: msgspec.Raw) -> list[_Item]:
    if b"_call" not in bytes(output):
        return []
    try:
        return _ITEMS.decode(output)
    except UNREADABLE:
        return []


def _calls(items: list[_Item], *, every_search_item: bool) -> dict[str, int]:
    """Units of each kind among the items."""
    searches = files = 0
    containers = set[bytes]()
    for item in items:
        match item.type:
            case "web_search_call":
                searches += every_search_item or bytes(read_members(item.action).get("type", b"")) == b'"search"'
            case "file_search_call":
                files += 1
            case "code_interpreter_call":
                containers.add(bytes(item.container_id))
            case _:
                pass
    return {"web_search": searches, "file_search": files, "code_session": len(containers)}


def _drawn(raw: msgspec.Raw, images: int) -> tuple[Usage | None, bool]:
    """Tokens of the images that a tool drew, None where it drew none; and whether they are assumed."""
    counted = read_response_usage(raw)[0] if is_there(raw) else None
    if counted is None:
        return (Usage(output_image=DRAWN_MOST * images), True) if images else (None, False)
    usage = counted.usage
    if b'"output_tokens_details"' not in bytes(raw):  # what a drawing model gives is pixels
        usage = structs.replace(usage, output=0, output_image=usage.output)
    return (usage if usage.tokens else None), counted.inferred


def _image_model(tools: msgspec.Raw) -> str | None:
    try:
        named = [tool.model for tool in _TOOLS.decode(tools) if tool.type == "image_generation" and tool.model]
    except UNREADABLE:
        named = []
    return named[0] if named else None
