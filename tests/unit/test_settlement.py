"""tollkeeper.settlement: every way in which a call can go, and what it is booked as."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec import structs
from tests.pricing import overridden

from tollkeeper.dialects.json_reply import ABSURD
from tollkeeper.errors import StreamBroken, TollkeeperError, UpstreamRefused, UpstreamTimeout
from tollkeeper.repricing import repriced
from tollkeeper.settlement import INFERRED, NO_USAGE, Course, entry_of
from tollkeeper.testing.samples import AT_US, a_hold
from tollkeeper.values import Entry, Part, Provider, Reading, Scopes, Usage

PRICES = overridden(
    '[[price]]\nmodel = "m"\ninput = "1"\noutput = "2"\n[[price]]\nmodel = "dear"\ninput = "10"\noutput = "20"\n'
)
INPUT, OUTPUT = 1000, 2000  # nanos a token of model m
PROMPT, CAP = 100, 20  # what the request bounds

BOUND = Usage(input=PROMPT, output=CAP)
HOLD = a_hold("c/1", PROMPT * INPUT + CAP * OUTPUT, quote_usage=BOUND, price_version=PRICES.version)
FAKE = Provider(name="fake", base_url="", dialects=frozenset())

SAID = (Part(Usage(input=90, output=7)),)
INTERIM = (Part(Usage(input=90, output=1)),)
EXACT = Reading(parts=SAID, final=True, ended=True, output_bytes=30)
SILENT = Reading(ended=True, output_bytes=12)
CUT = Reading(output_bytes=12)
BROKEN, SLOW = StreamBroken("cut"), UpstreamTimeout("slow")

GOOD = Course(
    hold=HOLD, provider=FAKE, sent="m", prompt_bound=PROMPT, http_status=200, is_stream=True, reading=EXACT,
    content=True, body_bytes=0, complete=True, left=False, capped=True, failure=None, latency_ms=5,
)  # fmt: skip
#: What changes in a course, by the word for it.
NOTHING_BACK = {
    "answered": False, "http_status": None, "is_stream": False, "reading": Reading(), "content": False, "complete": False,
}  # fmt: skip
WHOLE = {"is_stream": False, "body_bytes": 9}
CUT_OFF = {"reading": CUT, "complete": False, "failure": BROKEN}
TWO = {
    "choices": 2,
    "hold": structs.replace(HOLD, quote_usage=Usage(input=PROMPT, output=40)),
}
#: The hold stands on a configured cap, which the provider was not told.
UNTOLD = {"capped": False}
UNBOUNDED = UNTOLD | {"hold": structs.replace(HOLD, quote_usage=None, quote_nanos=None)}
REFUSED = {"http_status": 429, "is_stream": False, "body_bytes": 60, "failure": UpstreamRefused(429)}
EMBEDDING = {"hold": structs.replace(HOLD, quote_usage=Usage(input=PROMPT))}
#: A reply alone is recorded: neither its request nor a hold is known.
ALONE = UNBOUNDED | {"prompt_bound": None}


def booked(*changes: dict[str, Any], **changed: Any) -> Entry:
    for change in changes:
        changed = change | changed
    return entry_of(PRICES, structs.replace(GOOD, **changed))


def says(**changed: Any) -> dict[str, Any]:
    return {"reading": structs.replace(SILENT, **changed)}


def cut(**changed: Any) -> dict[str, Any]:
    return CUT_OFF | {"reading": structs.replace(CUT, **changed)}


UNSEEN = cut(output_bytes=0) | {"content": False}

#: name: (what changes, outcome, status, input, output, note)
COURSES: dict[str, tuple[dict[str, Any], str, str, int, int, str | None]] = {
    # the provider said what was used
    "exact": ({}, "ok", "priced", 90, 7, None),
    "exact whole body": (WHOLE, "ok", "priced", 90, 7, None),
    "refused with usage": (REFUSED, "error", "priced", 90, 7, "upstream_refused"),
    "error in the reply with usage": ({"reading": structs.replace(EXACT, error="e")}, "error", "priced", 90, 7, "e"),
    "cut after its usage": (CUT_OFF | {"reading": EXACT}, "cut", "priced", 90, 7, "stream_broken"),
    "left, drained": ({"left": True}, "left", "priced", 90, 7, None),
    # refused, and nothing said to be used
    "refused": (REFUSED | {"reading": SILENT}, "error", "priced", 0, 0, "upstream_refused"),
    "refused, client left": (REFUSED | {"reading": SILENT, "left": True}, "error", "priced", 0, 0, "upstream_refused"),
    "error before any text": (
        says(output_bytes=0, error="e") | {"content": False, "failure": UpstreamRefused(502)},
        "error", "priced", 0, 0, "upstream_refused",
    ),
    "refusal cut off": (REFUSED | {"reading": CUT, "complete": False}, "cut", "estimated", 100, 20, "upstream_refused"),
    # nothing came back
    "no answer": (NOTHING_BACK | {"failure": SLOW}, "cut", "estimated", 100, 20, "upstream_timeout"),
    "no answer, client left": (NOTHING_BACK | {"failure": BROKEN, "left": True}, "left", "estimated", 100, 20, "stream_broken"),
    "cancelled before an answer": (NOTHING_BACK, "cut", "estimated", 100, 20, None),
    # cut streams
    "cut after text": (CUT_OFF, "cut", "estimated", 100, 12, "stream_broken"),
    "cut after much text": (cut(output_bytes=300), "cut", "estimated", 100, 20, "stream_broken"),
    "cut before any text": (UNSEEN, "cut", "estimated", 100, 20, "stream_broken"),
    "cut after text, interim usage": (cut(parts=INTERIM), "cut", "estimated", 90, 12, "stream_broken"),
    "cut before any text, interim usage": (
        UNSEEN | {"reading": structs.replace(CUT, output_bytes=0, parts=INTERIM)},
        "cut", "estimated", 90, 20, "stream_broken",
    ),
    "cut after text, reasoning unseen": (cut(unseen=True), "cut", "estimated", 100, 20, "stream_broken"),
    "left, cut off": (CUT_OFF | {"left": True}, "left", "estimated", 100, 12, "stream_broken"),
    # whole bodies without usage
    "body cut": (CUT_OFF | WHOLE, "cut", "estimated", 100, 20, "stream_broken"),
    "body cut behind its usage": (CUT_OFF | WHOLE | {"reading": EXACT}, "cut", "priced", 90, 7, "stream_broken"),
    "body without usage": (WHOLE | {"reading": Reading(ended=True)}, "ok", "estimated", 100, 9, None),
    "body without usage, its text read": (WHOLE | {"reading": SILENT}, "ok", "estimated", 100, 12, None),
    "body without usage, reasoning unseen": (WHOLE | says(unseen=True), "ok", "estimated", 100, 20, None),
    "embeddings without usage": (EMBEDDING | WHOLE | {"reading": Reading(ended=True)}, "ok", "estimated", 100, 0, None),
    # streams without the last word
    "stream without usage": ({"reading": SILENT}, "ok", "estimated", 100, 12, None),
    "empty stream": (says(output_bytes=0) | {"content": False}, "ok", "estimated", 100, 20, None),
    "error after text": (says(error="overloaded"), "error", "estimated", 100, 12, "overloaded"),
    "error after unseen reasoning": (says(error="e", unseen=True, output_bytes=0), "error", "estimated", 100, 20, "e"),
    "error first, stream goes on": (says(error="e", output_bytes=0) | {"content": False}, "error", "estimated", 100, 0, "e"),
    "absurd usage": (says(note=ABSURD, inferred=True), "ok", "estimated", 100, 12, ABSURD),
    "absurd after interim": (says(note=ABSURD, inferred=True, parts=INTERIM), "ok", "estimated", 90, 12, ABSURD),
    # choices
    "two choices": (TWO, "ok", "priced", 90, 7, None),
    "two choices, cut after a usage": (TWO | CUT_OFF | {"reading": EXACT}, "cut", "estimated", 90, 30, "stream_broken"),
    "two choices, cut before any text": (TWO | UNSEEN, "cut", "estimated", 100, 40, "stream_broken"),
    "two choices, much text": (TWO | says(output_bytes=300), "ok", "estimated", 100, 40, None),
    # a cap that the provider was not told, or was told by a budget
    "cap untold, text above it": (UNTOLD | says(output_bytes=300), "ok", "estimated", 100, 300, None),
    "cap untold, before any text": (UNTOLD | UNSEEN, "cut", "estimated", 100, 20, "stream_broken"),
    "cap of a budget, text above it": (says(output_bytes=300), "ok", "estimated", 100, 20, None),
    "cap untold, body cut": (UNTOLD | CUT_OFF | WHOLE | {"reading": Reading()}, "cut", "estimated", 100, 20, "stream_broken"),
    "cap untold, much of a body": (
        UNTOLD | CUT_OFF | WHOLE | {"reading": Reading(), "body_bytes": 300},
        "cut", "estimated", 100, 300, "stream_broken",
    ),
    "cap untold, half an event": (
        UNTOLD | cut(output_bytes=300) | {"content": False},
        "cut", "estimated", 100, 300, "stream_broken",
    ),
    # no bound at all
    "unbounded, exact": (UNBOUNDED, "ok", "priced", 90, 7, None),
    "unbounded, cut after text": (UNBOUNDED | cut(output_bytes=300), "cut", "estimated", 100, 300, "stream_broken"),
    "alone, exact": (ALONE, "ok", "priced", 90, 7, None),
    "alone, cut after text": (ALONE | cut(output_bytes=300, parts=INTERIM), "cut", "estimated", 90, 300, "stream_broken"),
    "unbounded, body cut": (UNBOUNDED | CUT_OFF | WHOLE | {"reading": Reading()}, "cut", "estimated", 100, 9, "stream_broken"),
}  # fmt: skip


@pytest.mark.parametrize("name", COURSES)
def test_how_a_call_went(name: str) -> None:
    """B2, D1, D3: exact where the provider said it, nothing where it refused, else an estimate that is marked so."""
    changed, outcome, status, prompt, output, note = COURSES[name]
    entry = booked(changed)
    assert (entry.outcome, entry.charge.status, entry.note) == (outcome, status, note)
    assert entry.usage == Usage(input=prompt, output=output)
    assert entry.charge.amount_nanos == entry.charge.computed_nanos == prompt * INPUT + output * OUTPUT
    assert entry.charge.price_version == PRICES.version


def test_nothing_came_back_and_nothing_bounds_it() -> None:
    """A5: unknown is not 0: no usage, no amount, unpriced."""
    entry = booked(UNBOUNDED, NOTHING_BACK, failure=SLOW)
    assert (entry.usage, entry.charge.amount_nanos, entry.charge.status) == (Usage(), None, "unpriced")


@pytest.mark.parametrize("changed", [{}, WHOLE, CUT_OFF], ids=["stream", "body", "cut"])
def test_a_reply_alone_that_says_nothing(changed: dict[str, Any]) -> None:
    """A5: unknown is not 0: without usage, request and hold nothing bounds a call; its entry says so, unless a cost was told."""
    told = booked(says(), changed, ALONE, failure=None)
    assert (told.usage, told.charge.amount_nanos, told.charge.status, told.note) == (
        Usage(),
        None,
        "unpriced",
        NO_USAGE,
    )
    told = booked(says(reported_usd=Decimal("0.5")), changed, ALONE, failure=None)
    assert (told.usage, told.charge.amount_nanos, told.charge.status) == (Usage(), 500_000_000, "estimated")


@pytest.mark.parametrize("changed", [{}, CUT_OFF], ids=["exact", "cut"])
def test_a_model_without_a_price(changed: dict[str, Any]) -> None:
    """A5: the usage is booked, the amount is unknown."""
    entry = booked(changed, sent="other")
    assert (entry.charge.amount_nanos, entry.charge.status) == (None, "unpriced")
    assert entry.usage.tokens > 90


def test_several_models_in_one_call() -> None:
    """Each part at its own model's price, also where they are not the last word: then the text that was seen is the first one's."""
    parts = (Part(Usage(input=50, output=3), "m"), Part(Usage(input=40, output=4), "dear"))
    exact = booked(reading=structs.replace(EXACT, parts=parts, model="m"))
    assert (exact.usage, exact.charge.status) == (Usage(input=90, output=7), "priced")
    assert exact.charge.amount_nanos == (50 + 10 * 40) * INPUT + (3 + 10 * 4) * OUTPUT
    estimate = booked(CUT_OFF, reading=structs.replace(CUT, parts=parts, model="m"))
    assert (estimate.usage, estimate.charge.status) == (Usage(input=90, output=12 + 4), "estimated")
    assert estimate.charge.amount_nanos == (50 + 10 * 40) * INPUT + (12 + 10 * 4) * OUTPUT


def test_what_was_worked_out_is_said() -> None:
    """P4: usage that is not the provider's word for word says so; what was assumed makes an estimate, and keeps its parts."""
    parts = (*SAID, Part(Usage(output=6), "dear"))
    worked_out = booked(reading=structs.replace(EXACT, inferred=True))
    assert (worked_out.charge.status, worked_out.note) == ("priced", INFERRED)
    assumed = booked(reading=structs.replace(EXACT, parts=parts, inferred=True, assumed=True))
    assert (assumed.charge.status, assumed.charge.estimated, assumed.note) == ("estimated", True, INFERRED)
    assert assumed.charge.amount_nanos == 90 * INPUT + (7 + 60) * OUTPUT
    assert repriced(assumed, PRICES, FAKE)[0] is None


