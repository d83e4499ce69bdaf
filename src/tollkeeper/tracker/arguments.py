"""What callers of the library may pass, checked before anything is priced, reserved or written.

Each check returns the value as the ledger keeps it, or raises a ValueError of one line that names the argument and says
what would be right.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation, Overflow
from typing import Final

from msgspec.structs import astuple

from tollkeeper.keys import MAX_TAGS
from tollkeeper.money import CONTEXT, MAX_NANOS, to_usd
from tollkeeper.values import KINDS, MAX_ID, MAX_MODEL, MAX_TOKENS, Scopes, Usage, us_of

_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_AHEAD_US: Final = 86_400 * 1_000_000
_MAX_USD: Final = to_usd(MAX_NANOS)


def name(value: object, argument: str, most: int = MAX_ID) -> str:
    """An id or a model's name: 1 to `most` printable characters."""
    if type(value) is str and 0 < len(value) <= most and value.isprintable():
        return value
    if not isinstance(value, str):
        raise _wrong(argument, f"text of 1 to {most} characters", value)
    if not 0 < len(value) <= most or not value.isprintable():
        raise _wrong(argument, f"1 to {most} printable characters", value)
    return str.__str__(value)  # a plain str also of an enumeration's member


def optional(value: object, argument: str) -> str | None:
    """The same where None means that the call has none."""
    return None if value is None else name(value, argument)


def model(value: object) -> str:
    """A model's name, as it came: `llama3:8b` and `vendor/model:free` stay whole."""
    return name(value, "model", MAX_MODEL)


def scopes(
    project_id: object, agent_id: object, session_id: object, user_id: object, key_id: object, tags: object
) -> Scopes:
    """For whom a call is made."""
    return Scopes(
        project=name(project_id, "project_id"),
        agent=optional(agent_id, "agent_id"),
        session=optional(session_id, "session_id"),
        user=optional(user_id, "user_id"),
        key=optional(key_id, "key_id"),
        tags=() if tags == () else labels(tags, "tags"),
    )


def labels(value: object, argument: str) -> tuple[str, ...]:
    """Tags, each once, in a fixed order: their order says nothing, and a repeat must be equal."""
    if isinstance(value, str) or not isinstance(value, Collection):
        raise _wrong(argument, "a list of texts", value)
    names = tuple(sorted({name(tag, argument) for tag in value}))
    if len(names) > MAX_TAGS:
        raise ValueError(f"{argument}: expected at most {MAX_TAGS}, got {len(names)}")
    return names


def count(value: object, argument: str) -> int:
    """A whole number of tokens or units, 0 to MAX_TOKENS."""
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise _wrong(argument, f"a whole number from 0 to {MAX_TOKENS}", value)
    return value


def usage(
    given: object, prompt_tokens: object, completion_tokens: object, cached_tokens: object, cache_write_tokens: object
) -> Usage:
    """Usage in disjoint kinds, from a Usage or from counts by OpenAI's convention: cached and cache-write tokens are part of
    `prompt_tokens`."""
    if given is not None:
        return _usage(given, (prompt_tokens, completion_tokens, cached_tokens or None, cache_write_tokens or None))
    prompt = count(prompt_tokens, "prompt_tokens")
    output = count(completion_tokens, "completion_tokens")
    cached, written = count(cached_tokens, "cached_tokens"), count(cache_write_tokens, "cache_write_tokens")
    if cached + written > prompt:
        raise ValueError(
            f"prompt_tokens: expected the whole prompt with its {cached} cached_tokens and {written} cache_write_tokens, "
            f"got {prompt}; add them, or pass usage=Usage(input=…, cache_read=…)"
        )
    return Usage(input=prompt - cached - written, cache_read=cached, cache_write_5m=written, output=output)


def _usage(given: object, counts: tuple[object, ...]) -> Usage:
    if not isinstance(given, Usage):
        raise _wrong("usage", "a tollkeeper.Usage", given)
    if any(each is not None for each in counts):
        raise ValueError("usage: expected either usage or token counts, got both; leave the counts out")
    for kind, quantity in zip(KINDS, astuple(given), strict=True):
        count(quantity, f"usage.{kind}")
    return given


def cost(value: object, argument: str) -> Decimal | None:
    """Dollars that a call cost, None where they are to be computed; more than nine decimals are rounded once, when booked."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        hint = f": write Decimal('{value}') or '{value}', money is never a float" if isinstance(value, float) else ""
        raise ValueError(f"{argument}: expected dollars as a Decimal, text or whole number, got {_shown(value)}{hint}")
    try:
        usd = CONTEXT.create_decimal(value)
    except (InvalidOperation, Overflow):
        raise _wrong(argument, "dollars such as Decimal('0.005955')", value) from None
    if not usd.is_finite() or not 0 <= usd <= _MAX_USD:
        raise _wrong(argument, f"dollars from 0 to {_MAX_USD}", value)
    return usd


def instant(value: object, argument: str, now_us: int) -> int:
    """UTC microseconds of an aware datetime, from the year 2000 to one day ahead; None is now."""
    if value is None:
        return now_us
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise _wrong(argument, "a datetime with its time zone, such as datetime.now(UTC)", value)
    at_us = us_of(value)
    if value < _EARLIEST or at_us > now_us + _AHEAD_US:
        raise _wrong(argument, "an instant from the year 2000 to one day ahead", value)
    return at_us


def status(value: object) -> int | None:
    """The HTTP status of a reply, None where it is not known."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 100 <= value <= 599):
        raise _wrong("http_status", "a whole number from 100 to 599", value)
    return value


def one_of(value: object, argument: str, known: tuple[str, ...]) -> None:
    """Refuses what is not among the `known` words."""
    if value not in known:
        raise _wrong(argument, f"one of {', '.join(known)}", value)


def _wrong(argument: str, right: str, value: object) -> ValueError:
    return ValueError(f"{argument}: expected {right}, got {_shown(value)}")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
