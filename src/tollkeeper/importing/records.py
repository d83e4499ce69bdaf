"""What a line of a log says, before it is priced, and what all formats share in reading it.

A format is a module with a `name`, a `fits` that knows its lines by their members, and a `read` from a line's bytes to a
`Record`. Reading is pure. Whatever a line cannot be booked for is a ValueError of one line, fit for a report: it names the
field and what would be right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec

from tollkeeper.dialects.json_body import read_object
from tollkeeper.errors import RequestError
from tollkeeper.keys import HASH_PREFIX, is_id
from tollkeeper.tracker import arguments
from tollkeeper.values import EPOCH, Outcome, Reading, Scopes

Members = Mapping[str, msgspec.Raw]
"""An object's members, values byte for byte."""

_FAR_S: Final = 10**11
"""Seconds since 1970 that no calendar here holds."""
_DIGEST_DIGITS: Final = 32
_TIME: Final = "an ISO 8601 time with its zone, such as 2026-11-22T12:00:00Z"


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What is said about all lines beside the file: it stands in where a line does not say it itself."""

    project: str
    now_us: int
    agent: str | None = None
    provider: str | None = None
    quirks: frozenset[str] = frozenset()  #: how that provider differs on the wire
    at_us: int | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One call as a log tells it."""

    at_us: int
    scopes: Scopes
    dialect: str  #: what its entry names as the dialect
    model: str  #: asked for
    reading: Reading  #: usage, and the model and tier that served
    provider: str | None = None  #: None: whoever owns the model
    request_id: str | None = None  #: None: its id follows from its bytes
    outcome: Outcome = "ok"
    is_free: bool = False  #: nothing is owed for it: a refusal, or an answer from somebody's cache
    note: str | None = None
    other_usd: Decimal | None = None  #: what another program computed for it; never counts


class Format(Protocol):
    """One kind of log."""

    @property
    def name(self) -> str:
        """As `--format` has it."""
        ...

    def fits(self, members: Members) -> bool:
        """Whether an object with such members is a line of this kind."""
        ...

    def read(self, raw: bytes, given: Given) -> Record:
        """A line's object. Raises ValueError: why it cannot be booked."""
        ...


def members(raw: bytes, what: str = "the line") -> Members:
    """An object's members, unread. Raises ValueError where it is no JSON object in UTF-8, or names a member twice."""
    try:
        return read_object(bytes(raw))
    except RequestError as error:  # its text is about the body of a request
        raise ValueError(str(error).replace("The body", what).replace("the body", what).rstrip(".")) from None


def values(raw: bytes) -> dict[str, Any]:
    """A line's members as values, without those that are null. Raises ValueError as `members`, at any depth."""
    try:
        found = _VALUES.decode(raw.decode().strip())
    except UnicodeDecodeError:
        raise ValueError("the line is not UTF-8; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the line is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("the line is nested too deep; send flatter JSON") from None
    if not isinstance(found, dict):
        raise ValueError("the line is not a JSON object; send one, such as {...}")
    return {name: value for name, value in found.items() if value is not None}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose members each have a name of their own: two readers could each take another one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise ValueError(f"{name[:60]}: the line names this member twice; name it once")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"the line is not JSON: {word} is no number")


#: Numbers with a point or an exponent become Decimal from the text on the wire: no float comes near money.
_VALUES: Final = json.JSONDecoder(object_pairs_hook=_once, parse_float=Decimal, parse_constant=_no_number)


def instant(value: object, name: str, given: Given, zone: tzinfo | None = None) -> int:
    """UTC microseconds of ISO 8601 text; `zone` is that of text that names none, None: it has to.

    Raises ValueError where it is none, or one that the ledger cannot hold.
    """
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]  # anything else is a TypeError
    except (TypeError, ValueError):
        moment = None
    if moment is None or (moment.tzinfo is None and zone is None):
        raise ValueError(f"{name}: expected {_TIME}, got {shown(value)}")
    return arguments.instant(moment if moment.tzinfo is not None else moment.replace(tzinfo=zone), name, given.now_us)


def since_1970(value: object, name: str, given: Given) -> int:
    """UTC microseconds of seconds since 1970, whole or not. Raises ValueError as `instant`."""
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or not 0 <= value < _FAR_S:
        raise ValueError(f"{name}: expected seconds since 1970, got {shown(value)}")
    return arguments.instant(EPOCH + timedelta(microseconds=int(value * 1_000_000)), name, given.now_us)


def fitting(value: str | None) -> str | None:
    """A name of somebody else's making as an id of the ledger: as it is, else its digest. Empty is none."""
    if not value or is_id(value):
        return value or None
    return digest(value)


def digest(value: str) -> str:
    """What stands for a text that may not, or cannot, stand in the ledger itself."""
    return HASH_PREFIX + hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_DIGITS]


def shown(value: object) -> str:
    """A value in a reason: short."""
    text = str(value) if isinstance(value, (int, Decimal)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
