"""tollkeeper.prices.windows: hours and days on the wall clock of a zone."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from tests.pricing import us

from tollkeeper.prices.windows import Window, read_windows

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US


def window(**table: str) -> Window:
    mistakes: list[str] = []
    (found,) = read_windows([table], mistakes)
    assert mistakes == []
    return found


@pytest.mark.parametrize(
    ("days", "expected"),
    [("sat-sun", (5, 6)), ("mon", (0,)), ("Mon, wed", (0, 2)), ("fri-mon", (0, 4, 5, 6)), ("mon-sun", tuple(range(7)))],
)
def test_days(days: str, expected: tuple[int, ...]) -> None:
    """Days are single, listed or a range, which may go over the week's end."""
    assert window(days=days).days == expected


@pytest.mark.parametrize(
    ("clock", "inside"),
    [
        ("16:29:59", False),
        ("16:30:00", True),
        ("23:59:59", True),
        ("00:00:00", True),
        ("00:29:59", True),
        ("00:30:00", False),
    ],
)
def test_edges_over_midnight(clock: str, inside: bool) -> None:
    """A4: a window begins with its first second and ends before its last one, also on the next day."""
    assert window(**{"from": "16:30", "to": "00:30"}).holds(us(f"2026-11-25T{clock}")) is inside


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        ("2026-11-27T21:59:59", False),
        ("2026-11-27T22:00:00", True),  # Friday
        ("2026-11-28T01:59:59", True),
        ("2026-11-28T02:00:00", False),
        ("2026-11-28T22:00:00", False),
        ("2026-11-27T01:00:00", False),
    ],
)
def test_days_are_those_of_the_beginning(at: str, inside: bool) -> None:
    """Friday 22:00 to 02:00 ends on Saturday, and Friday's early hours are Thursday's window."""
    assert window(days="fri", **{"from": "22:00", "to": "02:00"}).holds(us(at)) is inside


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        ("2026-11-27T15:59:59", False),
        ("2026-11-27T16:00:00", True),
        ("2026-11-29T15:59:59", True),
        ("2026-11-29T16:00:00", False),
    ],
)
def test_a_weekend_in_another_zone(at: str, inside: bool) -> None:
    """A4: Shanghai's weekend begins on Friday and ends on Sunday at 16:00 UTC."""
    assert window(days="sat-sun", tz="Asia/Shanghai").holds(us(at)) is inside


def amsterdam(night: str) -> list[tuple[str, bool]]:
    """A window from 02:30 to 04:00 through a night, by the UTC time of each change."""
    found, begin, inside = window(tz="Europe/Amsterdam", **{"from": "02:30", "to": "04:00"}), us(night), False
    changes = []
    for second in range(0, 6 * 3600, 60):
        if (now := found.holds(begin + second * SECOND_US)) is not inside:
            inside = now
            changes.append((f"{second // 3600:02d}:{second // 60 % 60:02d}", inside))
    return changes


def test_both_nights_of_a_clock_change() -> None:
    """A4: in spring the skipped half hour is not there; in autumn the repeated one is in the window twice."""
    assert amsterdam("2026-03-29T00:00:00") == [("01:00", True), ("02:00", False)]
    assert amsterdam("2026-10-25T00:00:00") == [("00:30", True), ("01:00", False), ("01:30", True), ("03:00", False)]
    assert amsterdam("2026-06-01T00:00:00") == [("00:30", True), ("02:00", False)]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Amsterdam", "Asia/Kolkata", "America/Santiago", "Australia/Lord_Howe"])
@pytest.mark.parametrize("hours", [("02:30", "04:00"), ("22:15", "00:00"), ("00:00", "01:45"), ("23:00", "22:00")])
def test_nothing_changes_between_edges(zone: str, hours: tuple[str, str]) -> None:
    """The instants named around a time are all at which the window opens or closes, through a year of clock changes."""
    found = window(tz=zone, days="sat-mon", **{"from": hours[0], "to": hours[1]})
    for day in range(0, 365, 5):
        at_us = us("2026-01-01T12:34:56") + day * 24 * HOUR_US
        edges = sorted(set(found.edges(at_us)))
        low, high = max(edge for edge in edges if edge <= at_us), min(edge for edge in edges if edge > at_us)
        assert at_us - low <= 48 * HOUR_US
        assert high - at_us <= 48 * HOUR_US
        steps = {found.holds(low + (high - low) * part // 50) for part in range(50)}
        assert steps == {found.holds(at_us)}


def test_holds_as_a_calendar_would() -> None:
    """Against the wall clock read straight off: every quarter of an hour of two weeks around a clock change."""
    found = window(days="fri,sun", tz="America/New_York", **{"from": "18:00", "to": "03:00"})
    for quarter in range(14 * 96):
        at_us = us("2026-10-25T00:00:00") + quarter * 15 * 60 * SECOND_US
        local = datetime.fromtimestamp(at_us // SECOND_US, ZoneInfo("America/New_York"))
        evening = local.isoweekday() in (5, 7) and local.hour >= 18
        night = local.isoweekday() in (6, 1) and local.hour < 3
        assert found.holds(at_us) is (evening or night)
