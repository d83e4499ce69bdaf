"""tollkeeper.prices: what a call costs, how far that is known, and its bound."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal, Inexact, localcontext

import pytest
from msgspec import structs
from tests.pricing import NOON, charge, overridden, provider, us

from tollkeeper.prices import PriceBook
from tollkeeper.prices.data import VERSION
from tollkeeper.values import Part, Reading, Term, Usage


def test_cached_prompt() -> None:
    """A1: 25,978 in of which 24,540 cached, and 13 out, is exactly 0.005955."""
    book = overridden('[[price]]\nmodel = "m"\ninput = "1.50"\ncache_read = "0.15"\noutput = 9')
    found = charge(Usage(input=25_978 - 24_540, cache_read=24_540, output=13), "m", book=book)
    assert (found.amount_nanos, found.status) == (5_955_000, "priced")


def test_cache_outside_the_prompt() -> None:
    """A2: 56,322 in, 72,960 read from the cache and 87 out at 1 / 0.10 / 5 is 0.064053."""
    found = charge(Usage(input=56_322, cache_read=72_960, output=87), "claude-haiku-4-5", place=provider("anthropic"))
    assert (found.amount_nanos, found.status) == (64_053_000, "priced")


@pytest.mark.parametrize(
    ("model", "place", "tier", "speed", "usd"),
    [
        ("gpt-5.4", "openai", None, None, "0.004"),
        ("gpt-5.4", "openai", "default", None, "0.004"),
        ("gpt-5.4", "openai", "priority", None, "0.008"),
        ("gpt-5.4", "openai", "flex", None, "0.002"),
        ("claude-opus-5-5", "anthropic", "standard", "standard", "0.006"),
        ("claude-opus-5-5", "anthropic", "batch", None, "0.003"),
        ("claude-opus-5-5", "anthropic", "standard", "fast", "0.012"),
    ],
)
def test_tier_that_served(model: str, place: str, tier: str | None, speed: str | None, usd: str) -> None:
    """A4: flex, batch, priority and fast are priced as served."""
    found = charge(Usage(input=1000, output=100), model, place=provider(place), tier=tier, speed=speed)
    assert (found.amount_nanos, found.status) == (round(Decimal(usd) * 10**9), "priced")


@pytest.mark.parametrize(
    ("tier", "speed", "geo", "missing"),
    [
        ("scale", None, None, ("service_tier=scale",)),
        (None, "fast", None, ("speed=fast",)),
        (None, None, "us", ("geo=us",)),
        ("Scale", None, "us", ("service_tier=scale", "geo=us")),
    ],
)
def test_tier_without_a_price(tier: str | None, speed: str | None, geo: str | None, missing: tuple[str, ...]) -> None:
    """A4: a tier, speed or place that has no price is charged as standard, and said."""
    found = charge(Usage(input=1000), place=provider(), tier=tier, speed=speed, geo=geo)
    assert (found.amount_nanos, found.status, found.missing) == (2_500_000, "partial", missing)


def test_borrowed_model_has_no_tiers() -> None:
    """A4: Azure's gpt-5 at priority costs what the data does not know: standard, and partial."""
    standard = charge(Usage(input=1000), "gpt-5", place=provider("azure"))
    priority = charge(Usage(input=1000), "gpt-5", place=provider("azure"), tier="priority")
    assert standard.status == "priced"
    assert (priority.amount_nanos, priority.status) == (standard.amount_nanos, "partial")


@pytest.mark.parametrize(
    ("model", "place", "step", "below", "above"),
    [
        ("gpt-5.4", "openai", 272_000, "2.5", "5"),
        ("claude-haiku-5-5", "anthropic", 100_000, "0.1", "0.5"),
        ("grok-4.7", "x-ai", 199_999, None, "4"),
    ],
)
def test_context_steps(model: str, place: str, step: int, below: str | None, above: str) -> None:
    """A4: N-1 and N are below an exclusive bound, N+1 above; xAI's bound is inclusive at 200,000."""
    prices = [charge(Usage(input=step + more), model, place=provider(place)).terms[0].usd for more in (-1, 0, 1)]
    assert prices[0] == prices[1] != prices[2] == above
    assert below is None or prices[0] == below


