"""tollkeeper.prices.rates: sheets compiled into bands of ready rates."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tollkeeper.prices.rates import BILLED, PARENTS, Price, call_context, compile_sheet, per, priced_as
from tollkeeper.values import KINDS, Term, Usage


def flat(usd: str) -> Price:
    return ((0, Decimal(usd)),)


def terms_of(sheet: dict[str, Price], usage: Usage) -> tuple[list[tuple[str, int, str]], list[str], Decimal, bool]:
    """(kind, quantity, usd) of each term, the missing kinds, the total and whether any of it has a price."""
    rates = compile_sheet(sheet)
    assert rates is not None
    terms: list[Term] = []
    missing: list[str] = []
    total, known = rates.add(usage, "m", Decimal(0), terms, missing)
    return [(term.kind, term.quantity, term.usd) for term in terms], missing, total, known


def test_every_kind_is_billed_but_reasoning() -> None:
    """Each usage kind has a place in a band, and every parent is a kind."""
    assert {*BILLED, "reasoning"} == set(KINDS)
    assert KINDS[-1] == "reasoning"
    assert {*PARENTS, *(parent for parents in PARENTS.values() for parent in parents)} <= set(BILLED)
    assert [kind for kind in BILLED if per(kind) == 1000] == ["web_search", "file_search", "code_session"]
    assert [kind for kind in BILLED if per(kind) == 3600] == ["audio_seconds"]


@pytest.mark.parametrize(("prompt", "usd"), [(0, "1"), (99, "1"), (100, "2"), (101, "2"), (199, "2"), (200, "3")])
def test_steps(prompt: int, usd: str) -> None:
    """A4: a step holds from its first token on, and prices the whole call."""
    sheet = {"input": ((0, Decimal(1)), (100, Decimal(2)), (200, Decimal(3))), "output": flat("10")}
    terms, _, _, _ = terms_of(sheet, Usage(input=prompt, output=1))
    assert terms == [*([("input", prompt, usd)] if prompt else []), ("output", 1, "10")]


def test_the_whole_prompt_decides_the_step() -> None:
    """A4: cached, written and audio tokens count towards the step, output does not."""
    sheet = {"input": ((0, Decimal(1)), (100, Decimal(2))), "cache_read": flat("0"), "output": flat("10")}
    assert terms_of(sheet, Usage(input=1, cache_read=99))[0][0] == ("input", 1, "2")
    assert terms_of(sheet, Usage(input=1, cache_read=98, output=10_000))[0][0] == ("input", 1, "1")


@pytest.mark.parametrize(
    ("kind", "usd"),
    [
        ("cache_read", "2"),
        ("cache_write_5m", "2"),
        ("cache_write_1h", "2"),
        ("input_audio", "2"),
        ("cache_read_audio", "2"),
        ("output_audio", "8"),
        ("output_image", "8"),
    ],
)
def test_a_kind_without_its_own_price_takes_its_parents(kind: str, usd: str) -> None:
    """A5: the parent's price, and the kind is named as missing."""
    terms, missing, _, known = terms_of({"input": flat("2"), "output": flat("8")}, Usage(**{kind: 7}))
    assert (terms, missing, known) == ([(kind, 7, usd)], [kind], True)


def test_an_image_in_the_prompt_is_priced_as_text() -> None:
    """A4: its parent's price is its own; without any it is missing like the rest."""
    assert terms_of({"input": flat("2")}, Usage(input_image=7))[:2] == ([("input_image", 7, "2")], [])
    assert terms_of({"output": flat("2")}, Usage(input_image=7))[1] == ["input_image"]


def test_priced_as() -> None:
    """A5: a kind's own price counts, else its nearest parent's."""
    assert priced_as({"input", "cache_write_5m"}, "cache_write_1h") == "cache_write_5m"
    assert priced_as({"input"}, "input") == "input"
    assert priced_as({"input"}, "web_search") is None


