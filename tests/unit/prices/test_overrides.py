"""tollkeeper.prices with a price file: which entry counts for which name, and when."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from tests.pricing import charge, overridden, provider, us

from tollkeeper.errors import ConfigError
from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import parse
from tollkeeper.values import Term, Usage

DAY_US = 86_400_000_000


def test_zero_price_is_priced() -> None:
    """A5: a model of one's own at 0 costs 0 and is priced, under whatever name."""
    book = overridden('[[price]]\nprovider = "ollama"\nmodel = "llama3:8b"\ninput = "0"\noutput = "0"')
    found = charge(Usage(input=5, output=7), "llama3:8b", place=provider(None, "ollama"), book=book)
    assert (found.amount_nanos, found.status, found.missing) == (0, "priced", ())
    assert found.terms[0] == Term("llama3:8b", "input", 5, "0")
    assert charge(Usage(input=5), "llama3:8b", place=provider(None, "other"), book=book).status == "unpriced"


def test_names_survive() -> None:
    """A6: names with colons and slashes stand in the terms as they came, and are split at a known vendor only."""
    book = overridden('[[price]]\nmodels = ["llama3:8b", "vendor/model:free", "model:free"]\ninput = 1')
    for name in ("llama3:8b", "vendor/model:free"):
        assert charge(Usage(input=1), name, place=provider(None), book=book).terms[0].model == name
    assert charge(Usage(input=1), "other/model:free", place=provider(None), book=book).status == "unpriced"
    assert charge(Usage(input=1), "openai/gpt-4o").terms[0] == Term("openai/gpt-4o", "input", 1, "2.5")


def test_override_starts_on_its_day() -> None:
    """An override counts from its UTC day on, in a book that was asked before."""
    book, start = overridden('[[price]]\nmodel = "gpt-4o"\ninput = "2"\nfrom = 2026-12-01'), us("2026-12-01T00:00:00")
    prices = [charge(Usage(input=1), book=book, at_us=start + more).terms[0].usd for more in (-1, 0, -DAY_US)]
    assert prices == ["2.5", "2", "2.5"]


@pytest.mark.parametrize(
    ("model", "usd"),
    [
        ("gpt-4o", "9"),
        ("gpt-4o-2024-08-06", "9"),
        ("openai/gpt-4o", "9"),
        ("gpt-4o-2024-05-13", "5"),
        ("gpt-4o-mini", "0.15"),
        ("gpt-4o-2024-11-20", "7"),
    ],
)
def test_override_covers_the_dated_names_of_its_model(model: str, usd: str) -> None:
    """A6: an override for gpt-4o is for its dated names that the data calls the same model; a name's own entry wins."""
    book = overridden('[[price]]\nmodel = "gpt-4o-2024-11-20"\ninput = 7\n[[price]]\nmodel = "gpt-4o"\ninput = 9')
    assert charge(Usage(input=1), model, place=provider(), book=book).terms[0].usd == usd


@pytest.mark.parametrize(("bound", "first"), [("above", 1001), ("from_tokens", 1000)])
def test_tiers_at_their_bounds(bound: str, first: int) -> None:
    """A4: at N-1, N and N+1 tokens of the whole prompt, for an exclusive and an inclusive bound; the whole call is priced so."""
    book = overridden(
        f'[[price]]\nmodel = "m"\ninput = 1\noutput = 2\ntiers = [{{{bound} = 1000, input = 3, output = 4}}]'
    )
    for prompt in (999, 1000, 1001):
        found = charge(Usage(input=prompt - 900, cache_read=900, output=1), "m", book=book)
        dear = prompt >= first
        assert [term.usd for term in found.terms] == (["3", "3", "4"] if dear else ["1", "1", "2"])


def test_overrides_build_on_each_other() -> None:
    """A discount on a provider and a surcharge on a place multiply; another tier's list stands alone."""
    head = '[[price]]\nmodel = "claude-haiku-4-5"\n'
    book = overridden(
        f'{head}provider = "anthropic"\nmultiplier = "0.9"\n{head}geo = "us"\nmultiplier = "1.1"\n'
        f'{head}service_tier = "priority"\ninput = "7"\noutput = "8"\n'
    )
    place = provider("anthropic")
    cases = [(None, None, "0.9", "priced"), (None, "us", "0.99", "priced"), ("priority", None, "7", "priced")]
    cases += [("batch", None, "0.45", "priced"), ("batch", "eu", "0.45", "partial")]
    for tier, geo, usd, status in cases:
        found = charge(Usage(input=1), "claude-haiku-4-5", place=place, book=book, tier=tier, geo=geo)
        assert (Decimal(found.terms[0].usd), found.status) == (Decimal(usd), status)


def test_override_without_a_provider_told() -> None:
    """Library use names no provider: an entry of the model's vendor counts, and any entry for a name nobody has."""
    head = "[[price]]\nprovider = "
    book = overridden(
        f'{head}"openai"\nmodel = "gpt-4o"\ninput = 9\n{head}"azure"\nmodel = "gpt-4o"\ninput = 8\n'
        f'{head}"vllm"\nmodel = "mine"\ninput = 7'
    )
    prices = [charge(Usage(input=1), name, book=book).terms[0].usd for name in ("gpt-4o", "mine", "vllm/mine")]
    assert prices == ["9", "7", "7"]


def test_load(tmp_path: Path) -> None:
    """A5: a book of a file or of entries has its prices; a negative price is refused at load; None is without any."""
    path = tmp_path / "prices.toml"
    path.write_text('[[price]]\nmodel = "m"\ninput = "2.50"\noutput = "10"\n')
    assert charge(Usage(input=1_000_000), "m", book=PriceBook.load(path)).amount_nanos == 2_500_000_000
    assert PriceBook.load(parse(path.read_text())).version == PriceBook.load(path).version
    path.write_text('[[price]]\nmodel = "m"\ninput = "-2.50"\n')
    with pytest.raises(ConfigError, match="negative"):
        PriceBook.load(path)
    assert PriceBook.load(None).version == PriceBook().version