def test_cache_writes_are_priced_apart() -> None:
    """A4: five-minute and one-hour writes have their own prices; searches are counted per thousand."""
    found = charge(
        Usage(cache_write_5m=1000, cache_write_1h=1000, web_search=3), "claude-haiku-4-5", place=provider("anthropic")
    )
    assert [(term.kind, term.quantity, term.usd, term.per) for term in found.terms] == [
        ("cache_write_5m", 1000, "1.25", 1_000_000),
        ("cache_write_1h", 1000, "2", 1_000_000),
        ("web_search", 3, "10", 1000),
    ]
    assert (found.amount_nanos, found.status) == (1_250_000 + 2_000_000 + 30_000_000, "priced")


def test_unpriced_is_not_zero() -> None:
    """A5: an unknown model, a provider without prices, a reply without usage: the amount is unknown, never 0."""
    for found in (
        charge(Usage(input=1), "gpt-6.2-sol", place=provider()),
        charge(Usage(input=1), "gpt-4o", place=provider(None)),
        charge(Usage(web_search=1), "o1", place=provider()),
        charge(None),
        charge(Usage(input=1), "x" * 300),
    ):
        assert (found.amount_nanos, found.computed_nanos, found.status) == (None, None, "unpriced")


@pytest.mark.parametrize(
    ("usage", "model", "missing"),
    [
        (Usage(input=1, web_search=2), "o1", ("web_search",)),
        (Usage(input=1, input_audio=5), "gpt-4o", ("input_audio",)),
        (Usage(input=1, output_image=5), "gpt-4o", ("output_image",)),
        (Usage(input=1, output=5), "text-embedding-3-small", ("output",)),
        (Usage(input=1, cache_write_1h=5), "gpt-5.6-luna", ("cache_write_1h",)),
    ],
)
def test_partial_names_what_is_missing(usage: Usage, model: str, missing: tuple[str, ...]) -> None:
    """A5: searches, audio, output and writes without a price of their own are named; the rest is charged."""
    found = charge(usage, model, place=provider())
    assert (found.status, found.missing) == ("partial", missing)
    assert found.amount_nanos is not None


def test_worst_status_wins() -> None:
    """unpriced, then partial, then estimated, then priced."""
    book, parts = PriceBook(), (Part(Usage(input=1)), Part(Usage(input=1), "no-such-model"))
    mixed = book.charge(Reading(parts=parts), provider=provider(), model="gpt-4o", at_us=NOON, estimated=True)
    assert (mixed.amount_nanos, mixed.status) == (None, "unpriced")
    assert charge(Usage(input=1, web_search=1), "o1", place=provider(), estimated=True).status == "partial"
    assert charge(Usage(input=1), place=provider(), estimated=True).status == "estimated"
    assert charge(Usage(input=1), place=provider()).status == "priced"


def test_a_million_small_prices() -> None:
    """A7: 1,000,000 tokens at 0.0000016 each are 1.600000 exactly."""
    book = overridden('[[price]]\nmodel = "m"\ninput = "1.6"')
    assert charge(Usage(input=1_000_000), "m", book=book).amount_nanos == 1_600_000_000


def test_ambient_context_changes_nothing() -> None:
    """A7: a coarse, trapping ambient context changes no charge, quote or version, compiled under it or before it."""
    text = '[[price]]\nmodel = "gpt-4o"\nmultiplier = "1.123456"\n[[price]]\nmodel = "m"\ninput = "0.123456789"'
    usage = Usage(input=123_457, cache_read=76_543, output=98_765)
    calm, place = overridden(text), provider()
    expected = [charge(usage, model, place=place, book=calm, reported="1.23456789") for model in ("gpt-4o", "m")]
    quotes = [calm.quote_nanos(place, "gpt-4o", 123_457, 98_765, NOON, tier="flex")]
    with localcontext(prec=2, rounding=ROUND_UP, capitals=0) as context:
        context.traps[Inexact] = True
        for book in (calm, overridden(text)):
            found = [charge(usage, model, place=place, book=book, reported="1.23456789") for model in ("gpt-4o", "m")]
            assert found == expected
            assert [book.quote_nanos(place, "gpt-4o", 123_457, 98_765, NOON, tier="flex")] == quotes
            assert book.version == calm.version


