"""The rules of the ledger, without a disk: windows, balances, holds, cells.

A hold's life is the table HOLD_LIFE. Reserving checks every budget that covers the call and holds the quote against all of
them or none. What is spent is counted per *balance*: one scope, measure and window; the window's start is part of the
balance's key and is fixed by the instant of reservation, so nothing is ever reset. A balance and a rollup cell are sums over
entries, and can be computed again from them (`cells_of`, `spent_by`).

`book.py` applies these rules to live holds and balances in memory; the stores make its answers durable.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from msgspec import structs

from tollkeeper.errors import Conflict, UnknownEntry
from tollkeeper.values import KINDS, OTHER, Charge, Entry, Hold, Measure, ScopeKind, Scopes, Usage, Window, us_of, utc

HoldState = Literal["held", "settled", "voided", "expired"]
HoldEvent = Literal["settle", "void", "expire"]
#: (state, event) → state. What is not here is a conflict, except that repeating an event is answered as the first time.
HOLD_LIFE: Final[dict[tuple[HoldState, HoldEvent], HoldState]] = {
    ("held", "settle"): "settled",
    ("held", "void"): "voided",
    ("held", "expire"): "expired",
    ("expired", "settle"): "settled",  # late: a settlement is recorded, never refused
}

FOREVER_US: Final = 2**62
_MICROS: Final = 1_000_000
Period = Literal["hour", "day", "month"]
PERIODS: Final[tuple[Period, ...]] = ("hour", "day", "month")
CELL_SCOPES: Final[tuple[ScopeKind, ...]] = ("project", "agent", "session", "user", "key", "tag")


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def window_of(window: Window, timezone: str, at_us: int) -> tuple[int, int]:
    """Start and end (exclusive) of the calendar window that holds `at_us`, in UTC microseconds; `total` ends at FOREVER_US.

    Days start at local midnight, weeks on Monday, months on the 1st, true to the zone's daylight saving. Windows tile time.
    """
    if window == "total":
        return 0, FOREVER_US
    zone = ZoneInfo(timezone)
    if window in ("minute", "hour"):
        return _by_the_clock(3600 if window == "hour" else 60, zone, at_us)
    day = utc(at_us).astimezone(zone).date()
    if window == "day":
        first, after = day, day + timedelta(days=1)
    elif window == "week":
        first = day - timedelta(days=day.weekday())
        after = first + timedelta(days=7)
    else:
        first = day.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    midnight = datetime.min.time()
    start_us, end_us = (us_of(datetime.combine(date, midnight, zone)) for date in (first, after))
    if at_us >= end_us:  # a clock turned back over midnight: the day that had begun goes on
        return window_of(window, timezone, end_us)
    return start_us, end_us


def _by_the_clock(length_s: int, zone: ZoneInfo, at_us: int) -> tuple[int, int]:
    """The instants for which the zone's clock last struck when it did for this one: a full hour or minute.

    Where the clock turns by a part of that, it ends one window and begins the next; both are shorter.
    """

    def struck(at_s: int) -> int:
        local = datetime.fromtimestamp(at_s, zone)
        return at_s - (local.minute * 60 + local.second) % length_s

    at_s = at_us // _MICROS
    full_s = start_s = struck(at_s)
    end_s = full_s + length_s
    if struck(full_s) != full_s:  # it turned since
        start_s += bisect_left(range(full_s, at_s), True, key=lambda each: struck(each) == full_s)
    if struck(end_s - 1) != full_s:  # it turns before
        end_s = at_s + bisect_left(range(at_s, end_s), True, key=lambda each: struck(each) != full_s)
    return start_s * _MICROS, end_s * _MICROS


# ── what counts where ────────────────────────────────────────────────────────────────────────────────────────────────


class Shape(NamedTuple):
    """What a balance is kept for: every budget of one shape shares its balances."""

    scope: ScopeKind
    measure: Measure
    window: Window
    timezone: str


class BalanceKey(NamedTuple):
    """One balance: a shape, one scope's id and one window."""

    shape: Shape
    project: str
    id: str
    start_us: int


def ids_of(scope: ScopeKind, scopes: Scopes, model: str) -> tuple[tuple[str, str], ...]:
    """(project, id) of a call in one scope; empty where the call has none. Agents, sessions, users and tags are their project's."""
    match scope:
        case "all":
            return (("", ""),)
        case "project":
            return ((scopes.project, ""),)
        case "key":
            return () if scopes.key is None else (("", scopes.key),)
        case "model":
            return (("", model),)
        case "tag":
            return tuple((scopes.project, tag) for tag in scopes.tags)
    own: str | None = getattr(scopes, scope)
    return () if own is None else ((scopes.project, own),)


