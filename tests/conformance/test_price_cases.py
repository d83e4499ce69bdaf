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

#: The model that the data do not have yet, as a user prices it: three lines below the head.
UNKNOWN = "P38-unknown-model"
THREE_LINES = """
    [[price]]
    model = "gpt-6.2-sol"
    input = "2"
    output = "10"
"""
ADVISOR = "P22-anthropic-advisor-two-models"


def provider(name: str) -> Provider:
    return Provider(name=name, base_url="https://provider.example/v1", dialects=frozenset(), prices=name)


def disjoint(usage: dict[str, int]) -> Usage:
    """Our usage from the cases' inclusive counts: caches are inside input_tokens, reasoning inside output_tokens."""
    read, write = usage.get("cache_read_tokens", 0), usage.get("cache_write_tokens", 0)
    write_1h = usage.get("cache_write_1h_tokens", 0)
    return Usage(
        input=usage.get("input_tokens", 0) - read - write,
        cache_read=read,
        cache_write_5m=write - write_1h,
        cache_write_1h=write_1h,
        output=usage.get("output_tokens", 0),
        reasoning=usage.get("output_reasoning_tokens", 0),
        web_search=usage.get("web_searches", 0),
        audio_seconds=usage.get("audio_seconds", 0),
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_price_case(case: dict[str, Any]) -> None:
    """A9: the terms and their exact sum are the case's own, and the amount is that sum in nanos."""
    charge = priced(case, THREE_LINES if case["id"] == UNKNOWN else "")
    expected = Decimal(case["expected_usd"])
    terms = sorted((Decimal(term.quantity), Decimal(term.usd), term.per) for term in charge.terms)
    assert terms == sorted((Decimal(quantity), Decimal(usd), per) for quantity, usd, per in case["terms"])
    assert sum(quantity * usd / per for quantity, usd, per in terms) == expected
    assert charge.amount_nanos == round(expected * 10**9)
    assert (charge.status, charge.missing) == ("priced", ())


def test_an_unknown_model_is_unpriced_without_its_three_lines() -> None:
    """A5: what nobody has a price for has no amount, and is told."""
    charge = priced(next(case for case in CASES if case["id"] == UNKNOWN))
    assert (charge.amount_nanos, charge.status) == (None, "unpriced")


def test_special_cases_exist() -> None:
    """What is treated apart here is a case."""
    assert {UNKNOWN, ADVISOR} <= {case["id"] for case in CASES}
