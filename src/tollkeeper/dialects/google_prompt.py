"""How many tokens a Gemini prompt can have: what its bytes bound, and declared bounds for what they do not.

Text has at most one token a byte. Images, recordings, files by URI, a prompt that is kept at the provider and what tools
fetch there are bounded by what the documentation says, and all of them together by the window: no Gemini model takes
a longer prompt. A part that stands where this module does not look counts as a whole window.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from tollkeeper.dialects.json_body import SERVER_TOOL_TOKENS, Body, template_tokens
from tollkeeper.dialects.json_reply import ABSENT, UNREADABLE, is_there

WINDOW_TOKENS: Final = 1_048_576
"""The longest prompt that a model takes: bounds a video by URI, a kept prompt, and everything here together."""
IMAGE_TOKENS: Final = 10_000
"""An image: Gemini 2 cuts it into at most 24 tiles of 258 tokens, Gemini 3 gives it at most 2,240."""
DOCUMENT_TOKENS: Final = 560_000
"""A PDF: 1,000 pages, the documented most, at 560 tokens."""
BYTES_PER_TOKEN: Final = 16
"""Of a recording inside the body, in base64: 32 tokens a second of audio at 3 kbit/s, 300 of video at 29 kbit/s."""

_MARKS: Final = re.compile(rb'"(?:inlineData|inline_data|fileData|file_data)"\s*:\s*\{')
_FASTER: Final = re.compile(rb'"fps"\s*:')
_CLIENT_TOOLS: Final = frozenset(("functionDeclarations", "function_declarations", "computerUse", "computer_use"))
_URL_TOOLS: Final = frozenset(("urlContext", "url_context"))


class _Blob(msgspec.Struct, gc=False):
    camel_type: str | None = msgspec.field(name="mimeType", default=None)
    snake_type: str | None = msgspec.field(name="mime_type", default=None)
    data: msgspec.Raw = ABSENT

    @property
    def type(self) -> str:
        return (self.camel_type or self.snake_type or "").lower()


class _Part(msgspec.Struct):
    camel_inline: _Blob | None = msgspec.field(name="inlineData", default=None)
    snake_inline: _Blob | None = msgspec.field(name="inline_data", default=None)
    camel_file: _Blob | None = msgspec.field(name="fileData", default=None)
    snake_file: _Blob | None = msgspec.field(name="file_data", default=None)
    camel_response: _Content | None = msgspec.field(name="functionResponse", default=None)
    snake_response: _Content | None = msgspec.field(name="function_response", default=None)


class _Content(msgspec.Struct):
    parts: list[_Part] | _Part | None = None


class _Request(msgspec.Struct):
    content: _Content | None = None


class _Prompt(msgspec.Struct):
    contents: list[_Content] | _Content | None = None
    content: _Content | None = None
    requests: list[_Request] | None = None
    camel_system: _Content | None = msgspec.field(name="systemInstruction", default=None)
    snake_system: _Content | None = msgspec.field(name="system_instruction", default=None)


_PROMPT: Final = msgspec.json.Decoder(_Prompt)
_TOOLS: Final = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw] | None)


def prompt_of(body: bytes, fields: Body) -> tuple[int, bool]:
    """The most tokens that the prompt of a body has, and whether it is text and nothing else."""
    text, media = len(body), 0
    marks = told = len(_MARKS.findall(body))
    if marks or b"\\u" in body:  # a name may be written in escapes
        faster = _FASTER.search(body) is not None
        for part in _media(body):
            for blob in (part.camel_inline, part.snake_inline):
                if blob is not None:
                    marks -= 1
                    tokens, kept = _inline(blob, faster=faster)
                    media += tokens
                    text -= len(blob.data) - kept
            for file in (part.camel_file, part.snake_file):
                if file is not None:
                    marks -= 1
                    media += _file(file)
        media += max(0, marks) * WINDOW_TOKENS
    if any(is_there(fields.get(name, ABSENT)) for name in ("cachedContent", "cached_content")):
        media += WINDOW_TOKENS
    media += _tools(fields.get("tools", ABSENT))
    return text + template_tokens(fields) + min(media, WINDOW_TOKENS), not (media or told)


def _inline(blob: _Blob, *, faster: bool) -> tuple[int, int]:
    """Tokens of what stands in the body, and how many of its bytes still count as text."""
    kind = blob.type.partition("/")[0]
    if kind == "image":
        return IMAGE_TOKENS, 0
    if kind == "video" and faster:
        return WINDOW_TOKENS, 0
    if kind in ("audio", "video"):
        return 300 + len(blob.data) // BYTES_PER_TOKEN, 0
    if blob.type == "application/pdf":
        return DOCUMENT_TOKENS, 0
    return 0, len(blob.data)  # text, which base64 only makes longer


def _file(file: _Blob) -> int:
    if file.type.startswith("image/"):
        return IMAGE_TOKENS
    return DOCUMENT_TOKENS if file.type == "application/pdf" else WINDOW_TOKENS


def _tools(raw: msgspec.Raw) -> int:
    """What tools that run at the provider may add; those that the client runs add nothing that it does not send."""
    if not is_there(raw):
        return 0
    try:
        tools = _TOOLS.decode(raw)
    except UNREADABLE:
        return WINDOW_TOKENS
    total = 0
    for tool in tools if isinstance(tools, list) else [tools or {}]:
        for name in tool.keys() - _CLIENT_TOOLS:
            total += WINDOW_TOKENS if name in _URL_TOOLS else SERVER_TOOL_TOKENS
    return total


def _media(body: bytes) -> Iterator[_Part]:
    """Every part of the prompt, those inside a function's response too."""
    try:
        prompt = _PROMPT.decode(body)
    except UNREADABLE:
        return
    contents = prompt.contents if isinstance(prompt.contents, list) else [prompt.contents]
    for content in (*contents, prompt.content, prompt.camel_system, prompt.snake_system):
        yield from _parts(content)
    for request in prompt.requests or ():
        yield from _parts(request.content)


def _parts(content: _Content | None) -> Iterator[_Part]:
    parts = None if content is None else content.parts
    for part in parts if isinstance(parts, list) else [] if parts is None else [parts]:
        yield part
        yield from _parts(part.camel_response)
        yield from _parts(part.snake_response)
