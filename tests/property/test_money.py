"""What holds for every usage and price: charges and quotes as functions."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from tests.pricing import us

from tollkeeper.estimate import estimate
from tollkeeper.money import format_nanos, parse_usd, to_nanos, to_usd
from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import KINDS as PRICED
from tollkeeper.prices.override import Override
from tollkeeper.prices.rates import BILLED
from tollkeeper.prices.windows import Window
from tollkeeper.values import KINDS, UNIT_KINDS, Ask, Charge, Part, Provider, Reading, Route, Usage

NOON = 1_795_348_800_000_000
WIDE = Context(prec=200, rounding=ROUND_HALF_EVEN)
#: A model of each make: flat, with context steps, with hourly writes, with a fee, with a reasoning price, with audio.
MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-5.4"),
    ("anthropic", "claude-haiku-5-5"),
    ("perplexity", "sonar"),
    ("perplexity", "sonar-deep-research"),
    ("google", "gemini-2.5-flash"),
    ("openai", "o1"),
]
BOOK = PriceBook()

counts = st.one_of(st.integers(0, 50), st.integers(0, 400_000), st.integers(0, 10**9))
amounts = st.decimals(0, 10_000, places=6)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    usage = {kind: draw(counts) for kind in draw(st.sets(st.sampled_from(BILLED)))}
    return Usage(**usage, reasoning=draw(st.integers(0, usage.get("output", 0))))


@st.composite
def price_lists(draw: st.DrawFn) -> Override:
    """A price list with input and output and any other kind, with steps of growing or falling prices."""
    kinds = draw(st.sets(st.sampled_from((*PRICED, "requests")))) | {"input", "output"}
    bounds = sorted(draw(st.sets(st.integers(1, 400_000), max_size=3)))
    prices = tuple((kind, tuple((start, draw(amounts)) for start in (0, *bounds))) for kind in sorted(kinds))
    return Override(models=("m",), prices=prices)


def charge(usage: Usage, place: str, model: str, *, tier: str | None = None) -> Charge:
    provider = Provider(name=place, base_url="", dialects=frozenset(), prices=place)
    return BOOK.charge(Reading(parts=(Part(usage),), tier=tier), provider=provider, model=model, at_us=NOON)


def exact(found: Charge) -> Decimal:
    """The sum of the terms, unrounded."""
    total = Decimal(0)
    for term in found.terms:
        product = WIDE.multiply(Decimal(term.quantity), Decimal(term.usd))
        total = WIDE.add(total, WIDE.divide(product, Decimal(term.per)))
    return total


@pytest.mark.parametrize(("place", "model"), MODELS)
@given(usage=usages(), tier=st.sampled_from([None, "flex", "priority", "batch"]))
def test_the_terms_are_the_amount(place: str, model: str, usage: Usage, tier: str | None) -> None:
    """A2, A8: a charge is never negative, and it is its terms' exact sum, rounded once."""
    found = charge(usage, place, model, tier=tier)
    if found.computed_nanos is None:
        assert found.terms == ()
        return
    assert found.computed_nanos >= 0
    nanos = WIDE.quantize(WIDE.multiply(exact(found), Decimal(10**9)), Decimal(1))
    assert found.computed_nanos == int(nanos)
    told = sum(term.quantity for term in found.terms if term.kind != "requests")
    silent = sum(getattr(usage, kind) for kind in found.missing if kind in UNIT_KINDS)
    assert told == sum(getattr(usage, kind) for kind in BILLED) - silent


@pytest.mark.parametrize(("place", "model"), MODELS)
@given(usage=usages(), kind=st.sampled_from(BILLED), more=st.integers(1, 10**6))
def test_more_usage_never_costs_less(place: str, model: str, usage: Usage, kind: str, more: int) -> None:
    """A charge grows with every kind: these models' dearer steps are above the cheaper ones."""
    larger = structs.replace(usage, **{kind: getattr(usage, kind) + more})
    before, after = charge(usage, place, model), charge(larger, place, model)
    if before.computed_nanos is not None and after.computed_nanos is not None:
        assert after.computed_nanos >= before.computed_nanos


@given(one=usages(), two=usages())
def test_flat_prices_add_up(one: Usage, two: Usage) -> None:
    """Without steps and fees, two usages cost together what they cost apart, to the last digit."""
    both = Usage(**{kind: getattr(one, kind) + getattr(two, kind) for kind in KINDS})
    alone = exact(charge(one, "openai", "gpt-4o")) + exact(charge(two, "openai", "gpt-4o"))
    assert exact(charge(both, "openai", "gpt-4o")) == alone


