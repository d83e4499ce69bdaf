"""repricing: the cost of an entry at other prices is a function of the entry; what is known is never given up."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests.pricing import overridden
from tests.unit import test_settlement as settlements

from tollkeeper.ledger import expired
from tollkeeper.repricing import Figures, Repricing, charge_again, reading_of, repriced, rows_of
from tollkeeper.settlement import Course
from tollkeeper.stores.sqlite.file import entry_row, row_entry
from tollkeeper.testing.samples import AT_US, DAY_US, a_hold, an_entry
from tollkeeper.values import Charge, Entry, Part, Provider, Term, Usage

OLD = overridden('[[price]]\nmodel = "m"\ninput = "1"\noutput = "2"\n')
NEW = overridden(
    '[[price]]\nmodel = "m"\ninput = "3"\noutput = "5"\n[[price]]\nmodel = "small"\ninput = "0.5"\noutput = "0.5"\n'
)
NONE = overridden('[[price]]\nmodel = "other"\ninput = "1"\noutput = "1"\n')
DATED = overridden('[[price]]\nmodel = "m"\ninput = "1"\n[[price]]\nmodel = "m"\nfrom = 2026-01-16\ninput = "9"\n')
PLACE = Provider(name="fake", base_url="", dialects=frozenset())
USAGE = Usage(input=100, output=10)


def priced(book: Any = OLD, **changed: Any) -> Entry:
    """An entry as `book` prices it."""
    entry = an_entry("a/1", usage=USAGE, **changed)
    charge = book.charge(
        reading_of(entry), provider=PLACE, model=entry.model, at_us=entry.at_us, estimated=entry.charge.estimated
    )
    return structs.replace(entry, charge=charge)


def right_of(entry: Entry, book: Any, place: Provider) -> Entry | None:
    """What takes the entry's place; None: it stays."""
    return repriced(entry, book, place)[0]


def nanos(entry: Entry | None) -> tuple[int | None, int | None, str] | None:
    """Amount, computed amount and status."""
    return None if entry is None else (entry.charge.amount_nanos, entry.charge.computed_nanos, entry.charge.status)


# ── at the same prices ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", settlements.COURSES)
def test_the_same_prices_change_nothing(name: str) -> None:
    """A8: however a call went, its entry at the prices of its booking costs what was booked."""
    entry = settlements.booked(settlements.COURSES[name][0])
    assert right_of(entry, settlements.PRICES, PLACE) is None
    hold = structs.replace(settlements.HOLD, sent="m", model="alias")
    assert right_of(expired(hold), settlements.PRICES, PLACE) is None


NAMES = st.sampled_from(["m", "dear", "alias", "unheard-of", "m-2026-01-01", "x" * 300])


@given(settlements.courses(), NAMES, NAMES, st.none() | NAMES, st.lists(st.none() | NAMES, max_size=2), st.booleans())
def test_any_call_at_the_same_prices(
    course: Course, asked: str, sent: str, served: str | None, others: list[str | None], told: bool
) -> None:
    """A8: whatever was asked for, sent for it, served and reported, its entry alone says what it cost."""
    course = structs.replace(
        course, sent=sent, http_status=200 if course.answered else None,
        hold=structs.replace(course.hold, model=asked, sent=None if sent == asked else sent),
        reading=structs.replace(
            course.reading, model=served, reported_usd=Decimal("0.25") if told else None,
            parts=tuple(Part(Usage(input=5, output=1), other) for other in others),
        ),
    )  # fmt: skip
    bound = course.hold.quote_usage
    if bound is not None:
        quote = settlements.PRICES.quote_nanos(PLACE, sent, bound.input, bound.output, AT_US, route=asked)
        course = structs.replace(course, hold=structs.replace(course.hold, quote_nanos=quote))
    entry = settlements.entry_of(settlements.PRICES, course)
    assert right_of(entry, settlements.PRICES, PLACE) is None
    assert right_of(row_entry((1, *entry_row(entry))), settlements.PRICES, PLACE) is None


