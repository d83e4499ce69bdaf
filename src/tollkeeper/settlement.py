"""What a call is booked as.

Exact where the provider said what was used. Else an estimate, marked so, that bounds it from above: the request's bytes
bound the prompt, the text that was seen bounds the output, and where neither says enough the hold's own bound does. A
provider's refusal without usage costs nothing.
"""

from __future__ import annotations

import msgspec
from msgspec import structs

from tollkeeper.errors import TollkeeperError, UpstreamRefused
from tollkeeper.prices import PriceBook
from tollkeeper.values import Ask, Charge, ChargeStatus, Entry, Hold, Outcome, Part, Reading, Route, Usage


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How a call went, as far as its account depends on it."""

    ask: Ask
    hold: Hold
    route: Route
    status: int | None  #: the provider's; None: nothing came back
    is_stream: bool
    reading: Reading
    content: bool  #: some of the reply's text was seen
    body_bytes: int  #: of a reply that is not streamed
    complete: bool  #: the reply was read to its end
    left: bool  #: the client did not stay for it
    capped: bool  #: the provider was told the hold's output cap
    failure: TollkeeperError | None
    latency_ms: int


def entry_of(prices: PriceBook, course: Course) -> Entry:
    """The attempt as it will be booked."""
    hold, route, failure = course.hold, course.route, course.failure
    reading, charge = _charged(prices, course)
    served = (reading.model or route.model)[:256]
    error = course.reading.error
    note = failure.code if failure is not None else error[:200] if error is not None else course.reading.note
    return Entry(
        id=hold.id, call=hold.call, attempt=hold.attempt, calls=int(hold.attempt == 1), at_us=hold.at_us,
        scopes=hold.scopes, dialect=hold.dialect, provider=hold.provider, model=hold.model,
        served=served, tier=reading.tier, outcome=_outcome(course), http_status=course.status, usage=reading.usage,
        charge=charge, note=note, latency_ms=course.latency_ms, speed=reading.speed, geo=reading.geo,
        sent=route.model if route.model not in (hold.model, served) else None,
        parts=reading.parts if len(reading.parts) > 1 else (),
    )  # fmt: skip


def _outcome(course: Course) -> Outcome:
    if course.complete and (course.failure is not None or course.reading.error is not None):
        return "error"
    if course.left:
        return "left"
    return "ok" if course.complete and course.failure is None else "cut"


def _charged(prices: PriceBook, course: Course) -> tuple[Reading, Charge]:
    hold, route, reading = course.hold, course.route, course.reading
    if course.complete and not reading.parts and isinstance(course.failure, UpstreamRefused):
        nothing = Charge(amount_nanos=0, computed_nanos=0, status="priced", price_version=hold.price_version)
        return reading, nothing
    if course.status is None:  # nothing came back: what it used is not known
        status: ChargeStatus = "unpriced" if hold.quote_nanos is None else "estimated"
        quoted = Charge(
            amount_nanos=hold.quote_nanos, computed_nanos=hold.quote_nanos, status=status,
            price_version=hold.price_version,
        )  # fmt: skip
        return Reading(parts=() if hold.quote_usage is None else (Part(hold.quote_usage),)), quoted
    # A cut stream of several choices may have told the usage of some of them only.
    exact = reading.final and bool(reading.parts) and (course.complete or course.ask.choices == 1)
    if not exact:
        reading = _estimated(course)
    charge = prices.charge(
        reading, provider=route.provider, model=route.model, at_us=hold.at_us, estimated=not exact
    )  # fmt: skip
    return reading, charge


def _estimated(course: Course) -> Reading:
    """A reading without the provider's last word."""
    reading, bound, whole = course.reading, course.hold.quote_usage, not course.is_stream
    seen = course.body_bytes if whole and not reading.output_bytes else reading.output_bytes
    # Without all of a body, or any text of a stream, what was generated is not known.
    told = course.complete if whole else course.content or reading.error is not None
    told = told and not reading.unseen
    if bound is not None and not told:
        seen = max(seen, bound.output)
    if bound is not None and (course.ask.output_cap is not None or course.capped):
        seen = min(seen, bound.output)
    usage = reading.usage if reading.parts else Usage(input=course.ask.prompt_bound)
    usage = structs.replace(usage, output=max(usage.output, seen))
    return structs.replace(reading, parts=(Part(usage, reading.model),))