@given(usage=usages(), tier=st.sampled_from([None, "default", "flex", "priority", "batch"]), spare=st.integers(0, 1000))
@pytest.mark.parametrize(("place", "model"), MODELS)
def test_quote_covers_every_charge(place: str, model: str, usage: Usage, tier: str | None, spare: int) -> None:
    """P3: no usage within the quote's bounds, at the tier asked or at standard, costs more than the quote."""
    usage = structs.replace(usage, **dict.fromkeys(UNIT_KINDS, 0))
    provider = Provider(name=place, base_url="", dialects=frozenset(), prices=place)
    quote = BOOK.quote_nanos(provider, model, usage.input_tokens + spare, usage.output_tokens, NOON, tier=tier)
    assert quote is not None
    for served in (None, tier):
        found = charge(usage, place, model, tier=served)
        assert found.computed_nanos is None or found.computed_nanos <= quote


@given(
    spent=usages(),
    choices=st.integers(1, 4),
    cap=st.none() | st.integers(0, 5_000),
    default=st.none() | st.integers(1, 5_000),
    ceiling=st.none() | st.integers(1, 5_000),
)
@pytest.mark.parametrize(("place", "model"), MODELS)
def test_quote_covers_every_reply_of_its_ask(
    place: str, model: str, spent: Usage, choices: int, cap: int | None, default: int | None, ceiling: int | None
) -> None:
    """P3, C3: no reply within the client's cap, the written one and the model's ceiling costs more than the quote."""
    provider = Provider(name=place, base_url="", dialects=frozenset(), prices=place)
    ask = Ask(
        dialect="openai-chat", model="m", stream=False, body={}, prompt_bound=spent.input_tokens, output_cap=cap, choices=choices
    )  # fmt: skip
    quote = estimate(
        BOOK, ask, (Route(provider, model),), default_output_cap=default,
        output_ceilings={} if ceiling is None else {"m": ceiling}, at_us=NOON,
    )  # fmt: skip
    bounds = [bound for bound in (cap, quote.written_cap, ceiling) if bound is not None]
    if not bounds:
        assert (quote.amount_nanos, quote.usage, quote.output_cap) == (None, None, None)
        return
    most, kinds = min(bounds) * choices, ("output", "output_audio", "output_image")
    for kind in kinds:  # as much of it as the provider may send
        reply = structs.replace(spent, **dict.fromkeys((*UNIT_KINDS, *kinds, "reasoning"), 0))
        reply = structs.replace(reply, **{kind: most})
        found = charge(reply, place, model)
        assert quote.amount_nanos is not None
        assert found.computed_nanos is None or found.computed_nanos <= quote.amount_nanos
    assert quote.output_cap == min(bounds)


@given(prices=price_lists(), usage=usages(), spare=st.integers(0, 400_000))
def test_quote_covers_any_price_list(prices: Override, usage: Usage, spare: int) -> None:
    """P3: also where a higher step is cheaper, a kind is dearer than its parent, or reasoning has its price."""
    usage, book = structs.replace(usage, **dict.fromkeys(UNIT_KINDS, 0)), PriceBook((prices,))
    found = book.charge(Reading(parts=(Part(usage),)), provider=None, model="m", at_us=NOON)
    quote = book.quote_nanos(None, "m", usage.input_tokens + spare, usage.output_tokens + spare, NOON)
    assert found.amount_nanos is not None
    assert quote is not None
    assert 0 <= found.amount_nanos <= quote
    assert found.amount_nanos == to_nanos(exact(found))


@given(nanos=st.integers(0, 2**53 - 1))
def test_amounts_survive_their_text(nanos: int) -> None:
    """Nanos as text and as Decimal are the same nanos again."""
    assert parse_usd(format_nanos(nanos), "amount") == nanos
    assert to_nanos(to_usd(nanos)) == nanos


# ── entries ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ZONES = ["UTC", "Europe/Amsterdam", "Asia/Shanghai", "America/New_York", "Asia/Kolkata"]
#: A year around both clock changes, and the quarters of an hour where windows open and close.
instants = st.integers(us("2026-01-01T00:00:00") // 10**6, us("2027-01-01T00:00:00") // 10**6).map(
    lambda at: at * 10**6
)
quarters = st.integers(0, 95).map(lambda quarter: quarter * 15)
factors = st.decimals("0", "3", places=3)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start, end = draw(st.lists(quarters, min_size=2, max_size=2, unique=True))
    days = tuple(sorted(draw(st.sets(st.integers(0, 6), min_size=1))))
    return Window(days=days, start=start, end=end, zone=draw(st.sampled_from(ZONES)))


