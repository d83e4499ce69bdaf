"""tollkeeper.money: amounts in nanos, one rounding, no float."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal, Inexact, localcontext

import pytest

from tollkeeper.money import MAX_NANOS, format_nanos, parse_usd, to_nanos, to_usd


@pytest.mark.parametrize(
    ("usd", "nanos"),
    [
        ("0", 0),
        ("1.6", 1_600_000_000),
        ("0.0000000005", 0),
        ("0.0000000015", 2),
        ("0.0000000025", 2),
        ("0.00000000250000000001", 3),
        ("-0.0000000015", -2),
    ],
)
def test_rounds_half_to_even(usd: str, nanos: int) -> None:
    """The one rounding is half to even, at the nano."""
    assert to_nanos(Decimal(usd)) == nanos


def test_ambient_context_changes_nothing() -> None:
    """A7: another precision, rounding or trap around the call changes no amount."""
    with localcontext(prec=3, rounding=ROUND_UP) as context:
        context.traps[Inexact] = True
        assert to_nanos(Decimal("123456.7890123454")) == 123_456_789_012_345
        assert to_usd(123_456_789_012_345) == Decimal("123456.789012345")
        assert parse_usd("123456.789012345", "limit") == 123_456_789_012_345


@pytest.mark.parametrize(
    ("value", "nanos"), [("12.50", 12_500_000_000), (3, 3 * 10**9), (Decimal("0.000000001"), 1), (0, 0)]
)
def test_parse_usd(value: object, nanos: int) -> None:
    """Whole numbers, decimals and decimal text are amounts; 0 stays 0."""
    assert parse_usd(value, "limit") == nanos


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        True,
        None,
        "",
        "12,50",
        "nan",
        "inf",
        "-1",
        "-0.000000001",
        "1e400",
        "1e9999999",
        "0.0000000001",
        "9007199.254740992",
        b"1",
    ],
)
def test_parse_usd_refuses(value: object) -> None:
    """A float, what is no amount, a negative one, more digits than a nano or more than the most: named and refused."""
    with pytest.raises(ValueError, match=r"^limit: "):
        parse_usd(value, "limit")


@pytest.mark.parametrize(
    ("nanos", "text"),
    [
        (5_955_000, "0.005955"),
        (0, "0"),
        (-1, "-0.000000001"),
        (10**9, "1"),
        (10**10, "10"),
        (MAX_NANOS, "9007199.254740991"),
    ],
)
def test_format_nanos(nanos: int, text: str) -> None:
    """Plain decimal dollars, no exponent, no needless zeros; the text is the amount again."""
    assert format_nanos(nanos) == text
    assert to_nanos(Decimal(text)) == nanos
