"""From rollup cells to a report: who spent what, when, and how much of it is not exact. Pure.

    span ─→ plan ─→ slices, one per row of time ─→ (gather asks the ledger) ─→ build ─→ Report

The total is counted once, from the projects' cells. Rows come from the cells of the asked scope; calls without an agent,
session, user or key are the difference, a row of their own, so that every grouping adds up to the same total to the
nano-dollar. Tags are the exception: a call with two tags stands in two rows, and once in the total.

Days and months are those of the asked time zone. Cells are kept for UTC periods, so a slice is answered from cells where
its edges are edges of theirs, else from the entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from typing import Final, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

import msgspec

from tollkeeper.errors import BadRequest
from tollkeeper.ledger import PERIODS, CellKey, Period, window_of
from tollkeeper.values import EPOCH, KINDS, Entry, ScopeKind, Usage, iso_utc, us_of

Grouping = Literal["project", "agent", "session", "user", "key", "model", "provider", "tag"]
GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)
Source = Literal["hour", "day", "month", "entry"]

ROWS_MAX: Final = 2000
"""Rows of time in one report."""
#: Groupings that not every call has: the rest of the total is a row without a name.
_PARTIAL: Final = ("agent", "session", "user", "key")
_OWN_CELLS: Final = (*_PARTIAL, "tag")
_LAST_YEAR: Final = 2200


class Sums(NamedTuple):
    """What is counted, in the order of ledger.CELL_SUMS."""

    calls: int = 0
    attempts: int = 0
    errors: int = 0
    input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    input_audio: int = 0
    cache_read_audio: int = 0
    output_audio: int = 0
    input_image: int = 0
    output_image: int = 0
    web_search: int = 0
    file_search: int = 0
    audio_seconds: int = 0
    code_session: int = 0
    reasoning: int = 0
    amount_nanos: int = 0
    inexact_nanos: int = 0  #: the part of `amount_nanos` that is estimated or partly priced
    unpriced: int = 0  #: attempts whose cost is not known, and so not in `amount_nanos`

    @property
    def usage(self) -> Usage:
        """The kinds alone: what counts as a token is said there."""
        return Usage(**{kind: getattr(self, kind) for kind in KINDS})

    @property
    def input_tokens(self) -> int:
        """The whole prompts."""
        return self.usage.input_tokens

    @property
    def output_tokens(self) -> int:
        return self.usage.output_tokens

    @property
    def tokens(self) -> int:
        return self.usage.tokens

    def plus(self, other: Iterable[int]) -> Sums:
        return Sums(*map(int.__add__, self, other))

    def minus(self, other: Iterable[int]) -> Sums:
        return Sums(*map(int.__sub__, self, other))


ZERO: Final = Sums()


class Slice(NamedTuple):
    """One row of time, [from_us, to_us), and the periods of cells that fill it exactly, coarsest first."""

    from_us: int
    to_us: int
    periods: tuple[Period, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask the ledger for one report."""

    by: Grouping | None
    each: Period | None
    from_us: int
    to_us: int
    timezone: str
    project: str | None  #: only this one, None: all
    slices: tuple[Slice, ...]

    @property
    def scope(self) -> ScopeKind | None:
        """Whose cells the rows come from, None: the projects' own, that the total comes from too."""
        return self.by if self.by in _OWN_CELLS else None