@given(
    usage=st.builds(Usage, input=st.integers(0, 10**9), cache_read=st.integers(0, 10**6), output=st.integers(0, 10**9)),
    reported=st.none() | st.integers(0, 9_007_199 * 10**9),  # what the price book believes
    estimated=st.booleans(),
)
def test_any_usage_again(usage: Usage, reported: int | None, estimated: bool) -> None:
    """A7, A8: any usage, reported cost and estimate is priced again to the nano, without a float and at once."""
    given_ = Charge(amount_nanos=None, status="unpriced", reported_nanos=reported, estimated=estimated)
    entry = an_entry("a/1", usage=usage, charge=given_)
    if usage == Usage():
        assert right_of(entry, OLD, PLACE) is None
        return
    right = right_of(entry, OLD, PLACE)
    assert right is not None
    assert right_of(right, OLD, PLACE) is None
    assert right.charge.reported_nanos == reported
    assert right.charge.amount_nanos == (right.charge.computed_nanos if reported is None else reported)


# ── at others ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_price() -> None:
    """A8: the next revision has the new charge with its unit prices and version, and all else is the entry's."""
    entry = priced()
    right = right_of(entry, NEW, PLACE)
    assert right is not None
    assert nanos(right) == (350_000, 350_000, "priced")
    assert right.charge.price_version == NEW.version
    assert [term.usd for term in right.charge.terms] == ["3", "5"]
    assert structs.replace(right, charge=entry.charge, revision=0) == entry
    assert right.revision == 1


def test_late_prices() -> None:
    """A5: what had no price has one when there is one now; before that it stays unknown, never 0."""
    entry = priced(NONE)
    assert nanos(entry) == (None, None, "unpriced")
    assert right_of(entry, NONE, PLACE) is None
    assert nanos(right_of(entry, NEW, PLACE)) == (350_000, 350_000, "priced")


def test_what_is_known_is_kept() -> None:
    """A5: prices that have none for a model do not make its cost unknown."""
    entry = priced()
    assert repriced(entry, NONE, PLACE) == (None, True)


def test_the_price_of_its_own_time() -> None:
    """A8: an entry is priced at its own instant, however late that is done."""
    before, after = (priced(NONE, at_us=AT_US + days * DAY_US) for days in (0, 1))
    assert [nanos(right_of(each, DATED, PLACE)) for each in (before, after)] == [
        (100_000, 100_000, "partial"), (900_000, 900_000, "partial"),
    ]  # fmt: skip


@pytest.mark.parametrize("counts", ["reported", "computed"])
def test_what_the_provider_reported(counts: Any) -> None:
    """A8: where the provider's figure counts only the computed one moves; which one counts is for the prices to say."""
    charge = Charge(amount_nanos=777, computed_nanos=120_000, reported_nanos=777, status="priced")
    entry = an_entry("a/1", usage=USAGE, charge=charge)
    place = structs.replace(PLACE, counts=counts)
    right = right_of(entry, NEW, place)
    assert right is not None
    fresh = NEW.charge(reading_of(entry), provider=place, model="m", at_us=AT_US)
    assert nanos(right) == (fresh.amount_nanos, 350_000, "priced")
    assert counts == "computed" or fresh.amount_nanos == 777
    assert right.charge.reported_nanos == 777


@pytest.mark.parametrize(
    ("charge", "status"),
    [
        (
            Charge(amount_nanos=1, computed_nanos=1, status="estimated", terms=(Term("m", "input", 1, "1"),)),
            "estimated",
        ),
        (Charge(amount_nanos=None, status="unpriced", estimated=True), "estimated"),
        (Charge(amount_nanos=None, status="unpriced"), "priced"),
        (Charge(amount_nanos=1, computed_nanos=1, status="partial", estimated=True, missing=("output",)), "estimated"),
    ],
)
def test_an_estimate_stays_one(charge: Charge, status: str) -> None:
    """A5: usage that nobody stated is an estimate at any price, also where its status said something worse before."""
    right = right_of(an_entry("a/1", usage=USAGE, charge=charge), NEW, PLACE)
    assert right is not None
    assert (right.charge.status, right.charge.estimated) == (status, status == "estimated")


