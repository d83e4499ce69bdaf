"""tollkeeper.prices.listing: rows, sums and differences as values."""

from __future__ import annotations

from decimal import Decimal

from msgspec import structs
from tests.pricing import NOON, overridden, provider, us

from tollkeeper.prices import PriceBook
from tollkeeper.prices.listing import Row, difference, explain, nameless, product, rows
from tollkeeper.values import Term, Usage


def test_rows_have_steps_and_ways() -> None:
    """A4: each step of a prompt's length is a row, and each tier that has prices of its own."""
    found = {
        (row.kind, row.from_tokens, *row.when.values()): row.usd
        for row in rows(PriceBook(), NOON, [provider()])
        if row.model == "gpt-5.4"
    }
    assert (found["input", 0], found["input", 272_001]) == ("2.5", "5")
    assert (found["input", 0, "priority"], found["input", 0, "flex"]) == ("5", "1.25")
    assert ("web_search", 0, "flex") not in found  # as usual


def test_since_is_the_last_change_of_the_price_itself() -> None:
    """A date at which another price changed is not this one's; a price as old as the data has no beginning."""
    book = overridden('[[price]]\nmodel = "gpt-5.6-luna"\nfile_search = "3"\nfrom = 2026-11-01')
    found = {
        row.kind: row.since_us
        for row in rows(book, NOON, [provider()])
        if row.model == "gpt-5.6-luna" and not row.when and not row.from_tokens
    }
    assert found["file_search"] == us("2026-11-01T00:00:00")
    assert found["input"] == us("2026-07-30T00:00:00")
    assert found["code_session"] is None


def test_windows_have_a_beginning() -> None:
    """An off-peak price holds since its window opened."""
    (row,) = (
        row for row in rows(PriceBook(), us("2026-11-22T02:00:00"), [provider("deepseek")])
        if (row.model, row.kind) == ("deepseek-v4-flash", "input")
    )  # fmt: skip
    assert (row.usd, row.layers, row.since_us) == ("0.15", ("shipped #8",), us("2026-11-20T10:00:00"))


def test_nameless() -> None:
    """Entries for any provider are listed where the price data do not have the name."""
    book = overridden('[[price]]\nmodels = ["mine", "gpt-4o"]\ninput = 1')
    assert [(row.provider, row.model) for row in nameless(book, NOON)] == [(None, "mine")]


def test_explain_is_the_charge() -> None:
    """A8: the lines' exact sum is the amount; a kind at its parent's price names the parent's layer."""
    usage = Usage(input=1000, cache_write_5m=7, output=3)
    charge, lines = explain(PriceBook(), provider(), "gpt-4o", usage, NOON)
    assert charge.missing == ("cache_write_5m",)
    assert {line.layers for line in lines} == {("genai-prices",)}
    assert round(sum(line.usd for line in lines) * 10**9) == charge.amount_nanos


def test_product() -> None:
    """A product is exact, and to 28 digits where it does not end."""
    assert product(Term("m", "input", 3, "0.1")) == Decimal("0.0000003")
    assert str(product(Term("m", "audio_seconds", 10, "0.04", 3600))) == "0.0001111111111111111111111111111"


def test_difference() -> None:
    """The same price written otherwise is no difference."""
    row = Row(provider="p", model="m", kind="input", usd="2.50", per=1_000_000, layers=("own #1",))
    assert difference([row], [structs.replace(row, usd="2.5", layers=("own #2",))]) == []
    (change,) = difference([row], [structs.replace(row, usd="3")])
    assert change.before == row
    assert [each.after for each in difference([row], [])] == [None]