def test_charge_names_version_and_unit_prices() -> None:
    """A8: the price version is the data's and the overrides'; the terms alone give the amount again."""
    book = overridden('[[price]]\nmodel = "my-model"\ninput = "1"')
    assert VERSION.startswith("genai-prices/0.2.")
    assert PriceBook().version.startswith(f"{VERSION}+")
    assert PriceBook().version != book.version
    assert book.version.startswith(f"{VERSION}+")
    assert len(book.version) == len(VERSION) + 13
    found = charge(Usage(input=1000, cache_read=24, output=7), "gpt-4o-mini", place=provider(), book=book)
    assert found.price_version == book.version
    assert found.terms == (
        Term("gpt-4o-mini", "input", 1000, "0.15"),
        Term("gpt-4o-mini", "cache_read", 24, "0.075"),
        Term("gpt-4o-mini", "output", 7, "0.6"),
    )
    total = sum(Decimal(term.quantity) * Decimal(term.usd) / term.per for term in found.terms)
    assert found.amount_nanos == round(total * 10**9)


def test_reported_cost_counts_and_stands_beside() -> None:
    """A8: what the provider says that it charged is the amount; our figure stays beside it."""
    found = charge(Usage(input=1000), place=provider(), reported="0.0026")
    assert (found.amount_nanos, found.reported_nanos, found.computed_nanos) == (2_600_000, 2_600_000, 2_500_000)
    assert found.status == "priced"
    unknown = charge(Usage(input=1000), "no-such-model", reported="0.0026")
    assert (unknown.amount_nanos, unknown.computed_nanos, unknown.status) == (2_600_000, None, "priced")
    assert charge(None, reported="0").amount_nanos == 0
    assert charge(Usage(input=1), place=provider(), reported="1", estimated=True).status == "estimated"


@pytest.mark.parametrize(
    ("usage", "model", "estimated", "amount", "status"),
    [
        (Usage(input=1000), "gpt-4o", False, 2_500_000, "priced"),
        (Usage(input=1000), "gpt-4o", True, 2_500_000, "estimated"),
        (Usage(input=1000, output_image=1), "gpt-4o", False, 2_510_000, "partial"),
        (Usage(input=1000), "no-such-model", False, None, "unpriced"),
        (None, "gpt-4o", False, None, "unpriced"),
    ],
)
def test_ours_counts_where_it_is_set_so(
    usage: Usage | None, model: str, estimated: bool, amount: int | None, status: str
) -> None:
    """A8: with `counts` "computed" the amount and its status are our own, and the provider's figure stands beside."""
    place = structs.replace(provider(), counts="computed")
    found = charge(usage, model, place=place, reported="0.0026", estimated=estimated)
    assert (found.amount_nanos, found.computed_nanos, found.reported_nanos) == (amount, amount, 2_600_000)
    assert found.status == status
    silent = charge(Usage(input=1000), place=place)
    assert (silent.amount_nanos, silent.reported_nanos, silent.status) == (2_500_000, None, "priced")


def test_an_image_in_the_prompt_is_text_where_no_price_says_otherwise() -> None:
    """A4: price lists name images only where they cost something else: no gap, and an own price where there is one."""
    found = charge(Usage(input=10, input_image=1000), place=provider())
    assert (found.amount_nanos, found.status) == (2_525_000, "priced")
    found = charge(Usage(input_image=1000), "gpt-realtime", place=provider())
    assert (found.terms[0].usd, found.status) == ("5", "priced")


def test_audio_by_the_hour() -> None:
    """A4: seconds are charged at a price for an hour; the one rounding is to the nano, half to even."""
    found = charge(Usage(audio_seconds=10), "whisper-large-v3-turbo", place=provider("groq"))
    assert found.terms == (Term("whisper-large-v3-turbo", "audio_seconds", 10, "0.04", 3600),)
    assert (found.amount_nanos, found.status) == (111_111, "priced")
    # 9 s of 0.0000002 USD an hour are half a nano exactly, though the price of one second never ends.
    tie = overridden('[[price]]\nmodel = "m"\naudio_seconds = "0.0000002"')
    assert [charge(Usage(audio_seconds=9 * times), "m", book=tie).amount_nanos for times in (1, 3, 5)] == [0, 2, 2]


