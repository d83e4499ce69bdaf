"""tollkeeper.prices.names: exactly, by alias, or a pattern and a decoration; never by substring."""

from __future__ import annotations

import pytest
from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
)

from tollkeeper.prices.names import (
    accepts,
    dashed_date,
    equal_names,
    has_pattern,
    is_form,
    is_placed,
    spellings,
    vendor,
)

SONNET = ClauseStartsWith("claude-sonnet-4-5")
ARGON = ClauseAnd([ClauseStartsWith("argon"), ClauseRegex(r"^(?!.*-tts)")])


@pytest.mark.parametrize(
    ("clause", "name"),
    [
        (ClauseEquals("GPT-4o"), "gpt-4o"),
        (SONNET, "claude-sonnet-4-5"),
        (SONNET, "claude-sonnet-4-5-20250929"),
        (SONNET, "claude-sonnet-4-5@20250929"),
        (SONNET, "claude-sonnet-4-5-latest"),
        (SONNET, "claude-sonnet-4-5-20250929-v1:0"),
        (ClauseStartsWith("gemini-2.5-pro"), "gemini-2.5-pro-preview-05-06"),
        (ClauseStartsWith("gemini-3-flash-preview-"), "gemini-3-flash-preview-09-2025"),
        (ClauseContains("gemini-2.0-flash-0"), "gemini-2.0-flash-001"),
        (ClauseStartsWith("claude-sonnet-4-2025"), "claude-sonnet-4-20250514"),
        (ClauseStartsWith("claude-sonnet-4@"), "claude-sonnet-4@20250514"),
        (ClauseContains("claude-3-haiku-20240307"), "us.anthropic.claude-3-haiku-20240307-v1:0"),
        (ClauseContains("meta.llama3-8b-instruct"), "meta.llama3-8b-instruct-v1:0"),
        (ClauseContains("claude-x"), "arn:aws:bedrock:us-east-1:123:inference-profile/us.anthropic.claude-x-v1:0"),
        (ClauseEndsWith("anthropic.claude-x"), "eu.anthropic.claude-x"),
        (ClauseStartsWith("ft:gpt-4o-2024-"), "ft:gpt-4o-2024-08-06:acme::a1b2"),
        (ClauseStartsWith("ft:gpt-3.5-turbo"), "ft:gpt-3.5-turbo-0125:acme:suffix:a1b2"),
        (ClauseStartsWith("gpt-4o-mini-2024-07-18.ft-"), "gpt-4o-mini-2024-07-18.ft-0123abc"),
        (ClauseRegex(r"^grok-4\.3-\d{8}$"), "grok-4.3-20260101"),
        (ClauseRegex(r"^gemini-3\.5-flash-\d"), "gemini-3.5-flash-001"),
        (ClauseOr([ClauseEquals("a"), ClauseEquals("b")]), "b"),
        (ARGON, "argon-001"),
    ],
)
def test_accepts(clause: object, name: str) -> None:
    """A6: a declared name, or a declared pattern with a date, version, region or organisation around it."""
    assert accepts(clause, name)


@pytest.mark.parametrize(
    ("clause", "name"),
    [
        (ClauseEquals("gpt-4o"), "gpt-4o-2024-08-06"),
        (SONNET, "claude-sonnet-4-50"),
        (SONNET, "claude-sonnet-4-5-turbo"),
        (SONNET, "my-claude-sonnet-4-5"),
        (ClauseStartsWith("claude-opus-4-1"), "claude-opus-4-10"),
        (ClauseStartsWith("claude-opus-4-1"), "claude-opus-4-1234"),
        (ClauseContains("gemini-1.5-flash"), "gemini-1.5-flash-8b"),
        (ClauseContains("gemini-1.5-flash"), "not-gemini-1.5-flash"),
        (ClauseContains("moderation"), "omni-moderation-latest"),
        (ClauseContains("claude-x"), "claude-x/../evil"),
        (ClauseEndsWith("claude-x"), "notclaude-x"),
        (ClauseStartsWith("gpt-4o-audio-preview"), "gpt-4o-audio-preview:free"),
        (ClauseRegex(r"mini"), "gpt-4o-mini"),
        (ClauseRegex(r"^gemini-3\.5-flash-\d"), "gemini-3.5-flash-8b"),
        (ARGON, "argon-tts-001"),
        (ARGON, "argon-nano"),
        (ClauseStartsWith("llama3"), "llama3:8b"),
        (object(), "anything"),
    ],
)
def test_refuses(clause: object, name: str) -> None:
    """A6: what is left around a pattern and is no decoration makes another model of it."""
    assert not accepts(clause, name)


@pytest.mark.parametrize(
    ("name", "vendors", "expected"),
    [
        ("GPT-4o", set(), ["gpt-4o"]),
        ("openai/gpt-4o", {"openai"}, ["openai/gpt-4o", "gpt-4o"]),
        ("openrouter/openai/gpt-4o:free", {"openrouter"}, ["openrouter/openai/gpt-4o:free", "openai/gpt-4o:free"]),
        ("vendor/model:free", {"openai"}, ["vendor/model:free"]),
        ("llama3:8b", {"llama3"}, ["llama3:8b"]),
        ("models/gemini-2.5-pro", {"google"}, ["models/gemini-2.5-pro", "gemini-2.5-pro"]),
        ("publishers/google/models/g", {"google"}, ["publishers/google/models/g", "g"]),
        ("openai/", {"openai"}, ["openai/"]),
    ],
)
def test_spellings(name: str, vendors: set[str], expected: list[str]) -> None:
    """A6: a name is split at a known vendor only, at the first slash, and never at a colon."""
    assert list(spellings(name, vendors)) == expected


def test_snapshots_and_vendors() -> None:
    """A dated name is told from its model's, and a vendor is known by its usual names."""
    assert is_form("gpt-4o-2024-08-06", "gpt-4o")
    assert is_form("GPT-6.2-sol-20261118", "gpt-6.2-sol")
    assert is_form("openai/gpt-4o", "gpt-4o")
    assert not is_form("gpt-4o-mini", "gpt-4o")
    assert not is_form("gpt-4o-mini-2024-07-18", "gpt-4o")
    assert dashed_date("gpt-5.2-20251211") == "gpt-5.2-2025-12-11"
    assert (vendor("XAI"), vendor("gemini"), vendor("openai")) == ("x-ai", "google", "openai")


def test_what_a_clause_declares() -> None:
    """Names in full are told from patterns."""
    names, mixed = ClauseOr([ClauseEquals("A"), ClauseEquals("b")]), ClauseOr([ClauseEquals("a"), SONNET])
    assert (list(equal_names(names)), has_pattern(names)) == (["a", "b"], False)
    assert (list(equal_names(mixed)), has_pattern(mixed)) == (["a"], True)
    assert has_pattern(ARGON)


def test_places_in_front() -> None:
    """A region, vendor or profile in front says more than the bare name; another model, or another name around it, does not."""
    name = "claude-sonnet-4-5-20250929"
    for placed in (
        f"us.anthropic.{name}-v1:0", f"global.anthropic.{name}-v1:0", f"anthropic.{name}", f"US.anthropic.{name}",
        f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/eu.anthropic.{name}-v1:0",
    ):  # fmt: skip
        assert is_placed(placed, name)
    for other in (name, f"{name}-v1:0", f"us.anthropic.{name}-fast", f"my-{name}", "gpt-4o", f"openai/{name}"):
        assert not is_placed(other, name)
