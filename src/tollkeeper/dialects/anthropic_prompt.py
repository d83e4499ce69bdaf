"""How many tokens a messages prompt can have: what its bytes bound, and declared bounds for what they do not.

Text has at most one token a byte. An image or a file is bounded by what the documentation says, all of them together by the
longest window of a model that reads them, and messages of another shape than the wire's by that too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from tollkeeper.dialects.json_body import FILE_TOKENS, SERVER_TOOL_TOKENS, WINDOW_TOKENS, Body, template_tokens
from tollkeeper.dialects.json_reply import ABSENT, UNREADABLE, is_there

IMAGE_TOKENS: Final = 5_000
"""An image, by URL, id or inline: high resolution counts at most 4,784."""
BUILT_IN_TOOL_TOKENS: Final = 1_000
"""A tool that is described at the provider and runs at the client: text editor 700, computer 735 and its system prompt."""

_BUILT_IN: Final = re.compile(r"(?:bash|computer|memory|text_editor)_\d+")
_CLIENT_TOOLS: Final = frozenset(("custom", ""))


class _Source(msgspec.Struct):
    type: str = ""
    media_type: str = ""
    data: msgspec.Raw = ABSENT
    content: list[_Block] | str | None = None  #: of a document made of blocks


class _Block(msgspec.Struct):
    type: str = ""
    source: _Source | str | None = None
    content: list[_Block] | _Block | str | None = None  #: of a tool's result


class _Edits(msgspec.Struct):
    edits: list[_Block] = []


_TURNS: Final = msgspec.json.Decoder(list[_Block])
_TOOLS: Final = msgspec.json.Decoder(list[_Block] | None)
_EDITS: Final = msgspec.json.Decoder(_Edits | None)


def prompt_of(body: bytes, fields: Body) -> tuple[int, bool]:
    """The most tokens that the prompt of a body has, and whether it is text and nothing else."""
    media, other = _media(fields)
    built_in, server = _tools(fields)
    bound = len(body) - other + template_tokens(fields) + min(media, WINDOW_TOKENS)
    bound += built_in * BUILT_IN_TOOL_TOKENS + server * SERVER_TOOL_TOKENS
    if _is_compacted(fields):  # it is read once more, to be summed up
        return 2 * bound, False
    return bound, not (media or other or server)


def _media(fields: Body) -> tuple[int, int]:
    """Tokens of what is no text, and how many of the body's bytes stand for them."""
    media = other = 0
    try:
        for block in _blocks(_TURNS.decode(fields.get("messages", b"[]"))):
            source = block.source if isinstance(block.source, _Source) else None
            inline = source is not None and source.type == "base64"
            if block.type == "image":
                media += IMAGE_TOKENS
            elif block.type == "document" and source is not None and source.type in ("text", "content"):
                continue  # its bytes, like any text's
            elif block.type in ("document", "container_upload"):
                media += FILE_TOKENS
                inline = inline and source is not None and source.media_type == "application/pdf"
            else:
                continue
            if inline and source is not None:
                other += len(source.data)
    except UNREADABLE:
        return WINDOW_TOKENS, 0
    return media, other


def _blocks(content: list[_Block] | _Block | str | None) -> Iterator[_Block]:
    """Every block, those inside a tool's result or a document too."""
    for block in content if isinstance(content, list) else [content] if isinstance(content, _Block) else ():
        yield block
        yield from _blocks(block.content)
        if isinstance(block.source, _Source):
            yield from _blocks(block.source.content)


def _tools(fields: Body) -> tuple[int, int]:
    """How many tools are described at the provider, and how many run there."""
    server = int(is_there(fields.get("mcp_servers", ABSENT)))
    if "tools" not in fields:
        return 0, server
    try:
        types = [tool.type for tool in _TOOLS.decode(fields["tools"]) or ()]
    except UNREADABLE:
        return 0, server + 1
    built_in = sum(_BUILT_IN.fullmatch(each) is not None for each in types)
    return built_in, server + sum(each not in _CLIENT_TOOLS for each in types) - built_in


def _is_compacted(fields: Body) -> bool:
    if "context_management" not in fields:
        return False
    try:
        edits = _EDITS.decode(fields["context_management"])
    except UNREADABLE:
        return True
    return edits is not None and any(edit.type.startswith("compact_") for edit in edits.edits)