@pytest.mark.parametrize("reported", ["-0.01", "NaN", "sNaN", "Infinity", "1e400", "9007200"])
def test_absurd_reported_cost_is_not_taken(reported: str) -> None:
    """A2: a reported cost that is no amount is as if none came: a charge is never negative."""
    found = charge(Usage(input=1000), place=provider(), reported=reported)
    assert (found.amount_nanos, found.reported_nanos) == (2_500_000, None)


def test_parts_at_their_own_models() -> None:
    """Each part is charged at the model that served it; one sum, one rounding."""
    parts = (
        Part(Usage(input=2411, output=145), "claude-sonnet-5"),
        Part(Usage(input=2543, output=18), "claude-opus-4-8"),
        Part(Usage(input=1)),
    )
    reading = Reading(parts=parts, model="claude-haiku-4-5-20251001")
    found = PriceBook().charge(reading, provider=provider("anthropic"), model="claude-sonnet-5", at_us=NOON)
    assert found.amount_nanos == 19_437_000 + 1_000
    assert {term.model for term in found.terms} == {"claude-sonnet-5", "claude-opus-4-8", "claude-haiku-4-5-20251001"}


def test_one_rounding() -> None:
    """Three parts of 0.4 nano-dollars are one nano-dollar, not three times nothing."""
    book = overridden('[[price]]\nmodel = "m"\ninput = "0.0004"')
    found = book.charge(Reading(parts=(Part(Usage(input=1)),) * 3), provider=None, model="m", at_us=NOON)
    assert found.amount_nanos == 1


@pytest.mark.parametrize(
    ("served", "status", "missing"),
    [
        ("gpt-4o-2024-08-06", "priced", ()),
        ("gpt-4o-2030-01-01", "priced", ()),
        ("a-name-of-its-own", "partial", ("model=a-name-of-its-own",)),
    ],
)
def test_the_asked_model_stands_in(served: str, status: str, missing: tuple[str, ...]) -> None:
    """A served name without a price costs what the asked one does: as its dated form, or said to be a stand-in."""
    found = charge(Usage(input=1000), "gpt-4o", place=provider(), served=served)
    assert (found.amount_nanos, found.status, found.missing) == (2_500_000, status, missing)
    assert found.terms[0].model == served


def test_fee_per_request() -> None:
    """A fee per request is one term per call, whatever its parts."""
    found = PriceBook().charge(
        Reading(parts=(Part(Usage(input=500)),) * 2 + (Part(Usage(output=10)),)),
        provider=provider("perplexity"),
        model="sonar",
        at_us=NOON,
    )
    assert [term for term in found.terms if term.kind == "requests"] == [Term("sonar", "requests", 1, "12", 1000)]
    assert found.amount_nanos == 12_000_000 + 1_000_000 + 10_000


def test_fee_alone_is_partial() -> None:
    """A model that has a fee and no token price is charged the fee, and the tokens are named."""
    book = overridden('[[price]]\nmodel = "m"\nrequest = "0.04"')
    found = charge(Usage(input=10), "m", book=book)
    assert (found.amount_nanos, found.status, found.missing) == (40_000_000, "partial", ("input",))


@pytest.mark.parametrize(
    ("at", "usd"),
    [("2026-07-29T23:59:59", "1"), ("2026-07-30T00:00:00", "0.2"), ("2026-11-22T12:00:00", "0.2")],
)
def test_dated_prices(at: str, usd: str) -> None:
    """The price in force at the call's own time counts, from the UTC midnight of its day; one book serves both sides."""
    book = PriceBook()
    for when in (at, "2026-07-29T00:00:00", "2026-11-22T12:00:00", at):
        found = charge(Usage(input=1), "gpt-5.6-luna", place=provider(), book=book, at_us=us(when))
        assert when != at or found.terms[0].usd == usd