def test_a_cost_told_on_the_way_is_not_the_calls() -> None:
    """P4: what a provider had reported when its stream was cut is no cost of the whole; with the last usage it is."""
    told = {"reported_usd": Decimal("0.000001")}
    interim = booked(cut(parts=INTERIM, **told))
    assert (interim.charge.reported_nanos, interim.charge.amount_nanos) == (None, 90 * INPUT + 12 * OUTPUT)
    last = booked(CUT_OFF, reading=structs.replace(EXACT, **told))
    assert (last.charge.amount_nanos, last.charge.status) == (1_000, "priced")


def test_priced_for_its_key_and_its_route() -> None:
    """A4: entries for the call's key and for the name that its client asked for are those of its charge."""
    book = overridden(
        '[[price]]\nmodel = "m"\ninput = 1\noutput = 2\n[[price]]\nroute = "smart"\ninput = 3\noutput = 4\n'
        '[[price]]\nkey = "ci"\nmodels = ["*"]\nmultiplier = "0.5"'
    )

    def amount(model: str, key: str | None) -> int | None:
        scopes = structs.replace(HOLD.scopes, key=key)
        course = structs.replace(GOOD, hold=structs.replace(HOLD, model=model, scopes=scopes))
        return entry_of(book, course).charge.amount_nanos

    plain, route = 90 * 1000 + 7 * 2000, 90 * 3000 + 7 * 4000
    assert [amount("m", None), amount("m", "ci"), amount("smart", None)] == [plain, plain // 2, route]
    assert [amount("Smart", "ci"), amount("m", "other")] == [route // 2, plain]


def test_an_entry_is_the_holds() -> None:
    """Who, when and which attempt are the hold's; what served is the reply's, within bounds."""
    scopes = Scopes(project="p", session="s", tags=("t",))
    hold = structs.replace(HOLD, scopes=scopes, model="asked", dialect="anthropic-messages", provider="there")
    entry = booked(hold=hold, reading=structs.replace(EXACT, model="m", tier="flex"), http_status=201)
    for name in ("id", "call", "attempt", "at_us", "scopes", "dialect", "provider", "model", "price_version"):
        of = entry.charge if name == "price_version" else entry
        assert getattr(of, name) == getattr(hold, name), name
    assert (entry.served, entry.tier, entry.http_status, entry.latency_ms) == ("m", "flex", 201, 5)
    assert (entry.at_us, entry.calls, entry.revision, entry.sign) == (AT_US, 1, 0, 1)
    assert booked(sent="routed").served == "routed"
    assert booked(reading=structs.replace(EXACT, model="x" * 999)).served == "x" * 256
    assert booked(reading=structs.replace(EXACT, error="e" * 999)).note == "e" * 200


def test_a_further_attempt_is_not_another_call() -> None:
    """B5: it is an entry of its own, and its call is counted on the first one."""
    entry = booked(hold=structs.replace(HOLD, id="c/2", attempt=2))
    assert (entry.id, entry.call, entry.attempt, entry.calls) == ("c/2", "c", 2, 0)


# ── whatever happens ──

FAILURES: list[TollkeeperError | None] = [None, BROKEN, SLOW, UpstreamRefused(500)]
counts = st.integers(0, 60)


@st.composite
def courses(draw: st.DrawFn) -> Course:
    """Any course of a call of up to three choices, also such as no provider takes."""
    choices = draw(st.integers(1, 3))
    cap = draw(st.none() | counts)
    bound = draw(st.none() | counts) if cap is None else cap * choices
    stated = draw(st.none() | st.builds(Usage, input=counts, output=counts))
    reading = Reading(
        parts=() if stated is None else (Part(stated),), final=draw(st.booleans()), output_bytes=draw(counts),
        error=draw(st.none() | st.just("e")), note=draw(st.none() | st.just(ABSURD)),
    )  # fmt: skip
    usage = None if bound is None else Usage(input=PROMPT, output=bound)
    quote = None if usage is None else usage.input * INPUT + usage.output * OUTPUT
    return Course(
        choices=choices, provider=FAKE, sent="m", prompt_bound=draw(st.sampled_from([PROMPT, None])), reading=reading,
        hold=structs.replace(HOLD, quote_usage=usage, quote_nanos=quote), answered=draw(st.booleans()), http_status=None,
        is_stream=draw(st.booleans()), content=reading.output_bytes > 0, body_bytes=draw(counts),
        complete=draw(st.booleans()), left=draw(st.booleans()),
        capped=cap is not None or (draw(st.booleans()) and bound is not None),
        failure=draw(st.sampled_from(FAILURES)), latency_ms=0,
    )  # fmt: skip


@given(courses())
def test_priced_only_on_the_providers_word(course: Course) -> None:
    """P4: what stands as exact is the last usage that the provider stated, or its refusal; and nothing else is it."""
    entry, reading = entry_of(PRICES, course), course.reading
    if entry.charge.status == "priced":
        refused = course.complete and not reading.parts and isinstance(course.failure, UpstreamRefused)
        assert refused or (reading.final and reading.parts)
        assert entry.usage == reading.usage
    elif course.complete and course.answered:
        assert not (reading.final and reading.parts)


@given(courses())
def test_an_amount_is_its_usages(course: Course) -> None:
    """A5: price times usage, also of an estimate; unknown only where nothing came back and nothing bounds it."""
    entry = entry_of(PRICES, course)
    if entry.charge.amount_nanos is None:
        assert (course.hold.quote_usage if not course.answered else course.prompt_bound) is None
    else:
        assert entry.charge.amount_nanos == entry.usage.input * INPUT + entry.usage.output * OUTPUT


@given(courses())
@example(structs.replace(GOOD, **cut(output_bytes=300)))
def test_an_estimate_is_between_its_bounds(course: Course) -> None:
    """D1: never below what was seen or stated, nor above the hold's bound where the provider was told the cap."""
    entry, bound, reading = entry_of(PRICES, course), course.hold.quote_usage, course.reading
    if entry.charge.status != "estimated" or not course.answered:
        return
    stated, output, is_whole = reading.usage, entry.usage.output, not course.is_stream
    seen = course.body_bytes if is_whole and not reading.output_bytes else reading.output_bytes
    most = bound.output if bound is not None and course.capped else None
    assert output >= max(stated.output, seen if most is None else min(seen, most))
    assert most is None or output <= max(stated.output, most)
    assert entry.usage.input == (stated.input if reading.parts else PROMPT)


@given(courses(), counts)
def test_more_text_never_costs_less(course: Course, more: int) -> None:
    """An estimate grows with the text that it stands on, or stays."""
    reading = course.reading
    assume(reading.output_bytes > 0)  # before the first text the bound stands, which may be more
    longer = structs.replace(reading, output_bytes=reading.output_bytes + more)
    after = entry_of(PRICES, structs.replace(course, reading=longer))
    assert after.usage.output >= entry_of(PRICES, course).usage.output