class Row(NamedTuple):
    """One line of a report. `name` None: the calls that have none, or a row of time alone."""

    start_us: int | None  #: None: the report has one row of time
    project: str | None  #: whose agent, session, user or tag; None for other groupings
    name: str | None
    sums: Sums


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Rows by time, then cost; `total` has every call once."""

    plan: Plan
    rows: tuple[Row, ...]
    total: Sums

    @property
    def overlaps(self) -> bool:
        """Whether a call may stand in several rows, so that they add up to more than the total."""
        return self.plan.by == "tag"


# ── what to ask ──────────────────────────────────────────────────────────────────────────────────────────────────────


def span(from_text: str | None, to_text: str | None, timezone: str, now_us: int) -> tuple[int, int]:
    """[from, to) in UTC microseconds from dates or ISO times as people write them, in `timezone` where they name none.

    Without `from`: since this month began; without `to`: until it ends. A date as `to` is that whole day.
    Raises BadRequest naming the argument.
    """
    month = window_of("month", checked_zone(timezone), now_us)
    from_us = month[0] if from_text is None else instant(from_text, "from", timezone)
    to_us = month[1] if to_text is None else instant(to_text, "to", timezone)
    if from_us >= to_us:
        raise BadRequest(f"from, to: {iso_utc(from_us)} is not before {iso_utc(to_us)}; give an earlier start")
    return from_us, to_us


def checked_zone(timezone: str) -> str:
    """The name of a time zone. Raises BadRequest."""
    try:
        ZoneInfo(timezone)
    except (LookupError, ValueError, OSError):
        raise BadRequest(f"tz: {timezone!r} is no time zone; expected a name such as 'Europe/Amsterdam'") from None
    return timezone


def instant(text: str, name: str, timezone: str) -> int:
    """UTC microseconds of a date or an ISO time, in `timezone` where it names none. Raises BadRequest naming the argument."""
    zone = ZoneInfo(timezone)
    try:
        if len(text) == len("2026-11-01"):
            day = date.fromisoformat(text) + timedelta(days=name == "to")
            moment = datetime.combine(day, time(), zone)
        else:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
    except (ValueError, OverflowError):
        raise BadRequest(f"{name}: {text!r} is no date; write 2026-11-01 or 2026-11-01T12:00") from None
    if not EPOCH.year < moment.year < _LAST_YEAR:
        raise BadRequest(f"{name}: {text!r} is too far away; expected a year from 1971 to {_LAST_YEAR - 1}")
    return us_of(moment)


def plan(
    by: Grouping | None,
    each: Period | None,
    from_us: int,
    to_us: int,
    timezone: str = "UTC",
    project: str | None = None,
) -> Plan:
    """Cut [from_us, to_us) into calendar hours, days or months of `timezone`; one piece without `each`.

    Raises BadRequest for an unknown grouping, period or zone, an empty span, or more than ROWS_MAX rows of time.
    """
    if by is not None and by not in GROUPINGS:
        raise BadRequest(f"by: {by!r} is not known; expected one of {', '.join(GROUPINGS)}")
    if each is not None and each not in PERIODS:
        raise BadRequest(f"each: {each!r} is not known; expected one of {', '.join(PERIODS)}")
    if from_us >= to_us:
        raise BadRequest("from, to: the span is empty; give an earlier start")
    checked_zone(timezone)
    slices, at_us = list[Slice](), from_us
    while at_us < to_us:
        end_us = to_us if each is None else min(to_us, window_of(each, timezone, at_us)[1])
        periods = tuple(
            period for period in reversed(PERIODS) if _is_edge(period, at_us) and _is_edge(period, end_us)
        )  # fmt: skip
        slices.append(Slice(at_us, end_us, periods))
        if len(slices) > ROWS_MAX:
            raise BadRequest(f"each: more than {ROWS_MAX} rows; ask for a shorter time or longer periods")
        at_us = end_us
    return Plan(
        by=by, each=each, from_us=from_us, to_us=to_us, timezone=timezone, project=project, slices=tuple(slices)
    )


def _is_edge(period: Period, at_us: int) -> bool:
    return window_of(period, "UTC", at_us)[0] == at_us


def choose(piece: Slice, kept_since: Mapping[Source, int], entries_only: bool = False) -> Source:
    """Where a slice is read: the coarsest cells that fit it and are all still kept, else the entries.

    `kept_since` is the instant before which each may be pruned. Raises BadRequest where nothing has the whole slice.
    """
    fitting: tuple[Source, ...] = () if entries_only else piece.periods
    for source in (*fitting, "entry"):
        if kept_since[source] <= piece.from_us:
            return source
    kept = {source: kept_since[source] for source in (*fitting, "entry")}
    oldest = min(kept, key=kept.__getitem__)
    what = "single entries are" if oldest == "entry" else f"cells by {oldest} are"
    raise BadRequest(
        f"from: a part from {iso_utc(piece.from_us)} to {iso_utc(piece.to_us)} needs what retention has dropped; "
        f"{what} kept since {iso_utc(kept[oldest])}: start there, or ask for whole months in UTC"
    )


# ── what came back ───────────────────────────────────────────────────────────────────────────────────────────────────

Cells = Iterable[tuple[CellKey, tuple[int, ...]]]
_Name = tuple[str | None, str | None]


def build(plan: Plan, found: Iterable[tuple[Slice, Cells, Cells]]) -> Report:
    """A report from each slice with its projects' cells and those of `plan.scope` (empty without one)."""
    rows, total = list[Row](), ZERO
    for piece, whole, scoped in found:
        by_name: dict[_Name, Sums] = {}
        whole = list(whole)
        for key, sums in whole if plan.scope is None else scoped:
            name = _name(plan.by, key)
            by_name[name] = by_name.get(name, ZERO).plus(sums)
        if plan.by in _PARTIAL:
            by_name |= _rest(plan.by == "key", by_name, whole)
        start_us = None if plan.each is None else piece.from_us
        named = [Row(start_us, *name, sums) for name, sums in by_name.items() if any(sums)]
        rows += sorted(named, key=_dearest)
        total = total.plus(map(sum, zip(ZERO, *(sums for _, sums in whole), strict=True)))
    return Report(plan=plan, rows=tuple(rows), total=total)