def test_a_quote_again() -> None:
    """C2: what was booked at its quote is quoted again: every prompt token at the dearest kind, marked as an estimate."""
    cached = overridden('[[price]]\nmodel = "m"\ninput = "3"\ncache_write_5m = "4"\noutput = "5"\n')
    bound = Usage(input=100, output=10)
    entry = expired(a_hold("a/1", 120_000, quote_usage=bound, price_version=OLD.version))
    assert nanos(right_of(entry, cached, PLACE)) == (450_000, 450_000, "estimated")
    cut = structs.replace(entry, outcome="cut", http_status=None)
    assert nanos(right_of(cut, cached, PLACE)) == (450_000, 450_000, "estimated")
    dearest = structs.replace(entry, charge=structs.replace(entry.charge, amount_nanos=9))
    assert right_of(dearest, OLD, PLACE) is None, "the same prices made the same quote, of whichever candidate"
    unpriced = expired(a_hold("a/1", None, quote_usage=bound))
    assert nanos(right_of(unpriced, OLD, PLACE)) == (120_000, 120_000, "estimated")
    assert right_of(expired(a_hold("a/1", None, tokens=None)), OLD, PLACE) is None


def test_the_providers_name_for_the_model() -> None:
    """A6: an alias is priced as what was sent for it, also where nothing came back to say so."""
    alias = an_entry("a/1", None, usage=USAGE, model="fast", served="m-unheard-of", sent="m")
    assert nanos(right_of(alias, OLD, PLACE)) == (120_000, 120_000, "partial")
    hold = a_hold("a/1", None, quote_usage=USAGE, model="fast", sent="m")
    assert nanos(right_of(expired(hold), OLD, PLACE)) == (120_000, 120_000, "estimated")


def test_parts() -> None:
    """A4: where several models served, each part is priced at its own; one that served alone under another name too."""
    parts = (Part(Usage(input=100), "m"), Part(Usage(output=10), "small"))
    entry = an_entry("a/1", None, usage=USAGE, parts=parts)
    assert nanos(right_of(entry, NEW, PLACE)) == (305_000, 305_000, "priced")
    terms = (Term("small", "input", 100, "9"), Term("small", "output", 10, "9"))
    alone = an_entry("a/1", usage=USAGE, charge=Charge(amount_nanos=1, computed_nanos=1, status="priced", terms=terms))
    assert nanos(right_of(alone, NEW, PLACE)) == (55_000, 55_000, "priced")


def test_nothing_to_price() -> None:
    """A refusal costs nothing at any price, and what is not known to have been used has no price."""
    free = Charge(amount_nanos=0, computed_nanos=0, status="priced")
    for charge in (free, Charge(amount_nanos=None, status="unpriced")):
        assert charge_again(an_entry("a/1", usage=Usage(), charge=charge), NEW, PLACE) is None
    assert right_of(an_entry("a/1", usage=USAGE, charge=free), NEW, PLACE) is None, "an answer from a cache"
    at_zero = overridden('[[price]]\nmodel = "m"\ninput = "0"\noutput = "0"\n')
    assert nanos(right_of(priced(at_zero), NEW, PLACE)) == (350_000, 350_000, "priced"), "a price of 0 is a price"


# ── many ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_add_up() -> None:
    """P4: was, is, what is not exact and what has no price, before and after; the largest difference first."""
    found: dict[tuple[str, str], Figures] = {}
    for number, (book, lost) in enumerate([(OLD, False), (NONE, False), (OLD, True)]):
        entry = priced(book, served=f"m{number % 2}" if lost else "m")
        right = None if lost else right_of(entry, NEW, PLACE)
        name = (entry.provider, entry.served)
        found[name] = found.get(name, Figures()).plus(Figures.of(entry, right, lost))
    whole = Repricing(what_if=True, price_version="v", rows=rows_of(found))
    assert [row.model for row in whole.rows] == ["m", "m0"]
    total = whole.total
    assert (total.entries, total.changed, total.lost, total.unpriced_was, total.unpriced_now) == (3, 2, 1, 1, 0)
    assert (whole.was_usd, whole.now_usd, whole.difference_usd) == (
        Decimal("0.00024"), Decimal("0.00082"), Decimal("0.00058"),
    )  # fmt: skip
