"""How many tokens a chat prompt can have: what its bytes bound, and declared bounds for what they do not.

Text has at most one token a byte. An image, a file, a recording or a video is bounded by what the documentation says, all of
them together by the longest window of a model that reads them, and messages of another shape than the wire's by that too.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tollkeeper.dialects.json_body import AUDIO_TOKENS, FILE_TOKENS, WINDOW_TOKENS, Body, template_tokens
from tollkeeper.dialects.json_reply import ABSENT, UNREADABLE, is_there
from tollkeeper.dialects.openai_wire import IMAGE_TOKENS

BYTES_PER_AUDIO_TOKEN: Final = 16
"""Of a recording inside the body, in base64: a second of mp3 has 1,333 at least (8 kbit/s), and at most 32 tokens."""
SEARCH_TOKENS: Final = 50_000
"""What a search that runs at the provider may add to the prompt. A declared bound: one recorded search added 8,000."""

_FILES: Final = frozenset(("file", "file_id", "file_data"))
_LENGTHY: Final = frozenset(("audio", "video", "input_video"))
_SEARCHES: Final = ("web_search_options", "search_parameters", "plugins")
_CLIENT_TOOLS: Final = frozenset(("function", "custom", ""))

_Part = dict[str, msgspec.Raw]


class _Message(msgspec.Struct, gc=False):
    content: list[_Part | str] | str | None = None
    audio: msgspec.Raw = ABSENT  #: of an earlier reply, by id


class _Url(msgspec.Struct, gc=False):
    url: msgspec.Raw = ABSENT


class _Audio(msgspec.Struct, gc=False):
    data: msgspec.Raw = ABSENT
    format: str | None = None


class _File(msgspec.Struct, gc=False):
    file_data: msgspec.Raw = ABSENT


class _Tool(msgspec.Struct, gc=False):
    type: str = ""


_MESSAGES: Final = msgspec.json.Decoder(list[_Message])
_URL: Final = msgspec.json.Decoder(_Url)
_AUDIO: Final = msgspec.json.Decoder(_Audio | str)
_FILE: Final = msgspec.json.Decoder(_File | str)
_TOOLS: Final = msgspec.json.Decoder(list[_Tool] | None)


def prompt_of(body: bytes, fields: Body, model: str) -> tuple[int, bool]:
    """The most tokens that the prompt of a body has, and whether it is text and nothing else."""
    media, other = _media(fields)
    searches = _searches(fields, model)
    bound = len(body) - other + template_tokens(fields) + min(media, WINDOW_TOKENS) + searches * SEARCH_TOKENS
    return bound, not (media or other or searches)


def _media(fields: Body) -> tuple[int, int]:
    """Tokens of what is no text, and how many of the body's bytes stand for them."""
    media = other = 0
    try:
        for message in _MESSAGES.decode(fields.get("messages", b"[]")):
            if is_there(message.audio):
                media += AUDIO_TOKENS
            if isinstance(message.content, list):
                for part in message.content:
                    if isinstance(part, dict):
                        tokens, size = _part(part)
                        media, other = media + tokens, other + size
    except UNREADABLE:
        return WINDOW_TOKENS, 0
    return media, other


def _part(part: _Part) -> tuple[int, int]:
    tokens = other = 0
    for name, raw in part.items():
        if name == "image_url":
            tokens, other = tokens + IMAGE_TOKENS, other + _inline(raw, b'"data:image/')
        elif name == "image":
            tokens += IMAGE_TOKENS
        elif name == "input_audio":
            sound = _AUDIO.decode(raw)
            if isinstance(sound, str):  # perhaps a URL
                tokens += WINDOW_TOKENS
            elif sound.format in ("wav", "mp3"):
                other += len(sound.data)
                tokens += len(sound.data) // BYTES_PER_AUDIO_TOKEN
            else:
                tokens += 1  # its bytes bound it, but they are no text
        elif name in _FILES:
            file = _FILE.decode(raw)
            tokens += FILE_TOKENS
            other += 0 if isinstance(file, str) else _inline(file.file_data, b'"data:application/pdf;')
        elif name in _LENGTHY or name.endswith("_url"):
            tokens += WINDOW_TOKENS
    return tokens, other


def _inline(raw: msgspec.Raw, kind: bytes) -> int:
    """The bytes of a data URL of this kind, given as text or inside an object."""
    if _begins(raw, b"{"):
        raw = _URL.decode(raw).url
    return len(raw) if _begins(raw, kind) else 0


def _begins(raw: msgspec.Raw, start: bytes) -> bool:
    return bytes(memoryview(raw)[: len(start)]) == start


def _searches(fields: Body, model: str) -> int:
    """How many things ask for what runs at the provider."""
    found = sum([is_there(fields[name]) for name in _SEARCHES if name in fields]) + model.endswith(":online")
    if "tools" in fields:
        try:
            found += sum(tool.type not in _CLIENT_TOOLS for tool in _TOOLS.decode(fields["tools"]) or ())
        except UNREADABLE:
            found += 1
    return found
