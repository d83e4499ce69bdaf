"""tollkeeper.prices.data: which model the price data means, and its sheet at an instant."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data import providers
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import Usage as DataUsage

from tollkeeper.prices import PriceBook
from tollkeeper.prices.data import changes, find, midnight_us, sheet
from tollkeeper.prices.names import equal_names
from tollkeeper.values import Part, Provider, Reading, Usage

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("provider", "name", "model", "priced_by"),
    [
        ("openai", "gpt-4o", "gpt-4o", "openai"),
        ("openai", "GPT-4o-2024-08-06", "gpt-4o", "openai"),
        ("openai", "openai/gpt-4o", "gpt-4o", "openai"),
        ("openai", "gpt-5.2-20251211", "gpt-5.2", "openai"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5", "anthropic"),
        ("google", "models/gemini-2.5-pro", "gemini-2.5-pro", "google"),
        ("google", "publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro", "google"),
        ("aws", "us.anthropic.claude-opus-4-5-20251101-v1:0", "regional.anthropic.claude-opus-4-5-v1:0", "aws"),
        ("aws", "global.anthropic.claude-opus-4-5-20251101-v1:0", "global.anthropic.claude-opus-4-5-v1:0", "aws"),
        ("azure", "gpt-5", "gpt-5", "openai"),
        ("openrouter", "openai/gpt-4.1-mini", "openai/gpt-4.1-mini", "openrouter"),
        (None, "gpt-4o", "gpt-4o", "openai"),
        (None, "text-embedding-3-small", "text-embedding-3-small", "openai"),
        (None, "claude-sonnet-4-5", "claude-sonnet-4-5", "anthropic"),
        (None, "llama-3.3-70b-versatile", "llama-3.3-70b-versatile", "groq"),
        (None, "groq/llama-3.3-70b-versatile", "llama-3.3-70b-versatile", "groq"),
        (None, "xai/grok-4.3", "grok-4.3", "x-ai"),
    ],
)
def test_finds(provider: str | None, name: str, model: str, priced_by: str) -> None:
    """A6: exact names, declared aliases, recognised decorations; without a provider the vendor's own model."""
    found = find(provider, name)
    assert found is not None
    assert (found.model.id, found.provider, found.borrowed) == (model, priced_by, provider == "azure")


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai", "gpt-6.2-sol"),
        ("openai", "gpt-4o-2030-01-01"),
        ("openai", "my-gpt-4o"),
        ("openai", "anthropic/claude-sonnet-4-5"),
        ("openai", "claude-sonnet-4-5"),
        ("openai", "llama3:8b"),
        ("openai", "omni-moderation-latest"),
        ("google", "gemini-1.5-flash-8b"),
        ("nobody", "gpt-4o"),
        (None, "vendor/model:free"),
        (None, "llama3:8b"),
        (None, ""),
    ],
)
def test_finds_nothing(provider: str | None, name: str) -> None:
    """A6: no substring, no other vendor, no undeclared snapshot is a match."""
    assert find(provider, name) is None


def declared() -> Iterator[tuple[str, str]]:
    for provider in providers:
        for model in provider.models:
            yield from ((provider.id, name) for name in equal_names(model.match))


@pytest.mark.parametrize("usage", [Usage(input=1000, cache_read=50, output=10), Usage(input=300_001, output=10)])
def test_every_declared_name_costs_what_the_library_says(usage: Usage) -> None:
    """A9: for every name that the data declares, our terms add up to the library's own arithmetic."""
    theirs = DataUsage(
        input_tokens=usage.input_tokens, cache_read_tokens=usage.cache_read, output_tokens=usage.output_tokens
    )
    book, snapshot, compared, wrong = PriceBook(), get_snapshot(), 0, []
    for provider, name in declared():
        place = Provider(name=provider, base_url="", dialects=frozenset(), prices=provider)
        charge = book.charge(Reading(parts=(Part(usage),)), provider=place, model=name, at_us=NOON_US)
        expected = snapshot.calc(theirs, name, provider, None, NOON).total_price
        ours = sum((Decimal(term.quantity) * Decimal(term.usd) / term.per for term in charge.terms), Decimal(0))
        compared += charge.status != "unpriced"
        if ours != expected:
            wrong.append((provider, name, ours, expected))
    assert wrong == []
    assert compared > 2500


def test_every_clause_of_the_data_is_known() -> None:
    """The data has no kind of match clause and no constraint that is not handled."""

    def clauses(clause: Any) -> Iterator[str]:
        yield type(clause).__name__
        for inner in (*getattr(clause, "or_", ()), *getattr(clause, "and_", ())):
            yield from clauses(inner)

    models = [model for provider in providers for model in provider.models]
    kinds = {f"Clause{kind}" for kind in ("Equals", "StartsWith", "EndsWith", "Contains", "Regex", "Or", "And")}
    assert {kind for model in models for kind in clauses(model.match)} <= kinds
    priced = [entry for model in models if isinstance(model.prices, list) for entry in model.prices]
    variants = [variant for model in models for variant in model.price_variants or ()]
    constraints = {type(entry.constraint).__name__ for entry in (*priced, *variants)}
    assert constraints == {"NoneType", "StartDateConstraint", "TimeOfDateConstraint"}


def test_context_tiers_are_inclusive_steps() -> None:
    """A4: the data's `> 272000` is a step from 272,001 prompt tokens on."""
    found = find("openai", "gpt-5.4")
    assert found is not None
    prices, gaps = sheet(found, NOON_US, {})
    assert prices["input"] == ((0, Decimal("2.5")), (272_001, Decimal(5)))
    assert gaps == ()


def test_gaps_say_what_the_data_does_not_know() -> None:
    """A4: a tier without a variant, before its first day, or of a borrowed model is reported, not priced as standard."""
    gpt, azure = find("openai", "gpt-5.4"), find("azure", "gpt-5.4")
    assert gpt is not None
    assert azure is not None
    priority = {"service_tier": "priority"}
    before = midnight_us(datetime(2026, 10, 11, tzinfo=UTC).date())
    assert sheet(gpt, NOON_US, priority)[1] == ()
    assert sheet(gpt, NOON_US, {"service_tier": "scale"})[1] == ("service_tier=scale",)
    assert sheet(gpt, before, priority)[1] == ("service_tier=priority",)
    assert sheet(azure, NOON_US, priority) == (sheet(azure, NOON_US, {})[0], ("service_tier=priority",))


def test_changes_are_dates_and_times_of_day() -> None:
    """A price with windows in the day changes at each edge; one with dates at their UTC midnights."""
    flash = find("deepseek", "deepseek-v4-flash")
    assert flash is not None
    edges = set(changes(flash, NOON_US))
    today = midnight_us(NOON.date())
    hours = {today + hour * 3_600_000_000 for hour in (1, 4, 6, 10)}
    assert hours <= edges
    assert midnight_us((NOON + timedelta(days=1)).date()) + 3_600_000_000 in edges
    assert midnight_us(datetime(2026, 9, 10, tzinfo=UTC).date()) in edges