def _name(by: Grouping | None, key: CellKey) -> _Name:
    match by:
        case None:
            return None, None
        case "project" | "model" | "provider":
            return None, getattr(key, by)
        case "key":
            return None, key.id
    return key.project, key.id


def _rest(of_all: bool, by_name: Mapping[_Name, Sums], whole: Cells) -> dict[_Name, Sums]:
    """What each project's named rows leave of it; of all projects for keys, which belong to none."""
    rest: dict[_Name, Sums] = {}
    for key, sums in whole:
        place = (None if of_all else key.project, None)
        rest[place] = rest.get(place, ZERO).plus(sums)
    for (project, _), sums in by_name.items():
        rest[project, None] = rest.get((project, None), ZERO).minus(sums)
    return rest


def _dearest(row: Row) -> tuple[bool, int, int, str, str]:
    return row.name is None, -row.sums.amount_nanos, -row.sums.tokens, row.project or "", row.name or ""


# ── our prices beside the provider's own figures ─────────────────────────────────────────────────────────────────────


class Difference(msgspec.Struct, kw_only=True):
    """Entries that stand, of one model, for which the provider reported a cost; two sums are over those that have both."""

    provider: str
    model: str  #: as served; all of them, with " + " between, where several served a call
    reported: int = 0  #: entries with a cost that the provider reported
    differing: int = 0  #: those of them where ours is another
    uncomputed: int = 0  #: those of them that we have no price for
    ours: int = 0  #: those of them in which our figure counts and not the provider's, which is another
    counted_nanos: int = 0  #: what the provider's own figure adds to the total: all of them but `ours`
    computed_nanos: int = 0
    reported_nanos: int = 0

    @property
    def difference_nanos(self) -> int:
        """What the provider reported beyond our own figure."""
        return self.reported_nanos - self.computed_nanos


class Differences:
    """Adds up where reported and computed costs differ (A8)."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Difference] = {}

    def add(self, entry: Entry) -> None:
        """Count an entry that stands."""
        charge = entry.charge
        computed, reported = charge.computed_nanos, charge.reported_nanos
        if reported is None:
            return
        models = [entry.served if part.model is None else part.model for part in entry.parts] or [entry.served]
        key = (entry.provider, " + ".join(dict.fromkeys(models)))
        found = self._found.setdefault(key, Difference(provider=key[0], model=key[1]))
        found.reported += 1
        if charge.amount_nanos == reported:
            found.counted_nanos += reported
        else:
            found.ours += 1
        if computed is None:
            found.uncomputed += 1
            return
        found.differing += computed != reported
        found.computed_nanos += computed
        found.reported_nanos += reported

    def rows(self) -> list[Difference]:
        """One for each model with a reported cost, the largest difference first."""
        return sorted(
            self._found.values(), key=lambda found: (-abs(found.difference_nanos), found.provider, found.model)
        )
