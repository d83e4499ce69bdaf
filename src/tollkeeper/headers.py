"""The gateway's own response headers: whose call it was, what it cost, and how the tightest budget stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from tollkeeper.errors import BudgetExceeded, HeldOff, RateLimited, RequestError, TollkeeperError
from tollkeeper.money import format_nanos
from tollkeeper.values import Charge, ChargeStatus, Route, Standing, iso_utc

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
_NEVER_RETRY = (b"x-should-retry", b"false")
#: The best first: of several attempts the worst counts.
_STATUSES: Final[tuple[ChargeStatus, ...]] = ("priced", "estimated", "partial", "unpriced")


def of_call(
    request_id: str, route: Route | None, attempts: int, standing: Standing | None, cap: int | None = None,
    instead_of: str | None = None,
) -> Headers:  # fmt: skip
    """Headers of any reply: the request's id, where it went, and the tightest budget."""
    found = [(b"x-tollkeeper-request-id", request_id.encode())]
    if route is not None and attempts:
        found += _of_route(route.provider.name, route.model, attempts)
    if cap is not None:  # a budget made us set it: the client should know why its reply ends there
        found.append((b"x-tollkeeper-output-cap", b"%d" % cap))
    if instead_of is not None:
        found.append((b"x-tollkeeper-instead-of", _text(instead_of)))
    return found + (of_budget(standing) if standing is not None else [])


@lru_cache(1024)
def _of_route(provider: str, model: str, attempts: int) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"x-tollkeeper-provider", _text(provider)),
        (b"x-tollkeeper-model", _text(model)),
        (b"x-tollkeeper-attempts", b"%d" % attempts),
    )


def of_budget(standing: Standing) -> Headers:
    """A budget's limit and what is left of it, dollars for `usd` and counts else, and when it starts anew (ISO 8601)."""
    budget, remaining = standing.budget, standing.remaining
    if budget.limit is None or remaining is None:
        return []
    is_usd = budget.measure == "usd"
    limit, reset = _of_window(budget.limit, is_usd, standing.resets_at_us)
    return [limit, (b"x-tollkeeper-budget-remaining", _amount(remaining, is_usd)), reset]


@lru_cache(1024)
def _of_window(limit: int, is_usd: bool, resets_at_us: int | None) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    reset = b"never" if resets_at_us is None else iso_utc(resets_at_us).encode()
    return (b"x-tollkeeper-budget-limit", _amount(limit, is_usd)), (b"x-tollkeeper-budget-reset", reset)


def _amount(value: int, is_usd: bool) -> bytes:
    return format_nanos(value).encode() if is_usd else b"%d" % value


def of_cost(charges: Sequence[Charge]) -> Headers:
    """What a call's attempts cost in dollars, and how far that is known; no amount where it is unknown."""
    worst = max((charge.status for charge in charges), key=_STATUSES.index)
    status = (b"x-tollkeeper-cost-status", worst.encode())
    amounts = [charge.amount_nanos for charge in charges if charge.amount_nanos is not None]
    if len(amounts) < len(charges):
        return [status]
    return [(b"x-tollkeeper-cost", _amount(sum(amounts), is_usd=True)), status]


def comment(charges: Sequence[Charge]) -> bytes:
    """The same for a stream, whose headers are long gone: an SSE comment."""
    return b"".join(b": %s %s\n" % pair for pair in of_cost(charges)) + b"\n"


def final(fields: Headers) -> Headers:
    """A provider's headers, with which an SDK does not try again: that was done here."""
    return [*(field for field in fields if field[0] != _NEVER_RETRY[0]), _NEVER_RETRY]


def of_refusal(error: TollkeeperError, now_us: int, tried: int = 0) -> Headers:
    """What was refused, held off, or `tried` several times here no SDK shall try again; who may later learns when."""
    found = [_NEVER_RETRY] if isinstance(error, (RequestError, HeldOff)) or tried > 1 else []
    if isinstance(error, HeldOff):
        found.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    standing = error.refusal.standing if isinstance(error, (BudgetExceeded, RateLimited)) else None
    if standing is not None:
        found += of_budget(standing)
        if isinstance(error, RateLimited) and standing.resets_at_us is not None:
            seconds = max(1, -(-(standing.resets_at_us - now_us) // 1_000_000))
            found.append((b"retry-after", b"%d" % seconds))
    return found


def length(body: bytes) -> tuple[bytes, bytes]:
    """Content-Length of a whole body."""
    return (b"content-length", b"%d" % len(body))


def _text(value: str) -> bytes:
    """A name as a header value: printable ASCII."""
    return value.encode("ascii", "replace").replace(b"\r", b"?").replace(b"\n", b"?")