@pytest.mark.parametrize(
    ("clock", "usd"),
    [
        ("00:59:59", "0.15"),
        ("01:00:00", "0.3"),
        ("03:59:59", "0.3"),
        ("04:00:00", "0.15"),
        ("06:00:00", "0.3"),
        ("23:59:59", "0.15"),
    ],
)
def test_windows_in_the_day(clock: str, usd: str) -> None:
    """A table is never used past the next change of the price: one book, a day in order and back."""
    book, place = PriceBook(), provider("deepseek")
    for hour in (*range(24), *range(23, -1, -1)):
        found = charge(
            Usage(input=1), "deepseek-v4-flash", place=place, book=book, at_us=us(f"2026-11-23T{hour:02d}:30:00")
        )
        assert found.terms[0].usd == ("0.3" if 1 <= hour < 4 or 6 <= hour < 10 else "0.15")
    found = charge(Usage(input=1), "deepseek-v4-flash", place=place, book=book, at_us=us(f"2026-11-23T{clock}"))
    assert found.terms[0].usd == usd


def test_owner() -> None:
    """Whose model a bare name is: its vendor before a reseller, nobody for a name that nobody declares."""
    book = PriceBook()
    names = ("gpt-4o", "claude-sonnet-4-5", "llama-3.3-70b-versatile", "no-such-model", "x" * 300)
    assert [book.owner(name) for name in names] == ["openai", "anthropic", "groq", None, None]


def test_cache_is_bounded() -> None:
    """A client that makes up names fills no memory, and the next name is still priced."""
    book = overridden('[[price]]\nmodel = "m"\ninput = 1')
    for number in range(5000):
        book.rates(provider(None), f"made-up-{number}", NOON)
    assert len(book._tables) <= 4096
    book.rates(provider(None), "y" * 257, NOON)
    assert not any(len(str(key[2])) > 256 for key in book._tables)
    assert charge(Usage(input=1), "m", book=book).status == "priced"


@pytest.mark.parametrize(
    ("model", "place", "prompt", "output", "tier", "usd"),
    [
        ("gpt-4o-mini", "openai", 1_000_000, 1_000_000, None, "0.75"),
        ("claude-haiku-4-5", "anthropic", 1_000_000, 0, None, "2"),
        ("gpt-5.4", "openai", 272_000, 1000, None, "0.695"),
        ("gpt-5.4", "openai", 272_001, 1000, None, "1.382505"),
        ("gpt-5.4", "openai", 1000, 100, "priority", "0.008"),
        ("gpt-5.4", "openai", 1000, 100, "flex", "0.004"),
        ("sonar", "perplexity", 1_000_000, 0, None, "1.012"),
        ("text-embedding-3-small", "openai", 1_000_000, 0, None, "0.02"),
    ],
)
def test_quote(model: str, place: str, prompt: int, output: int, tier: str | None, usd: str) -> None:
    """The bound takes the dearest kind (an hour's cache write), step and tier, standard or asked, and the fee."""
    quote = PriceBook().quote_nanos(provider(place), model, prompt, output, NOON, tier=tier)
    assert quote == round(Decimal(usd) * 10**9)


def test_quote_of_the_way_asked_for() -> None:
    """P3: a call that asks for a dearer speed or place is bounded at its price, and a cheaper one at the usual."""
    book, place = PriceBook(), provider("anthropic")
    ask = (place, "claude-opus-5-5", 1_000_000, 0, NOON)
    quotes = [
        book.quote_nanos(*ask, speed=speed, geo=geo)
        for speed, geo in ((None, None), ("fast", None), (None, "us"), ("fast", "us"))
    ]
    assert quotes == [8_000_000_000, 16_000_000_000, 8_800_000_000, 17_600_000_000]
    assert book.quote_nanos(*ask, tier="batch") == 8_000_000_000


def test_quote_of_the_unpriced() -> None:
    """C3: what has no price has no bound: an unknown model, or output of a model without an output price."""
    book = PriceBook()
    assert book.quote_nanos(provider(), "gpt-6.2-sol", 1, 1, NOON) is None
    assert book.quote_nanos(provider(), "text-embedding-3-small", 1, 1, NOON) is None
    assert book.quote_nanos(provider(None), "gpt-4o", 1, 1, NOON) is None


def test_warm() -> None:
    """After `warm` a model's first charge compiles nothing."""
    book = PriceBook()
    book.warm(provider(), "gpt-4o", NOON)
    tables = dict(book._tables)
    assert len(tables) == 1
    charge(Usage(input=1), place=provider(), book=book)
    assert book._tables == tables
