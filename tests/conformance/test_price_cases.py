"""A9: every recorded price case comes out to the last digit."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from tests.fixtures_folder import folder

from tollkeeper.prices import PriceBook
from tollkeeper.prices.file import parse
from tollkeeper.values import Charge, Part, Provider, Reading, Usage

CASES: list[dict[str, Any]] = json.loads((folder() / "price_cases.json").read_text())

#: Cases that this version does not cover, by id, and why.
NOT_COVERED = {
    "P36-repeating-decimal": "seconds of audio are no usage kind yet",
}
#: Cases whose prices are not in the price data: the price file that gives them.
OVERRIDES = {
    # Windows by weekday are not in the price data: the off-peak list as an override.
    "P28-deepseek-weekend-offpeak": """
        [[price]]
        provider = "deepseek"
        model = "deepseek-v4-flash"
        input = "0.15"
        cache_read = "0.003"
        output = "0.6"
    """,
    "P34-openrouter-reported": """
        [[price]]
        provider = "openrouter"
        model = "openai/gpt-4.1-mini"
        web_search = 10
    """,
    "P38-unknown-model": """
        [[price]]
        model = "gpt-6.2-sol"
        input = "2"
        output = "10"
    """,
}
ADVISOR = "P22-anthropic-advisor-two-models"


def provider(name: str) -> Provider:
    return Provider(name=name, base_url="https://provider.example/v1", dialects=frozenset(), prices=name)


def disjoint(usage: dict[str, int]) -> Usage:
    """Our usage from the cases' inclusive counts: caches are inside input_tokens, reasoning inside output_tokens."""
    read, write = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    write_1h = usage.get("cache_write_1h_tokens", 0)
    return Usage(
        input=usage["input_tokens"] - read - write,
        cache_read=read,
        cache_write_5m=write - write_1h,
        cache_write_1h=write_1h,
        output=usage.get("output_tokens", 0),
        reasoning=usage.get("output_reasoning_tokens", 0),
        web_search=usage.get("web_searches", 0),
    )


def priced(case: dict[str, Any], overrides: str = "") -> Charge:
    context = case["price_context"] or {}
    parts: tuple[Part, ...]
    if case["id"] == ADVISOR:
        parts = (
            Part(Usage(input=2411, output=145), "claude-sonnet-5"),
            Part(Usage(input=2543, output=18), "claude-opus-4-8"),
        )
    else:
        parts = (Part(disjoint(case["usage"])),)
    reading = Reading(parts=parts, tier=context.get("service_tier", context.get("processing")))
    return PriceBook(parse(overrides)).charge(
        reading,
        provider=provider(case["provider"]),
        model=case["model"],
        at_us=int(datetime.fromisoformat(case["when"]).timestamp()) * 1_000_000,
    )


@pytest.mark.parametrize("case", [case for case in CASES if case["id"] not in NOT_COVERED], ids=lambda case: case["id"])
def test_price_case(case: dict[str, Any]) -> None:
    """A9: the terms and their exact sum are the case's own, and the amount is that sum in nanos."""
    charge = priced(case, OVERRIDES.get(case["id"], ""))
    expected = Decimal(case["expected_usd"])
    terms = sorted((Decimal(term.quantity), Decimal(term.usd), term.per) for term in charge.terms)
    assert terms == sorted((Decimal(quantity), Decimal(usd), per) for quantity, usd, per in case["terms"])
    assert sum(quantity * usd / per for quantity, usd, per in terms) == expected
    assert charge.amount_nanos == round(expected * 10**9)
    assert (charge.status, charge.missing) == ("priced", ())


@pytest.mark.parametrize("name", OVERRIDES)
def test_without_its_override_a_case_is_not_right(name: str) -> None:
    """The overrides of this file are needed: without them the weekend costs double, and the unknown is said."""
    case = next(case for case in CASES if case["id"] == name)
    charge = priced(case)
    expected = {"P28": "priced", "P34": "partial", "P38": "unpriced"}
    assert charge.status == expected[name[:3]]
    assert charge.amount_nanos != round(Decimal(case["expected_usd"]) * 10**9)


def test_not_covered_cases_exist() -> None:
    """What is listed as not covered, or as overridden, is a case."""
    assert {*NOT_COVERED, *OVERRIDES, ADVISOR} <= {case["id"] for case in CASES}
