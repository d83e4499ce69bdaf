"""Hours and days at which a price holds, on the wall clock of a zone.

A window begins at `start` on each of its days and ends before `end`, the next day where that is earlier. What the wall
clock shows decides: an hour that a clock change shows twice is in the window twice, one that it skips is not there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from tollkeeper.values import us_of, utc

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_DAY: Final = timedelta(days=1)
#: Every window has an edge on each day, so the nearest ones are never further away.
_REACH: Final = 2


class Window(msgspec.Struct, frozen=True):
    """Some hours of some days."""

    days: tuple[int, ...] = tuple(range(7))  #: on which it begins, 0 is Monday
    start: int = 0  #: minutes after midnight
    end: int = DAY_MINUTES  #: the first minute after it; not after `start`: on the next day
    zone: str = "UTC"

    def holds(self, at_us: int) -> bool:
        """Whether an instant is inside."""
        local = utc(at_us).astimezone(ZoneInfo(self.zone))
        minute, today = local.hour * 60 + local.minute, local.weekday() in self.days
        if self.start < self.end:
            return today and self.start <= minute < self.end
        return (today and minute >= self.start) or ((local.weekday() - 1) % 7 in self.days and minute < self.end)

    def edges(self, at_us: int) -> Iterator[int]:
        """The instants around `at_us` at which it may open or close, in UTC microseconds, in no order."""
        zone, at = ZoneInfo(self.zone), utc(at_us)
        midnight = datetime.combine(at.astimezone(zone).date(), time())
        for day in range(-_REACH, _REACH + 1):
            for minute in (self.start, self.end):
                wall = midnight + timedelta(days=day, minutes=minute)
                for fold in (0, 1):
                    yield us_of(wall.replace(tzinfo=zone, fold=fold))
        for day in range(-_REACH, _REACH):
            yield from _clock_change(zone, at + day * _DAY, at + (day + 1) * _DAY)


def _clock_change(zone: ZoneInfo, low: datetime, high: datetime) -> Iterator[int]:
    """The instant between two at which the zone's clocks are changed, to the second."""
    before = low.astimezone(zone).utcoffset()
    if high.astimezone(zone).utcoffset() == before:
        return
    low, high = low.replace(microsecond=0), high.replace(microsecond=0)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    yield us_of(high)


# ── as people write them ─────────────────────────────────────────────────────────────────────────────────────────────

_FIELDS: Final = ("days", "from", "to", "tz")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def read_windows(value: object, mistakes: list[str]) -> tuple[Window, ...]:
    """Windows from a price entry's list of tables; what is wrong is added to `mistakes`."""
    if value is None:
        return ()
    tables = value if isinstance(value, list) and value else [None]
    windows: list[Window] = []
    for table in tables:
        if not isinstance(table, dict) or not table.keys() & {"days", "from", "to"}:
            mistakes.append('windows: expected [{days = "sat-sun"}], or with from = "16:30" and to = "00:30"')
            continue
        for name in table.keys() - set(_FIELDS):
            near = difflib.get_close_matches(str(name), _FIELDS, 1)
            mistakes.append(f"windows: {name}: unknown field" + (f"; did you mean {near[0]}?" if near else ""))
        start, end = _hours(table, mistakes)
        zone = _zone(table.get("tz", "UTC"), mistakes)
        windows.append(Window(days=_days(table.get("days"), mistakes), start=start, end=end, zone=zone))
    return tuple(windows)


def _days(value: object, mistakes: list[str]) -> tuple[int, ...]:
    """ "sat-sun", "mon,wed" and "fri-mon" as the numbers of the days."""
    found: set[int] = set()
    for part in ("mon-sun" if value is None else str(value)).replace(" ", "").lower().split(","):
        first, _, last = part.partition("-")
        last = last if "-" in part else first
        if first not in DAYS or last not in DAYS:
            mistakes.append(f'windows: days: expected days such as "sat-sun" or "mon,wed", got {value!r}')
            return ()
        start, length = DAYS.index(first), (DAYS.index(last) - DAYS.index(first)) % len(DAYS)
        found.update((start + more) % len(DAYS) for more in range(length + 1))
    return tuple(sorted(found))


def _hours(table: dict[str, Any], mistakes: list[str]) -> tuple[int, int]:
    """The minutes of `from` and `to`; the whole day without them."""
    if "from" not in table and "to" not in table:
        return 0, DAY_MINUTES
    minutes: list[int] = []
    for name in ("from", "to"):
        clock = _CLOCK.fullmatch(str(table.get(name)))
        if clock is None:
            mistakes.append(f'windows: {name}: expected a time such as "16:30", got {table.get(name)!r}')
        else:
            minutes.append(int(clock[1]) * 60 + int(clock[2]))
    if len(set(minutes)) == 2:
        return minutes[0], minutes[1]
    if len(minutes) == 2:
        mistakes.append("windows: from and to are the same time; leave both out for the whole day")
    return 0, DAY_MINUTES


def _zone(value: object, mistakes: list[str]) -> str:
    try:
        return ZoneInfo(str(value)).key
    except (LookupError, ValueError, OSError):
        near = difflib.get_close_matches(str(value), available_timezones(), n=1)
        hint = f"did you mean {near[0]}?" if near else "expected a name such as 'Asia/Shanghai'"
        mistakes.append(f"windows: tz: {value!r} is no time zone; {hint}")
        return "UTC"