def amount_of(measure: Measure, entry: Entry) -> int:
    """What an entry adds to a balance, signed."""
    if measure == "usd":
        return entry.sign * (entry.charge.amount_nanos if entry.charge.amount_nanos is not None else 0)
    return entry.sign * (entry.usage.tokens if measure == "tokens" else 1)


def spent_by(shapes: Iterable[Shape], entry: Entry) -> Iterator[tuple[BalanceKey, int]]:
    """Every balance that an entry touches, with what it adds."""
    for shape in shapes:
        amount = amount_of(shape.measure, entry)
        if amount:
            start_us, _ = window_of(shape.window, shape.timezone, entry.at_us)
            for project, id in ids_of(shape.scope, entry.scopes, entry.model):
                yield BalanceKey(shape, project, id, start_us), amount


class CellKey(NamedTuple):
    """A rollup cell: one period (in UTC), one scope's id, one model as served."""

    period: Period
    start_us: int
    scope: ScopeKind
    project: str
    id: str
    provider: str
    model: str


#: A cell's sums, in the order of the ledger's columns.
CELL_SUMS: Final = ("calls", "attempts", "errors", *KINDS, "amount_nanos", "inexact_nanos", "unpriced")


def sums_of(entry: Entry) -> list[int]:
    """What an entry adds to a cell, in CELL_SUMS order. `views.sql` says the same in SQL."""
    sign, amount, status = entry.sign, entry.charge.amount_nanos, entry.charge.status
    known = amount if amount is not None else 0
    sums = [
        entry.calls, 1, entry.outcome in ("error", "cut"), *structs.astuple(entry.usage), known,
        0 if status == "priced" else known, amount is None,
    ]  # fmt: skip
    return [sign * each for each in sums]


def cells_of(entry: Entry) -> Iterator[tuple[CellKey, tuple[int, ...]]]:
    """Every cell that an entry touches, with what it adds."""
    sums = tuple(sums_of(entry))
    for period in PERIODS:
        start_us, _ = window_of(period, "UTC", entry.at_us)
        for scope in CELL_SCOPES:
            for project, id in ids_of(scope, entry.scopes, entry.model):
                yield CellKey(
                    period, start_us, scope, OTHER if project and "project" in entry.other else project,
                    OTHER if id and scope in entry.other else id, entry.provider, entry.served,
                ), sums  # fmt: skip


# ── one id, written again ────────────────────────────────────────────────────────────────────────────────────────────
#
# An id's entry is never changed: what is right now is its latest revision, the one that stands. A settlement is judged by
# what was settled, whatever corrections have made of it since; a correction by the revision that it was computed from.
#
#   the id has                        settle                         correct, computed from revision n
#   nothing                           booked                         UnknownEntry
#   an estimate, its hold expired     late: what stands is reversed  where n stands: n is reversed, n + 1 is what is right
#   a settlement of the same contents repeated                       where n + 1 is there and equal: repeated
#   a settlement of other contents    Conflict                       else Conflict: somebody else corrected it meanwhile
#
# Settling an estimate again (an expiry) is repeated whatever is there: it knows nothing better.


def expired(hold: Hold, note: str = "its hold expired: booked at the estimate") -> Entry:
    """The entry of a hold that nobody settled: the estimate, marked so."""
    return Entry(
        id=hold.id, call=hold.call, attempt=hold.attempt, calls=int(hold.attempt == 1), at_us=hold.at_us, scopes=hold.scopes,
        dialect=hold.dialect, provider=hold.provider, model=hold.model, served=hold.model, outcome="expired",
        usage=hold.quote_usage if hold.quote_usage is not None else Usage(), note=note, sent=hold.sent, tier=hold.tier,
        speed=hold.speed, geo=hold.geo,
        charge=Charge(
            amount_nanos=hold.quote_nanos, computed_nanos=hold.quote_nanos, price_version=hold.price_version,
            status="unpriced" if hold.quote_nanos is None else "estimated", estimated=True,
        ),
    )  # fmt: skip


def correction(old: Entry, right: Entry) -> tuple[Entry, Entry]:
    """The two entries that put `right` in the place of `old`: `old` reversed, and the next revision, in the old one's windows."""
    reversed_old = structs.replace(old, sign=-1)
    return reversed_old, structs.replace(right, at_us=old.at_us, revision=old.revision + 1, other=old.other)