def test_one_hour_writes_fall_back_to_five_minute_ones() -> None:
    """A4: an hour's write without a price costs at least what a five-minute one does, and is named."""
    sheet = {"input": flat("2"), "cache_write_5m": flat("2.5")}
    assert terms_of(sheet, Usage(cache_write_1h=1))[:2] == ([("cache_write_1h", 1, "2.5")], ["cache_write_1h"])


def test_a_kind_without_any_price_adds_nothing_and_is_named() -> None:
    """A5: searches that have no price are missing; alone they are no price at all."""
    sheet = {"input": flat("2")}
    assert terms_of(sheet, Usage(input=1, web_search=2)) == (
        [("input", 1, "2")],
        ["web_search"],
        Decimal("0.000002"),
        True,
    )
    assert terms_of(sheet, Usage(web_search=2))[3] is False
    assert terms_of(sheet, Usage())[3] is True


def test_zero_is_a_price() -> None:
    """A5: an explicit 0 is charged, with its term, and nothing is missing."""
    assert terms_of({"input": flat("0")}, Usage(input=5)) == ([("input", 5, "0")], [], Decimal(0), True)
    assert compile_sheet({}) is None


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        (0, [("output", 10, "8")]),
        (4, [("reasoning", 4, "3"), ("output", 6, "8")]),
        (10, [("reasoning", 10, "3")]),
        (99, [("reasoning", 10, "3")]),
    ],
)
def test_reasoning_with_a_price_of_its_own(reasoning: int, expected: list[tuple[str, int, str]]) -> None:
    """Reasoning is inside output: its price replaces output's for that part and never comes on top."""
    sheet = {"output": flat("8"), "reasoning": flat("3")}
    assert terms_of(sheet, Usage(output=10, reasoning=reasoning))[0] == expected


def test_reasoning_without_a_price_is_output() -> None:
    """Reasoning is information only where the model has no price for it."""
    assert terms_of({"output": flat("8")}, Usage(output=10, reasoning=9))[0] == [("output", 10, "8")]


def test_bound_takes_the_dearest_kind_and_step() -> None:
    """The bound is over every input-side kind and over every step that the prompt may reach, cheaper ones above too."""
    sheet = {
        "input": ((0, Decimal(4)), (100, Decimal(3))),
        "cache_write_1h": ((0, Decimal(8)), (100, Decimal(6))),
        "output": flat("10"),
        "output_audio": flat("40"),
        "requests": flat("5"),
    }
    rates = compile_sheet(sheet)
    assert rates is not None
    assert rates.bound(100, 2) == Decimal("0.0008") + Decimal("0.00008") + Decimal("0.005")
    assert rates.bound(0, 0) == Decimal("0.005")


def test_no_bound_for_tokens_without_a_price() -> None:
    """Tokens that have no price have no bound, unless a fee per request is the price."""
    embedding, fee = compile_sheet({"input": flat("2")}), compile_sheet({"requests": flat("5")})
    assert embedding is not None
    assert fee is not None
    assert embedding.bound(1_000_000, 0) == Decimal(2)
    assert embedding.bound(1, 1) is None
    assert fee.bound(10, 10) == Decimal("0.005")


@pytest.mark.parametrize(
    ("tier", "speed", "geo", "context"),
    [
        (None, None, None, {}),
        ("default", "standard", "global", {}),
        ("STANDARD", "", "not_available", {}),
        ("auto", None, "", {}),
        ("on_demand", None, None, {}),
        ("Flex", None, None, {"service_tier": "flex"}),
        ("ON_DEMAND_PRIORITY", None, None, {"service_tier": "priority"}),
        ("batch", "fast", "us", {"processing": "batch", "speed": "fast", "geo": "us"}),
        ("scale", "batch", "standard", {"service_tier": "scale", "speed": "batch", "geo": "standard"}),
    ],
)
def test_call_context(tier: str | None, speed: str | None, geo: str | None, context: dict[str, str]) -> None:
    """A4: the usual tier by any of its names is no context; the others are in the price data's words."""
    assert call_context(tier, speed, geo) == context
