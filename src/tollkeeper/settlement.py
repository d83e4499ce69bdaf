"""What a call is booked as.

Exact where the provider said what was used. Else an estimate, marked so, that bounds it from above: the request's bytes
bound the prompt, the text that was seen bounds the output, and where neither says enough the hold's own bound does. Where
nothing bounds it, it is unpriced. A provider's refusal without usage costs nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import structs

from tollkeeper.errors import TollkeeperError, UpstreamRefused
from tollkeeper.prices import PriceBook
from tollkeeper.values import MAX_MODEL, Charge, ChargeStatus, Entry, Hold, Outcome, Part, Provider, Reading, Usage

NO_USAGE: Final = "no usage"
"""The note of an entry whose reply did not say what was used, and for which nothing bounds it: its counts are unknown, not 0."""

INFERRED: Final = "inferred usage"
"""The note of an entry whose usage is the provider's, but not word for word: some of it was worked out from the rest."""


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How a call went, as far as its account depends on it."""

    hold: Hold
    provider: Provider | None  #: whose prices count; None: those of whoever owns the model
    sent: str  #: the provider's name for the model
    prompt_bound: int | None  #: no prompt of the request has more tokens; None: the request is not known
    choices: int = 1
    answered: bool = True  #: False: nothing came back
    http_status: int | None  #: the provider's, where it is known
    is_stream: bool
    reading: Reading
    content: bool  #: some of the reply's text was seen
    body_bytes: int  #: of a reply that is not streamed
    complete: bool  #: the reply was read to its end
    left: bool  #: the client did not stay for it
    capped: bool  #: the hold's output cap holds: the provider was told it, or no reply of the model is longer
    failure: TollkeeperError | None
    latency_ms: int | None


def entry_of(prices: PriceBook, course: Course) -> Entry:
    """The attempt as it will be booked."""
    failure, error = course.failure, course.reading.error
    reading, charge = _charged(prices, course)
    note = failure.code if failure is not None else error[:200] if error is not None else course.reading.note
    if note is None and course.answered and not reading.parts:
        note = NO_USAGE
    if note is None and reading.inferred:
        note = INFERRED
    return entry_for(
        course.hold, reading, charge, sent=course.sent, outcome=_outcome(course), http_status=course.http_status,
        note=note, latency_ms=course.latency_ms,
    )  # fmt: skip


def entry_for(
    hold: Hold,
    reading: Reading,
    charge: Charge,
    *,
    sent: str,
    outcome: Outcome = "ok",
    http_status: int | None = None,
    note: str | None = None,
    latency_ms: int | None = None,
) -> Entry:
    """An entry: for whom and when are the hold's, what was used is the reading's."""
    served = (reading.model or sent)[:MAX_MODEL]
    return Entry(
        id=hold.id, call=hold.call, attempt=hold.attempt, calls=int(hold.attempt == 1), at_us=hold.at_us,
        scopes=hold.scopes, dialect=hold.dialect, provider=hold.provider, model=hold.model, served=served,
        tier=reading.tier, outcome=outcome, http_status=http_status, usage=reading.usage, charge=charge, note=note,
        latency_ms=latency_ms, speed=reading.speed, geo=reading.geo,
        sent=sent if sent != hold.model else None, parts=reading.parts if _is_by_others(reading.parts, reading.model) else (),
    )  # fmt: skip


def _is_by_others(parts: tuple[Part, ...], served: str | None) -> bool:
    """Whether usage alone, of the model that served, would not say all."""
    return len(parts) > 1 or any(part.model is not None and part.model != served for part in parts)


def nothing_owed(price_version: str) -> Charge:
    """The charge of what is free at any price: a refusal, an answer from a cache."""
    return Charge(amount_nanos=0, computed_nanos=0, status="priced", price_version=price_version)


def _outcome(course: Course) -> Outcome:
    if course.complete and (course.failure is not None or course.reading.error is not None):
        return "error"
    if course.left:
        return "left"
    return "ok" if course.complete and course.failure is None else "cut"


def _charged(prices: PriceBook, course: Course) -> tuple[Reading, Charge]:
    hold, reading = course.hold, course.reading
    if course.complete and not reading.parts and isinstance(course.failure, UpstreamRefused):
        return reading, nothing_owed(hold.price_version)
    if not course.answered:  # nothing came back: what it used is not known
        status: ChargeStatus = "unpriced" if hold.quote_nanos is None else "estimated"
        quoted = Charge(
            amount_nanos=hold.quote_nanos, computed_nanos=hold.quote_nanos, status=status, estimated=True,
            price_version=hold.price_version,
        )  # fmt: skip
        bound = () if hold.quote_usage is None else (Part(hold.quote_usage),)
        return Reading(parts=bound, tier=hold.tier, speed=hold.speed, geo=hold.geo), quoted
    # A cut stream of several choices may have told the usage of some of them only.
    exact = reading.final and bool(reading.parts) and (course.complete or course.choices == 1)
    if not exact:
        reading = _estimated(course)
    charge = prices.charge(
        reading, provider=course.provider, model=course.sent, at_us=hold.at_us, key=hold.scopes.key, route=hold.model,
        estimated=not exact or reading.assumed,
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
    if bound is not None and course.capped:
        seen = min(seen, bound.output)
    if not reading.parts and course.prompt_bound is None:
        return reading  # a part of the cost is no bound of it
    first, *others = reading.parts or (Part(Usage(input=course.prompt_bound or 0), reading.model),)
    usage = structs.replace(first.usage, output=max(first.usage.output, seen))
    # A cost that was reported on the way is not that of the call.
    return structs.replace(reading, parts=(Part(usage, first.model), *others), reported_usd=None)
