"""Values as people write them, by themselves: what is meant, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tollkeeper.config import written

GOOD = [
    (written.Usd, "12.50", 12_500_000_000),
    (written.Usd, "none", None),
    (written.Usd, 0, 0),
    (written.CountOrNone, "none", None),
    (written.SecondsOrNone, 2.5, 2.5),
    (written.SecondsOrNone, "none", None),
    (written.Limit, "1.5", "1.5"),
    (written.Lease, "5%", "5%"),
    (written.Duration, "90m", 5_400),
    (written.Duration, "forever", None),
    (written.Instant, "2027-01-01", 1_798_761_600_000_000),
    (written.Variables, "A_KEY", ("A_KEY",)),
    (written.Variables, ["A", "B_2"], ("A", "B_2")),
    (written.Files, "a/b", (Path("a/b"),)),
    (written.Files, ["a", "b"], (Path("a"), Path("b"))),
]


@pytest.mark.parametrize(("kind", "value", "meant"), GOOD)
def test_what_is_meant(kind: Any, value: object, meant: object) -> None:
    """Money is nanos, times are seconds, dates are microseconds, one name is a list of one."""
    assert TypeAdapter(kind).validate_python(value) == meant


BAD = [
    (written.Usd, 1.5, "never a float"),
    (written.CountOrNone, 0, "greater than or equal to 1"),
    (written.SecondsOrNone, True, "expected a number"),
    (written.Number, float("nan"), "finite"),
    (written.WhenAway, "none", "0 denies"),
    (written.Lease, "100%", "'1%' to '99%'"),
    (written.Duration, "30", "'24h' or '30d'"),
    (written.Instant, "2027-01-01T00:00:00", "with its zone"),
    (written.Variables, "sk-x", "not the key itself"),
    (written.Files, [1], "a list of paths"),
    (written.RedisPrefix, "a:b", "letters, digits"),
    (written.Hash, "abc", "64 hex digits"),
]


@pytest.mark.parametrize(("kind", "value", "right"), BAD)
def test_what_is_said_of_the_rest(kind: Any, value: object, right: str) -> None:
    """I2: each says what would be right."""
    with pytest.raises(ValidationError, match=right):
        TypeAdapter(kind).validate_python(value)
