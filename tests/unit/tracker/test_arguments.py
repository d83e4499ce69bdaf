"""What the library refuses, and how it says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.testing.clock import START_US
from tollkeeper.tracker import arguments
from tollkeeper.values import MAX_TOKENS, Usage

NOW = datetime.fromtimestamp(START_US // 1_000_000, UTC)
NAN = float("nan")


def instant(value: object) -> int:
    return arguments.instant(value, "timestamp", START_US)


def cost(value: object) -> Decimal | None:
    return arguments.cost(value, "cost_usd")


def tags(value: object) -> tuple[str, ...]:
    return arguments.scopes("p", None, None, None, None, value).tags


def usage(**kinds: Any) -> Usage:
    return arguments.usage(Usage(**kinds), None, None, 0, 0)


def counts(prompt: object, output: object, cached: object = 0, written: object = 0) -> Usage:
    return arguments.usage(None, prompt, output, cached, written)


class Agent(StrEnum):
    WRITER = "writer"


BAD_IDS = ("", "x" * 129, "a\nb", "a\x00b", "\ud800", 7, None, b"p", ["p"])
BAD_COUNTS = (-1, MAX_TOKENS + 1, 10**5000, True, 1.0, NAN, "5", Decimal(5))
BAD_COSTS = (
    0.5,
    NAN,
    True,
    "NaN",
    "sNaN",
    "-0.01",
    Decimal("Infinity"),
    "1e400",
    "1e9999999",
    10**10,
    "five",
    "",
    [1],
    b"1",
)
BAD_TIMES = (
    datetime(2026, 1, 1),  # noqa: DTZ001 what is refused
    datetime(1999, 12, 31, 23, 59, tzinfo=UTC),
    NOW + timedelta(days=1, microseconds=1),
    datetime.max.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    START_US,
    "2026-01-01",
    NOW.date(),
)


@pytest.mark.parametrize(
    ("check", "values", "argument"),
    [
        (lambda value: arguments.name(value, "project_id"), BAD_IDS, "project_id"),
        (
            lambda value: arguments.optional(value, "agent_id"),
            [each for each in BAD_IDS if each is not None],
            "agent_id",
        ),
        (arguments.model, ("", "x" * 257, "a\tb", None, 3), "model"),
        (lambda value: arguments.count(value, "prompt_tokens"), (*BAD_COUNTS, None), "prompt_tokens"),
        (lambda value: counts(value, 1), (*BAD_COUNTS, None), "prompt_tokens"),
        (lambda value: counts(1, value), (*BAD_COUNTS, None), "completion_tokens"),
        (lambda value: counts(1, 1, value), (*BAD_COUNTS, False, 0.0), "cached_tokens"),
        (lambda value: counts(1, 1, 0, value), (*BAD_COUNTS, False, 0.0), "cache_write_tokens"),
        (lambda value: usage(cache_read=value), BAD_COUNTS, "usage.cache_read"),
        (lambda value: arguments.usage(value, None, None, 0, 0), (5, {"input": 1}, "x"), "usage"),
        (cost, BAD_COSTS, "cost_usd"),
        (instant, BAD_TIMES, "timestamp"),
        (tags, ("one", 7, [""], ["a", 3], None, [f"t{each}" for each in range(17)]), "tags"),
        (lambda value: arguments.one_of(value, "period", ("hour", "day")), ("week", "", None, 1, []), "period"),
    ],
)
def test_mistakes_name_their_argument(
    check: Callable[[object], object], values: tuple[object, ...], argument: str
) -> None:
    """What cannot be right is a ValueError of one line that begins with the argument's name."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{argument}: expected .{{1,250}}$"):
            check(value)


def test_good_values_pass() -> None:
    """The edges of what is allowed pass, as the ledger keeps them."""
    assert arguments.name("x" * 128, "id") == "x" * 128
    assert type(arguments.name(Agent.WRITER, "agent_id")) is str
    assert [arguments.model(name) for name in ("llama3:8b", "vendor/model:free")] == ["llama3:8b", "vendor/model:free"]
    assert arguments.count(MAX_TOKENS, "n") == MAX_TOKENS
    assert tags(["b", "a", "b"]) == tags(("a", "b")) == tags({"b", "a"}) == ("a", "b")
    assert instant(None) == START_US
    assert instant(datetime(2026, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))) == START_US
    assert instant(NOW + timedelta(days=1)) == START_US + 86_400_000_000
    assert instant(datetime(2000, 1, 1, tzinfo=UTC)) == 946_684_800_000_000


def test_cached_tokens_are_part_of_the_prompt() -> None:
    """OpenAI's convention: the prompt is split into disjoint kinds, and its parts never pass the whole."""
    assert counts(100, 5, 60, 30) == Usage(input=10, cache_read=60, cache_write_5m=30, output=5)
    assert counts(100, 5, 100) == Usage(cache_read=100, output=5)
    with pytest.raises(ValueError, match=r"^prompt_tokens: expected the whole prompt with its 60 cached_tokens"):
        counts(89, 5, 60, 30)


def test_usage_or_counts() -> None:
    """Usage stands alone: a count beside it would be counted twice or not at all."""
    given_usage = Usage(input=3, cache_read=2, web_search=1)
    assert arguments.usage(given_usage, None, None, 0, 0) is given_usage
    for beside in ((3, None, 0, 0), (None, 0, 0, 0), (None, None, 2, 0), (None, None, 0, 2)):
        with pytest.raises(ValueError, match=r"^usage: expected either"):
            arguments.usage(given_usage, *beside)


@pytest.mark.parametrize("value", ["0.005955", Decimal("0.005955"), "5.955e-3"])
def test_costs_are_exact(value: object) -> None:
    """A cost keeps its digits; 0 is zero and None is not known."""
    assert cost(value) == Decimal("0.005955")
    assert (cost(0), cost(None)) == (Decimal(0), None)


def test_a_float_is_told_what_to_write() -> None:
    """A float cost is refused with the two ways to write it."""
    with pytest.raises(ValueError, match=r"cost_usd: .*got 0\.1: write Decimal\('0\.1'\) or '0\.1'"):
        cost(0.1)


@given(
    st.one_of(
        st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.decimals(), st.datetimes(), st.binary()
    )
)
def test_nothing_else_than_a_value_error(value: object) -> None:
    """Whatever is passed, a check answers or raises ValueError."""
    checks: list[Callable[[object], object]] = [
        arguments.model, instant, cost, tags, lambda each: counts(each, 0), lambda each: counts(5, 0, each),
    ]  # fmt: skip
    for check in checks:
        with contextlib.suppress(ValueError):
            check(value)


def test_status() -> None:
    """An HTTP status has three digits, or is not known."""
    assert [arguments.status(value) for value in (None, 100, 599)] == [None, 100, 599]
    for value in (99, 600, True, "200", 200.0):
        with pytest.raises(ValueError, match=r"^http_status: expected a whole number from 100 to 599, got "):
            arguments.status(value)


def test_tags() -> None:
    """Tags are a set in a fixed order; what is none says so."""
    assert arguments.labels(["b", "a", "b"], "tags") == ("a", "b")
    for wrong in ("a", 5, [""], [1], [str(number) for number in range(17)]):
        with pytest.raises(ValueError, match="tags: expected"):
            arguments.labels(wrong, "tags")
