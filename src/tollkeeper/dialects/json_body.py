"""A client's JSON body: read strictly, its top-level values kept byte for byte, and bounded before anything trusts it.

Refused here, for every dialect: what is not UTF-8 JSON with an object on top (NaN and Infinity are not JSON), two
top-level members of one name (two readers could each take another one), and counts that no call can have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Final, TypeVar

import msgspec

from tollkeeper.dialects.json_reply import UNREADABLE
from tollkeeper.errors import BadRequest, RequestTooLarge
from tollkeeper.values import MAX_MODEL, MAX_TOKENS

Body = dict[str, msgspec.Raw]

TEMPLATE_TOKENS: Final = 256
"""Tokens that a chat template adds to what the body's bytes bound: a default system prompt, the date (gpt-oss: about 80)."""
TOOL_PREAMBLE_TOKENS: Final = 1_000
"""And where there are tools, what explains them to the model (Anthropic: 313 to 530, with computer use 1,000)."""
SERVER_TOOL_TOKENS: Final = 200_000
"""What a tool that runs at the provider may add to the prompt: its results come back as input, turn after turn. A
declared bound, not a proven one: one recorded call of Anthropic's went from 2,479 to 404,500."""
AUDIO_TOKENS: Final = 20_000
"""Audio given by id: an earlier reply's, and no reply has more than 16,384 tokens."""
WINDOW_TOKENS: Final = 1_050_000
"""All images, audio, video and files of a request: the longest window of a model that reads them (gpt-5.4). Longer is refused."""
FILE_TOKENS: Final = WINDOW_TOKENS
"""A file: 600 pages, the documented most, at 1,500 to 3,000 tokens of text and an image each, fill a window."""

_T = TypeVar("_T")
_BODY: Final = msgspec.json.Decoder(Body)
_MEMBER: Final = re.compile(rb'\s*[{,]\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*:\s*', re.DOTALL)
_TAIL: Final = re.compile(rb"\s*\}\s*")
_ESCAPED: Final = re.compile(rb"\\u00(3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")  # letters, digits, _
_STRING: Final = re.compile(rb'"[^"]*"')
_STEPS: Final = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")
_NOT_MARKS: Final = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_SLICE: Final = 1 << 16


def read_object(body: bytes) -> Body:
    """The body's top-level members. Raises BadRequest or RequestTooLarge (nested too deep to read)."""
    try:
        if not body.isascii():
            body.decode()
        members = _BODY.decode(body)
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8; send JSON in UTF-8.") from None
    except RecursionError:
        raise RequestTooLarge("The body is nested too deep; send flatter JSON.") from None
    except msgspec.ValidationError:
        raise BadRequest("The body is not a JSON object; send one, such as {...}.") from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None
    # Written back without blanks, an object with a repeated member is always shorter than it came.
    if len(write_object(members)) != len(body):
        _refuse_duplicates(body, members)
    return members


write_object = msgspec.json.Encoder().encode


def read_field(body: Mapping[str, msgspec.Raw], name: str, decoder: msgspec.json.Decoder[_T], right: str) -> _T | None:
    """One member's value, None where it is absent or null. Raises BadRequest naming the field and what is right."""
    raw = body.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except UNREADABLE:
        raise BadRequest(f"{name}: expected {right}.") from None


_TEXT: Final[msgspec.json.Decoder[str | None]] = msgspec.json.Decoder(str | None)
_FLAG: Final[msgspec.json.Decoder[bool | None]] = msgspec.json.Decoder(bool | None)
_COUNT: Final[msgspec.json.Decoder[int | None]] = msgspec.json.Decoder(int | None)


def read_model(body: Body) -> str:
    """The model asked for: text of 1 to MAX_MODEL characters, without control characters."""
    model = read_field(body, "model", _TEXT, "the name of a model")
    if not model or len(model) > MAX_MODEL or not model.isprintable():
        raise BadRequest(f"model: expected the name of a model, 1 to {MAX_MODEL} printable characters.")
    return model


def read_text(body: Body, name: str) -> str | None:
    """A text member."""
    return read_field(body, name, _TEXT, "text")


def read_flag(body: Body, name: str) -> bool:
    """A boolean member; absent and null are false."""
    return read_field(body, name, _FLAG, "true or false") or False


def read_count(body: Body, name: str, least: int = 0, most: int = MAX_TOKENS) -> int | None:
    """A whole number within bounds."""
    if name not in body:  # most calls name few of their counts
        return None
    right = f"a whole number from {least} to {most}"
    count = read_field(body, name, _COUNT, right)
    if count is not None and not least <= count <= most:
        raise BadRequest(f"{name}: expected {right}.")
    return count


def read_larger(body: Body, name: str, other: str, least: int = 0, most: int = MAX_TOKENS) -> int | None:
    """A count that has two names: where both are given, the larger one bounds it."""
    one, two = read_count(body, name, least, most), read_count(body, other, least, most)
    return two if one is None else one if two is None else max(one, two)


def template_tokens(fields: Body) -> int:
    """Tokens that the provider puts around the prompt."""
    return TEMPLATE_TOKENS + (TOOL_PREAMBLE_TOKENS if "tools" in fields or "functions" in fields else 0)


def media_tokens(body: bytes, bounds: tuple[tuple[bytes, re.Pattern[bytes], int], ...]) -> int:
    """Tokens of parts that the body's own bytes do not bound, together a window at most: each (word, pattern, tokens)
    counts its pattern's matches.

    A pattern is searched only where its word occurs. Inside a JSON string a quote is escaped, so prompt text that talks
    about such a part does not match a pattern with quotes. A word may be written in escapes: they are read first.
    """
    if rb"\u00" in body:
        body = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), body)
    found = sum(tokens * len(pattern.findall(body)) for word, pattern, tokens in bounds if word in body)
    return min(WINDOW_TOKENS, found)


def json_depth_ok(body: bytes, limit: int) -> bool:
    """Whether no array or object of `body` stands deeper than `limit`. Takes any bytes, and says nothing else about them.

    Time grows with the body's size alone. Escapes and everything but brackets and quotes are dropped, then, slice by
    slice so that memory stays flat, strings are cut out and what is left is added up as +1 and -1.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return True
    marks = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(_STEPS, _NOT_MARKS).replace(b'""', b"")
    depth, quote = 0, b""
    for at in range(0, len(marks), _SLICE):
        part = quote + marks[at : at + _SLICE]
        quote = b'"' if part.count(b'"') % 2 else b""  # the slice ends inside a string
        steps = _STRING.sub(b"", part + quote)
        depths = list(accumulate(memoryview(steps).cast("b"), initial=depth))
        if max(depths) > limit:
            return False
        depth = depths[-1]
    return True


def _refuse_duplicates(body: bytes, members: Body) -> None:
    """Walk the members in order: where the bytes are not the next known member, the name read last is repeated."""
    at = 0
    name = b""
    for value in members.values():
        member = _MEMBER.match(body, at)
        if member is None:
            break
        name, at = member[1], member.end()
        if not body.startswith(bytes(value), at):
            break
        at += len(value)
    else:
        if not members or _TAIL.fullmatch(body, at):
            return
        if member := _MEMBER.match(body, at):
            name = member[1]
    shown = ascii(name[:MAX_MODEL].decode(errors="replace"))[1:-1]
    raise BadRequest(f"{shown}: the body names this member twice; name it once.")
