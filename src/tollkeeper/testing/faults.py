"""What a fake provider can do wrong, as values, and what each does to a reply.

A reply is a list of pieces: the events of a stream, or the one piece that a whole body is. Every fault but `Stall` and
`Refuse` is a pure change of that list (`distort`), so that it works in each dialect, streamed or not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, repeat
from typing import Final, Literal, NamedTuple

#: A count of tokens and its number, in any dialect.
_COUNT: Final = re.compile(rb'("\w*(?:_tokens|[tT]okenCount)":)(\d+)')


class Piece(NamedTuple):
    """Bytes that go out together, and the output tokens generated for them; `reasoning` is a part of `tokens`."""

    raw: bytes
    tokens: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Refuse:
    """An error status instead of a reply, not billed. `type`, `code`, `message` default to the dialect's usual ones."""

    status: int
    retry_after: str | None = None
    type: str | None = None
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing more after `after` pieces until `release` is set; `reached` tells the test that it has come to that.

    With `after=0` not even the headers go out, unless `headers` is true.
    """

    after: int = 0
    headers: bool = False
    release: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection closes after so many pieces or bytes of the body. `headers=False`: with no answer at all."""

    after: int = 0
    unit: Literal["events", "bytes"] = "events"
    headers: bool = True


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """After `after` pieces an error inside the reply, in the dialect's shape, then the end without its marker."""

    after: int = 0
    status: int = 529


@dataclass(frozen=True, slots=True)
class NoUsage:
    """A good reply that says nothing about its usage. It is billed all the same."""


@dataclass(frozen=True, slots=True)
class Lie:
    """Every count of tokens in the reply is stated `times` as high; 0: as none. The bill keeps the truth."""

    times: int = 0


@dataclass(frozen=True, slots=True)
class WrongJson:
    """The piece after `after` others is JSON that breaks off half way; what follows is good."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Huge:
    """The piece after `after` others grows by `size` bytes of white space."""

    size: int = 2 << 20
    after: int = 0


@dataclass(frozen=True, slots=True)
class Endless:
    """After `after` pieces the last one comes again for ever, until the client leaves."""

    after: int = 3


@dataclass(frozen=True, slots=True)
class Replay:
    """A recorded answer, decompressed, byte for byte; not billed. `chunk` > 0 sends that many bytes at a time."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    chunk: int = 0


Fault = Refuse | Stall | Cut | ErrorEvent | NoUsage | Lie | WrongJson | Huge | Endless | Replay


class Distorted(NamedTuple):
    """A reply after its faults. `ends` False: the connection breaks, or the pieces never stop."""

    pieces: Iterable[Piece]
    ends: bool


def distort(pieces: list[Piece], faults: Iterable[Fault], error: Piece) -> Distorted:
    """The pieces that go out. `error` is the dialect's in-band error, used by `ErrorEvent`."""
    ends = True
    for fault in faults:
        match fault:
            case Cut(after, "events"):
                pieces, ends = pieces[:after], False
            case Cut(after, _):
                pieces, ends = _first_bytes(pieces, after), False
            case ErrorEvent(after):
                pieces = [*pieces[:after], error]
            case Lie(times):
                pieces = [piece._replace(raw=_lied(times, piece.raw)) for piece in pieces]
            case WrongJson(after) if after < len(pieces):
                pieces = _with(pieces, after, _half)
            case Huge(size, after) if after < len(pieces):
                pieces = _with(pieces, after, partial(_padded, size))
            case Endless(after):
                begun = pieces[: max(1, after)]
                return Distorted(chain(begun, repeat(begun[-1])), ends=False)
    return Distorted(pieces, ends)


def _with(pieces: list[Piece], at: int, change: Callable[[bytes], bytes]) -> list[Piece]:
    changed = pieces[at]._replace(raw=change(pieces[at].raw))
    return [*pieces[:at], changed, *pieces[at + 1 :]]


def _lied(times: int, raw: bytes) -> bytes:
    return _COUNT.sub(lambda found: b"%b%d" % (found[1], times * int(found[2])), raw)


def _half(raw: bytes) -> bytes:
    """The first half of the JSON, and the blank line that ends an event."""
    text = raw.rstrip(b"\n")
    return text[: len(text) // 2] + raw[len(text) :]


def _padded(size: int, raw: bytes) -> bytes:
    """White space before the JSON of an event or of a body: a good one still."""
    return raw.replace(b"data: ", b"data: " + b" " * size, 1) if b"data: " in raw[:64] else b" " * size + raw


def _first_bytes(pieces: list[Piece], count: int) -> list[Piece]:
    kept: list[Piece] = []
    for piece in pieces:
        if count <= 0:
            break
        kept.append(piece._replace(raw=piece.raw[:count]))
        count -= len(piece.raw)
    return kept