@st.composite
def discounts(draw: st.DrawFn, key: str | None = None) -> Override:
    return Override(
        models=("*",) if key else ("m",),
        key=key,
        windows=tuple(draw(st.lists(windows(), min_size=0 if key else 1, max_size=2))),
        multiplier=draw(factors),
        token_multiplier=draw(st.none() | factors),
    )


def is_inside(window: Window, at_us: int) -> bool:
    """Whether the wall clock shows a time of the window: minute by minute since one of its beginnings."""
    local = datetime.fromtimestamp(at_us // 10**6, ZoneInfo(window.zone)).replace(tzinfo=None)
    length = (window.end - window.start) % 1440
    for days_ago in (0, 1):
        begin = datetime.combine(local.date() - timedelta(days=days_ago), time()) + timedelta(minutes=window.start)
        if begin.weekday() in window.days and begin <= local < begin + timedelta(minutes=length):
            return True
    return False


@given(prices=price_lists(), model=discounts(), key=discounts(key="k"), usage=usages(), at_us=instants)
@example(
    prices=Override(models=("m",), prices=(("input", ((0, Decimal(1)),)), ("output", ((0, Decimal(1)),)))),
    model=Override(
        models=("m",), multiplier=Decimal(2), windows=(Window(start=150, end=240, zone="Europe/Amsterdam"),)
    ),
    key=Override(models=("*",), key="k", multiplier=Decimal(1)),
    usage=Usage(input=10),
    at_us=us("2026-10-25T01:30:00"),
)
def test_windows_and_multipliers_as_worked_out_by_hand(
    prices: Override, model: Override, key: Override, usage: Usage, at_us: int
) -> None:
    """A4: each price is the list's times every factor whose window the wall clock is in, searches and fees apart."""
    scoped = [entry for entry in (model, key) if not entry.windows or any(is_inside(w, at_us) for w in entry.windows)]
    found = PriceBook((prices, model, key)).charge(
        Reading(parts=(Part(usage),)), provider=None, model="m", at_us=at_us, key="k"
    )
    plain = PriceBook((prices,)).charge(Reading(parts=(Part(usage),)), provider=None, model="m", at_us=at_us)
    total = Decimal(0)
    for term in plain.terms:
        usd = Decimal(term.usd)
        for entry in scoped:
            assert entry.multiplier is not None
            usd = WIDE.multiply(usd, entry.multiplier)
            if entry.token_multiplier is not None and term.kind not in (*UNIT_KINDS, "requests"):
                usd = WIDE.multiply(usd, entry.token_multiplier)
        total = WIDE.add(total, WIDE.divide(WIDE.multiply(Decimal(term.quantity), usd), Decimal(term.per)))
    assert abs(exact(found) - total) < Decimal("1e-40")
    assert found.amount_nanos == (None if plain.amount_nanos is None else to_nanos(exact(found)))


@given(
    prices=price_lists(), model=discounts(), key=discounts(key="k"), usage=usages(), at_us=instants,
    spare=st.integers(0, 400_000), named=st.sampled_from(["k", None]),
)  # fmt: skip
def test_quote_covers_discounts_and_windows(
    prices: Override, model: Override, key: Override, usage: Usage, at_us: int, spare: int, named: str | None
) -> None:
    """P3: a quote bounds the charge at the prices of its instant, whatever multiplies them and for whomever."""
    usage = structs.replace(usage, **dict.fromkeys(UNIT_KINDS, 0))
    book = PriceBook((prices, model, key))
    found = book.charge(Reading(parts=(Part(usage),)), provider=None, model="m", at_us=at_us, key=named)
    quote = book.quote_nanos(None, "m", usage.input_tokens + spare, usage.output_tokens + spare, at_us, key=named)
    assert found.amount_nanos is not None
    assert quote is not None
    assert 0 <= found.amount_nanos <= quote


@given(at_us=instants, later=st.integers(0, 14 * 86_400), model=discounts())
def test_one_book_serves_every_instant(at_us: int, later: int, model: Override) -> None:
    """A table is never used past the next edge of a window: a book that was asked before says what a new one says."""
    whole = Override(models=("m",), prices=(("input", ((0, Decimal(7)),)), ("output", ((0, Decimal(7)),))))
    reading = Reading(parts=(Part(Usage(input=10**6)),))
    asked = PriceBook((whole, model))
    for at in (at_us, at_us + later * 10**6, at_us):
        found, fresh = (
            book.charge(reading, provider=None, model="m", at_us=at).amount_nanos
            for book in (asked, PriceBook((whole, model)))
        )
        assert found == fresh
