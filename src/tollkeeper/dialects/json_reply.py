"""What every dialect reads from a provider's JSON and writes into its own errors.

A provider's numbers are not trusted: a token count that is not a whole number from 0 to MAX_TOKENS makes its usage
object unreadable as a whole (`ABSURD`), and money is Decimal from the text on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec

from tollkeeper.errors import BudgetExceeded, RateLimited, TollkeeperError
from tollkeeper.money import CONTEXT, MAX_NANOS, NANOS_PER_USD, format_nanos
from tollkeeper.values import MAX_ID, MAX_TOKENS, iso_utc

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
"""A token count as it may stand on the wire."""
ABSENT: Final = msgspec.Raw(b"")
"""A member that was not there."""
ABSURD: Final = "absurd usage"
"""`Reading.note` where the reply's last usage could not be believed: it is treated as absent, and not as an error."""
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding arbitrary bytes raises."""

_MAX_LABEL: Final = 200
_UNIQUE: Final = 20
"""Characters that a provider's id needs to be unique: real ones have 22 and more, Ollama's `chatcmpl-407` repeats."""
_NULL: Final = msgspec.Raw(b"null")


class _Named(msgspec.Struct, rename="camel"):
    id: str | None = None
    response_id: str | None = None


class _Identified(_Named, rename="camel"):
    message: _Named | None = None
    response: _Named | None = None


_IDENTIFIED: Final = msgspec.json.Decoder(_Identified)
_LABEL: Final = msgspec.json.Decoder(str | int | None)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ONE: Final = Decimal(1)
_MAX_USD: Final = Decimal(MAX_NANOS // NANOS_PER_USD)
_DECIMAL: Final = msgspec.json.Decoder(Decimal)


def is_there(raw: msgspec.Raw) -> bool:
    """Whether a member was given and is not null."""
    size = len(raw)
    return size > 0 and (size != 4 or raw != _NULL)


def generated_bytes(members: Mapping[str, msgspec.Raw], beside: frozenset[str]) -> int:
    """Bytes of everything in a delta but the members `beside`: JSON text, so at least as many as the text itself."""
    total = 0
    for name, value in members.items():
        if (size := len(value)) > 2 and (size != 4 or value != _NULL) and name not in beside:
            total += size - 2
    return total


def read_members(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw]:
    """An object's members; empty where it is none."""
    try:
        return _MEMBERS.decode(raw)
    except UNREADABLE:
        return {}


def known(*counts: int | None) -> int:
    """The first count that is stated, else 0."""
    for count in counts:
        if count is not None:
            return count
    return 0


def read_usd(raw: msgspec.Raw, unit: Decimal = _ONE) -> Decimal | None:
    """A provider's amount of `unit` dollars, exact; None where it is no number, negative or above every amount."""
    try:
        amount = _DECIMAL.decode(raw)
    except UNREADABLE:
        return None
    if not amount.is_finite() or not 0 <= amount <= CONTEXT.divide(_MAX_USD, unit):
        return None
    return CONTEXT.multiply(amount, unit)


def reply_id(document: bytes) -> str | None:
    """The provider's own id of a reply, in its body or in an event of its stream; None where it has none that is unique."""
    try:
        told = _IDENTIFIED.decode(document)
    except UNREADABLE:
        return None
    for named in (told, told.message, told.response):
        id = None if named is None else named.id or named.response_id
        if id is not None and _UNIQUE <= len(id) <= MAX_ID and id.isprintable():
            return id
    return None


def error_label(raw: msgspec.Raw | bytes) -> str:
    """An in-band error's type, else code, else message, else "error": short, for logs and entries."""
    members = read_members(raw)
    for value in (members.get("type"), members.get("code"), members.get("message"), raw):
        try:
            label = _LABEL.decode(value) if value is not None else None
        except UNREADABLE:
            continue
        if label not in (None, ""):
            return str(label)[:_MAX_LABEL]
    return "error"


def refusal_numbers(error: TollkeeperError) -> dict[str, Any]:
    """The numbers behind a budget's refusal, as extra members of an error; empty for other errors.

    usd amounts are decimal text in dollars, tokens and requests whole numbers, instants ISO 8601 in UTC.
    """
    if not isinstance(error, BudgetExceeded | RateLimited):
        return {}
    refusal, standing = error.refusal, error.refusal.standing
    budget = standing.budget

    def amount(value: int | None) -> int | str | None:
        return format_nanos(value) if value is not None and budget.measure == "usd" else value

    return {
        "reason": refusal.reason,
        "scope": budget.scope,
        "id": standing.id,
        "project": standing.project,
        "measure": budget.measure,
        "window": budget.window,
        "limit": amount(budget.limit),
        "spent": amount(standing.spent),
        "held": amount(standing.held),
        "asked": amount(refusal.asked),
        "resets_at": None if standing.resets_at_us is None else iso_utc(standing.resets_at_us),
    }