def settling(revisions: Sequence[Entry], entry: Entry) -> tuple[Entry, ...]:
    """What a settlement adds to the revisions that its id has, oldest first: itself, a correction, or nothing. Raises Conflict."""
    if not revisions:
        return (entry,)
    settled = next((each for each in reversed(revisions) if each.by is None), revisions[0])
    return correction(revisions[-1], entry) if is_late(settled, entry) else ()


def correcting(revisions: Sequence[Entry], right: Entry) -> tuple[Entry, ...]:
    """What putting `right` in the place of the entry that stands adds; nothing if it was put there before.

    Its revision is the one after the one that it was computed from. Raises UnknownEntry, Conflict, and ValueError where it
    does not say who asked for it, or is about another call.
    """
    if right.by is None:
        raise ValueError("by: expected who asks for the correction")
    if not revisions:
        raise UnknownEntry(
            f"there is no entry {right.id!r} in project {right.scopes.project!r}, or it is not kept any more"
        )
    old = revisions[-1]
    if (old.scopes, old.call, old.attempt, old.model) != (right.scopes, right.call, right.attempt, right.model):
        raise ValueError(f"entry {right.id!r}: a correction is of the same call, for whom it was made")
    pair = correction(old, right)
    if right.revision == old.revision + 1:
        return pair
    if any(
        each.revision == right.revision and each == structs.replace(pair[1], revision=each.revision)
        for each in revisions
    ):
        return ()
    raise Conflict(
        f"entry {right.id!r} was corrected meanwhile: revision {old.revision} stands; compute the correction from that one"
    )


def is_late(known: Entry, again: Entry) -> bool:
    """Whether a second settlement of one id corrects the first: only one that was booked at its estimate, by a real one.

    False: it is a repeat and changes nothing. Raises Conflict where it says something else. When and how fast may differ in a
    repeat; who, what and how much may not.
    """
    if known.outcome == "expired" or again.outcome == "expired":
        return again.outcome != "expired"
    if (
        known.scopes == again.scopes
        and (known.dialect, known.provider, known.model, known.served)
        == (again.dialect, again.provider, again.model, again.served)
        and known.usage == again.usage
        and known.charge.amount_nanos == again.charge.amount_nanos
    ):
        return False
    raise Conflict(f"entry {again.id!r} was booked with other contents; use a new id")


# ── cardinality ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Census:
    """Counts the distinct ids of each scope per project and month; those past `cap` have their cells under OTHER.

    The entry keeps its ids whatever the census says; nothing is dropped. `load(scope, project, month_us)` reads the ids that
    the store has seen already.
    """

    def __init__(
        self, cap: int, load: Callable[[ScopeKind, str, int], Iterable[str]] = lambda scope, project, month_us: ()
    ) -> None:
        self._cap = cap
        self._load = load
        self._seen: dict[tuple[ScopeKind, str, int], set[str]] = {}
        self._month = (0, 0)
        self._fitting: set[Scopes] = set()  # of this month: found without asking scope by scope

    def place(self, entry: Entry) -> tuple[ScopeKind, ...]:
        """The scopes of an entry whose id does not fit any more."""
        month_us, end_us = self._month
        if entry.scopes in self._fitting and month_us <= entry.at_us < end_us:
            return ()
        if not month_us <= entry.at_us < end_us:
            month_us, end_us = window_of("month", "UTC", entry.at_us)
            if month_us > self._month[0]:  # calls of the month before still come in
                self._seen = {key: ids for key, ids in self._seen.items() if key[2] >= self._month[0]}
                self._month = month_us, end_us
                self._fitting.clear()
        scopes, past = entry.scopes, list[ScopeKind]()
        if not self._fits("project", "", scopes.project, month_us):
            past.append("project")
        for scope in _COUNTED:
            for project, id in ids_of(scope, scopes, entry.model):
                if not self._fits(scope, OTHER if past and past[0] == "project" else project, id, month_us):
                    past.append(scope)
        if not past and month_us == self._month[0]:
            if len(self._fitting) >= _FITTING_MAX:
                self._fitting.clear()
            self._fitting.add(scopes)
        return tuple(dict.fromkeys(past))

    def _fits(self, scope: ScopeKind, project: str, id: str, month_us: int) -> bool:
        if id == OTHER:
            return True
        seen = self._seen.get((scope, project, month_us))
        if seen is None:
            seen = self._seen[scope, project, month_us] = set(self._load(scope, project, month_us)) - {OTHER}
        if id in seen:
            return True
        if len(seen) >= self._cap:
            return False
        seen.add(id)
        return True


_FITTING_MAX: Final = 10_000
_COUNTED: Final[tuple[ScopeKind, ...]] = ("agent", "session", "user", "tag")
