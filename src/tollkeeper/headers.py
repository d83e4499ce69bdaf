"""The gateway's own response headers: whose call it was, what it cost, and how the tightest budget stands."""

from __future__ import annotations

from functools import lru_cache

from tollkeeper.errors import RateLimited, RequestError, TollkeeperError
from tollkeeper.money import format_nanos
from tollkeeper.values import Charge, Route, Standing, iso_utc

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
_NEVER_RETRY = (b"x-should-retry", b"false")


def of_call(
    request_id: str, route: Route | None, attempts: int, standing: Standing | None, cap: int | None = None
) -> Headers:
    """Headers of any reply: the request's id, where it went, and the tightest budget."""
    found = [(b"x-tollkeeper-request-id", request_id.encode())]
    if route is not None and attempts:
        found += _of_route(route.provider.name, route.model, attempts)
    if cap is not None:  # a budget made us set it: the client should know why its reply ends there
        found.append((b"x-tollkeeper-output-cap", b"%d" % cap))
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
    show = format_nanos if budget.measure == "usd" else str
    reset = b"never" if standing.resets_at_us is None else iso_utc(standing.resets_at_us).encode()
    return [
        (b"x-tollkeeper-budget-limit", show(budget.limit).encode()),
        (b"x-tollkeeper-budget-remaining", show(remaining).encode()),
        (b"x-tollkeeper-budget-reset", reset),
    ]


def of_cost(charge: Charge) -> Headers:
    """What the call cost in dollars, and how far that is known; no amount where it is unknown."""
    status = [(b"x-tollkeeper-cost-status", charge.status.encode())]
    if charge.amount_nanos is None:
        return status
    return [(b"x-tollkeeper-cost", format_nanos(charge.amount_nanos).encode()), *status]


def comment(charge: Charge) -> bytes:
    """The same for a stream, whose headers are long gone: an SSE comment."""
    return b"".join(b": %s %s\n" % pair for pair in of_cost(charge)) + b"\n"


def of_refusal(standing: Standing | None, now_us: int, error: TollkeeperError) -> Headers:
    """A request that was refused is not to be retried by an SDK; after a rate limit it learns when it may ask again."""
    found = [_NEVER_RETRY] if isinstance(error, RequestError) else []
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
