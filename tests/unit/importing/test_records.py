"""records: what all formats share in reading a line."""

from __future__ import annotations

import contextlib
from datetime import UTC
from decimal import Decimal

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

from tollkeeper.importing.records import Given, digest, fitting, instant, members, shown, since_1970, values
from tollkeeper.testing.clock import START_US

GIVEN = Given(project="shop", now_us=START_US)
HOSTILE = [
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"[1]", "is not a JSON object"),
    (b'"text"', "is not a JSON object"),
    (b'{"a": 1} {"b": 2}', "is not JSON"),
    (b'{"a": NaN}', "is not JSON"),
    (b'{"a": -Infinity}', "is not JSON"),
    (b'{"a": 01}', "is not JSON"),
    (b'{"a": "\xff"}', "is not UTF-8"),
    (b'{"a": "\xed\xa0\x80"}', "is not UTF-8"),
    (b'{"a": "\n"}', "is not JSON"),
    (b'{"a": 1, "a": 1}', "a: the line names this member twice"),
    (b'{"a": 1, "\\u0061": 2}', "the line names this member twice"),
]


@pytest.mark.parametrize(("raw", "says"), HOSTILE)
def test_hostile_lines(raw: bytes, says: str) -> None:
    """H4: what is no JSON object in UTF-8, or names a member twice, says so, whoever reads it."""
    for read in (values, members):
        if read is members and raw in (b'{"a": 01}', b'{"a": "\n"}'):
            continue  # values are not looked into
        with pytest.raises(ValueError, match=says):
            read(raw)


def test_values_are_exact() -> None:
    """A7: numbers with a point are Decimal from the text on the wire; what is null is not there; depth is bounded."""
    assert values(b' {"a": 0.1234567890123456789, "b": 1e-9, "c": 3, "d": null}\r') == {
        "a": Decimal("0.1234567890123456789"), "b": Decimal("1E-9"), "c": 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match="x: the line names this member twice"):
        values(b'{"a": [{"x": 1, "x": 2}]}')
    with pytest.raises(ValueError, match="nested too deep"):
        values(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(ValueError, match=r"\S"):
        values(b'{"a": ' + b"9" * 10_000 + b"}")


@generated(st.binary(max_size=100))
def test_any_bytes(raw: bytes) -> None:
    """H4: any bytes are an object or a ValueError."""
    for read in (values, members):
        with contextlib.suppress(ValueError):
            assert isinstance(read(raw), dict)


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("2025-12-31T23:59:59Z", START_US - 1_000_000),
        ("2026-01-01T02:00:00.000001+02:00", START_US + 1),
        ("2025-12-31 23:00:00-01", START_US),
        ("2000-01-01T00:00:00Z", 946_684_800_000_000),
    ],
)
def test_instants(text: str, at_us: int) -> None:
    """ISO times in any zone are one instant, to the microsecond."""
    assert instant(text, "at", GIVEN) == at_us


def test_a_zone_that_is_declared() -> None:
    """A text without a zone is of the declared one, or refused."""
    assert instant("2026-01-01 00:00:00.5", "at", GIVEN, UTC) == START_US + 500_000
    with pytest.raises(ValueError, match="at: expected an ISO 8601 time with its zone"):
        instant("2026-01-01 00:00:00.5", "at", GIVEN)


@pytest.mark.parametrize(
    "value", ["soon", "", "1999-12-31T23:59:59Z", "2026-01-03T00:00:00Z", "0001-01-01T00:00:00+14:00", 5, None, {}]
)
def test_times_that_cannot_be(value: object) -> None:
    """What is no time, or none that the ledger can hold, is refused by its field's name."""
    with pytest.raises(ValueError, match="at: expected"):
        instant(value, "at", GIVEN)


def test_seconds() -> None:
    """Seconds since 1970 may be whole or not, and have bounds before anything is computed."""
    assert since_1970(START_US // 1_000_000, "created", GIVEN) == START_US
    assert since_1970(Decimal("1767225600.25"), "created", GIVEN) == START_US + 250_000
    for value in (-1, True, Decimal("1E+999999"), 10**30, "1767225600", 0, START_US):
        with pytest.raises(ValueError, match="created: expected"):
            since_1970(value, "created", GIVEN)


def test_names_of_others() -> None:
    """A name that is an id stays; a longer one, or one with control characters, is counted under its digest; none is none."""
    assert (fitting("u-1"), fitting(""), fitting(None)) == ("u-1", None, None)
    for value in ("x" * 129, '{"device_id": "a\nb"}', "\ud800"):
        assert fitting(value) == digest(value)
        assert len(digest(value)) < 128


def test_values_in_reasons_are_short() -> None:
    """A reason shows little of a value."""
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
    assert shown(Decimal("1.5")) == "1.5"
