"""The ledger's rules under any order of events: every store equals the model, and windows divide time without gaps."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from tollkeeper.errors import TollkeeperError
from tollkeeper.ledger import CELL_SCOPES, FOREVER_US, PERIODS, window_of
from tollkeeper.stores import Retention, Store
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.stores.redis.batch import MINUTE_US
from tollkeeper.stores.sqlite.store import SqliteStore
from tollkeeper.testing.corrections import current
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, HOUR_US, SECOND_US, USD, a_hold, an_entry, booked, usd
from tollkeeper.values import Budget, Entry, Hold, Scopes, Usage, Window

T = TypeVar("T")

# ── the model and the file ───────────────────────────────────────────────────────────────────────────────────────────

WHO = (
    Scopes(project="alpha"),
    Scopes(project="alpha", agent="w", session="s1", tags=("t1", "t2")),
    Scopes(project="alpha", agent="w", session="s2", user="ü", key="k"),
    Scopes(project="beta", agent="w", session="s1", user='a"b\\', key="k", tags=("_other",)),
    Scopes(project="%_'", agent="{x}:y", session="s 3", user="\x01\n", tags=("t1",)),
)
BUDGETS: tuple[tuple[Budget, ...], ...] = (
    (),
    (usd(3 * DIME), usd(USD, window="day", timezone="America/New_York"), Budget(scope="tag", limit=DIME, hard=False)),
    (usd(5 * DIME, id="*"), Budget(scope="agent", limit=900, measure="tokens", window="hour")),
    (usd(None), Budget(scope="session", limit=2, measure="requests", window="minute"), usd(0, id="beta")),
    (usd(2 * DIME, window="week", timezone="Asia/Kolkata"), Budget(scope="all", limit=USD, window="total")),
    (Budget(scope="key", limit=3 * DIME), Budget(scope="model", limit=4 * DIME, window="day"), usd(3 * DIME)),
    (Budget(scope="user", limit=DIME, window="day"), Budget(scope="session", limit=5, measure="requests")),
)
KEEP = Retention(hour_s=3600, day_s=86400, month_s=None, entries_s=20 * 86400)
who = st.sampled_from(WHO)
steps = st.sampled_from([1, SECOND_US, 61 * SECOND_US, 11 * 60 * SECOND_US, HOUR_US, 7 * HOUR_US, DAY_US, 20 * DAY_US])
back = st.sampled_from([0, 1, HOUR_US, 26 * HOUR_US])


class Pair(RuleBasedStateMachine):
    """Does the same to a file and to the model, and compares what they answer and what they then hold."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="tollkeeper-"))
        self.now_us = AT_US
        self.number = self.step = 0
        self.holds: dict[str, Hold] = {}
        self.entries: dict[str, Entry] = {}

    @initialize(cap=st.sampled_from([1, 2, 10_000]), budgets=st.sampled_from(BUDGETS))
    def start(self, cap: int, budgets: tuple[Budget, ...]) -> None:
        self.cap, self.budgets = cap, budgets
        self.model: Store = MemoryStore(budgets, scope_cap=cap)
        self.file: Store = self._open()

    def _open(self) -> Store:
        return SqliteStore(self.folder / "ledger.sqlite", self.budgets, scope_cap=self.cap)

    def teardown(self) -> None:
        if hasattr(self, "file"):
            for _ in CELL_SCOPES:
                self.sums()
            self.loop.run_until_complete(self.file.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def do(self, what: Awaitable[T]) -> T | TollkeeperError:
        async def answer() -> T:
            return await what

        try:
            return self.loop.run_until_complete(answer())
        except TollkeeperError as error:
            return error

    def both(self, method: str, *args: Any) -> Any:
        """The answer of both, which must be one."""
        file, model = (self.do(getattr(store, method)(*args)) for store in (self.file, self.model))
        if isinstance(model, TollkeeperError):
            assert isinstance(file, type(model))
            assert getattr(file, "refusal", None) == getattr(model, "refusal", None)
        else:
            assert file == model
        return model

    def new(self) -> str:
        self.number += 1
        return f"c{self.number // 3}/{self.number % 3 + 1}"

    @rule(scopes=who, nanos=st.sampled_from([0, 1, DIME, USD, None]), tokens=st.sampled_from([0, 100, 450, None]))
    def reserve(self, scopes: Scopes, nanos: int | None, tokens: int | None) -> None:
        hold = a_hold(self.new(), nanos, tokens=tokens, at_us=self.now_us, scopes=scopes)
        self.holds[hold.id] = hold
        self.both("reserve", hold)

    @rule(scopes=who, more=st.sampled_from([-1, 0, 1]))
    def reserve_at_the_limit(self, scopes: Scopes, more: int) -> None:
        """What is just left of the tightest budget in money, a nano less, a nano more."""
        left = [
            each.remaining
            for each in self.both("standings", scopes, "m", self.now_us)
            if each.budget.measure == "usd" and each.budget.hard and each.remaining is not None
        ]
        if left:
            self.reserve(scopes, max(0, min(left) + more), 1)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def reserve_again(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(list(self.holds.values())))
        if hold.id not in self.entries:
            self.both("reserve", hold)
            self.both("reserve", structs.replace(hold, quote_nanos=12345))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), nanos=st.sampled_from([0, 1, DIME, USD, None]))
    def settle(self, data: st.DataObject, nanos: int | None) -> None:
        hold = data.draw(st.sampled_from(list(self.holds.values())))
        self.record(hold.id, nanos, hold.scopes, hold.at_us)

    @rule(scopes=who, nanos=st.sampled_from([0, DIME, None]), ago=back)
    def record_without_a_hold(self, scopes: Scopes, nanos: int | None, ago: int) -> None:
        self.record(self.new(), nanos, scopes, self.now_us - ago)

    def record(self, id: str, nanos: int | None, scopes: Scopes, at_us: int) -> None:
        usage = Usage(input=7, cache_read=3, output=self.number, reasoning=1)
        entry = an_entry(id, nanos, scopes=scopes, at_us=at_us, usage=usage, outcome=("ok", "cut")[self.number % 2])
        if self.both("settle", entry) == "booked":
            self.entries[id] = entry

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), other=st.booleans())
    def settle_again(self, data: st.DataObject, other: bool) -> None:
        entry = data.draw(st.sampled_from(list(self.entries.values())))
        if other:
            entry = structs.replace(entry, served="another")
        self.both("settle", structs.replace(entry, latency_ms=None))

    @precondition(lambda self: self.holds or self.entries)
    @rule(
        data=st.data(),
        nanos=st.sampled_from([0, DIME, USD, None]),
        tokens=st.sampled_from([7, 450]),
        step=st.sampled_from([1, 1, 1, 0, 2]),
        by=st.sampled_from(["ann", "bob"]),
    )
    def correct(self, data: st.DataObject, nanos: int | None, tokens: int, step: int, by: str) -> None:
        """From the entry that stands or, by `step`, from another one; expired holds and unknown ids too."""
        each = data.draw(st.sampled_from([*self.holds.values(), *self.entries.values()]))
        standing = self.do(self.model.entry(each.scopes.project, each.id))
        old = standing if isinstance(standing, Entry) else an_entry(each.id, scopes=each.scopes, at_us=each.at_us)
        charge = an_entry("a/1", nanos).charge
        usage = Usage(input=tokens, cache_read=3)
        right = structs.replace(old, revision=old.revision + step, usage=usage, charge=charge, note="why", by=by)
        if self.both("correct", right) == "corrected":
            assert self.both("correct", right) == "repeated"

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        self.both("void", data.draw(st.sampled_from(list(self.holds))))

    @rule(passed=steps)
    def time_passes(self, passed: int) -> None:
        self.now_us += passed
        self.both("expire", self.now_us)

    @rule(budgets=st.sampled_from(BUDGETS))
    def set_budgets(self, budgets: tuple[Budget, ...]) -> None:
        self.budgets = budgets
        self.both("set_budgets", budgets)

    @rule()
    def prune(self) -> None:
        for store in (self.file, self.model):
            self.do(store.prune(self.now_us, KEEP))
        since = self.both("kept_since")
        for known in (self.holds, self.entries):
            for id in [id for id, each in known.items() if each.at_us < since]:
                del known[id]

    @rule()
    def reopen(self) -> None:
        """A new process finds every hold without its owner."""
        self.do(self.file.close())
        self.file = self._open()
        self.do(self.model.expire(FOREVER_US))

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "file"):
            return
        for scopes in WHO:
            self.both("standings", scopes, "m", self.now_us)
        live = [sorted(hold.id for hold in self.do(store.live())) for store in (self.file, self.model)]  # type: ignore[union-attr]
        assert live[0] == live[1]
        file, model = (
            sorted(map(_plain, self.loop.run_until_complete(booked(each)))) for each in (self.file, self.model)
        )
        assert file == model
        standing = [self.loop.run_until_complete(current(each)) for each in (self.file, self.model)]
        assert [sorted(map(_plain, entries)) for entries in standing] == [_standing(model)] * 2

    @invariant()
    def sums(self) -> None:
        """One scope after each step, in turn: all of them take most of the time."""
        if not hasattr(self, "file"):
            return
        self.step += 1
        scope = CELL_SCOPES[self.step % len(CELL_SCOPES)]
        for period in PERIODS:
            self.both("cells", scope, period, 0, FOREVER_US)
        self.both("tally", scope, self.now_us - DAY_US - 1, self.now_us + 1)
        assert self.both("verify") == []


def _plain(entry: Entry) -> tuple[Any, ...]:
    """An entry to compare: a hold found without its owner has another note than one past its deadline."""
    return entry.scopes.project, entry.id, entry.revision, entry.sign, repr(structs.replace(entry, note=None))


def _standing(entries: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those of all entries, as `_plain` says them, that no other one reverses."""
    reversed_ = {entry[:3] for entry in entries if entry[3] < 0}
    return [entry for entry in entries if entry[3] > 0 and entry[:3] not in reversed_]


def test_the_file_equals_the_model(rounds: int) -> None:
    """B2, B7, C2: in any order of events the SQLite ledger answers, holds and sums as the model does."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Pair,
        settings=settings(max_examples=6 * rounds, stateful_step_count=25, deadline=None, suppress_health_check=checks),
    )


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ZONES = (
    "UTC", "Asia/Shanghai", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Amsterdam", "America/New_York",
    "America/Los_Angeles", "America/St_Johns", "America/Sao_Paulo", "America/Havana", "Africa/Cairo", "Asia/Beirut",
    "America/Caracas", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "Antarctica/Troll", "Etc/GMT+12",
)  # fmt: skip


def us(text: str) -> int:
    """ "2026-03-29T01:00Z" or with an offset, as UTC microseconds."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


#: When a zone's clock turned: by an hour, by half of one, from one minute past midnight, by two hours, never.
TURNS = (
    ("Europe/Amsterdam", us("2026-03-29T01:00Z")), ("Europe/Amsterdam", us("2026-10-25T01:00Z")),
    ("Australia/Lord_Howe", us("2026-04-04T15:00Z")), ("Australia/Lord_Howe", us("2026-10-03T15:30Z")),
    ("America/Caracas", us("2007-12-09T07:00Z")), ("America/Caracas", us("2016-05-01T07:00Z")),
    ("America/St_Johns", us("2010-03-14T03:31Z")), ("America/St_Johns", us("2010-11-07T02:31Z")),
    ("America/St_Johns", us("2026-11-01T04:30Z")), ("Antarctica/Troll", us("2026-03-29T01:00Z")),
    ("Antarctica/Troll", us("2026-10-25T01:00Z")), ("Asia/Kolkata", AT_US), ("UTC", AT_US),
)  # fmt: skip
WINDOWS: list[Window] = ["minute", "hour", "day", "week", "month"]


def tiles(window: Window, zone: str, at_us: int) -> tuple[int, int]:
    """The window of an instant: it is that of its own edges, has its neighbours at them, and begins with a minute."""
    start_us, end_us = window_of(window, zone, at_us)
    assert start_us <= at_us < end_us
    for inside_us in (start_us, end_us - 1):
        assert window_of(window, zone, inside_us) == (start_us, end_us)
    assert window_of(window, zone, end_us)[0] == end_us
    assert window_of(window, zone, start_us - 1)[1] == start_us
    assert start_us % MINUTE_US == 0
    return start_us, end_us


@given(window=st.sampled_from(WINDOWS), turn=st.sampled_from(TURNS), away_us=st.integers(-3 * HOUR_US, 3 * HOUR_US))
def test_windows_divide_the_nights_when_clocks_turn(window: Window, turn: tuple[str, int], away_us: int) -> None:
    """C4: the same within three hours of a turn of the clock; hours and minutes are never longer than they should be."""
    zone, turned_us = turn
    start_us, end_us = tiles(window, zone, turned_us + away_us)
    if window in ("minute", "hour"):
        assert end_us - start_us <= (HOUR_US if window == "hour" else MINUTE_US)


@pytest.mark.parametrize(
    ("night", "edges"),
    [
        ("2026-04-05", ["01:00+11:00", "01:30+10:30", "02:00+10:30", "03:00+10:30"]),
        ("2026-10-04", ["00:00+10:30", "01:00+10:30", "02:30+11:00", "03:00+11:00", "04:00+11:00"]),
    ],
)
def test_half_an_hour_of_daylight_saving(night: str, edges: list[str]) -> None:
    """C4: on Lord Howe the clock turns by half an hour: that half hour is a window, and none overlaps another."""
    for start_us, end_us in pairwise(us(f"{night}T{edge}") for edge in edges):
        for at_us in range(start_us, end_us, MINUTE_US):
            assert window_of("hour", "Australia/Lord_Howe", at_us) == (start_us, end_us)


@given(
    window=st.sampled_from(WINDOWS),
    zone=st.sampled_from(ZONES),
    at_us=st.integers(us("1991-01-01T00:00Z"), us("2100-01-01T00:00Z")),
)
@example(window="day", zone="America/St_Johns", at_us=us("2010-11-07T00:00:30-02:30"))
@example(window="day", zone="America/St_Johns", at_us=us("2010-11-06T23:30:00-03:30"))
@example(window="day", zone="Pacific/Apia", at_us=us("2011-12-29T23:59:59-10:00"))
@example(window="day", zone="America/Sao_Paulo", at_us=us("2018-11-04T03:00Z"))
@example(window="day", zone="America/Havana", at_us=us("2026-11-01T00:30-05:00"))
def test_windows_divide_time(window: Window, zone: str, at_us: int) -> None:
    """C4: every instant lies in one window, the next one begins where it ends, and its date is the zone's own."""
    start_us, _ = tiles(window, zone, at_us)
    first = datetime.fromtimestamp(start_us // SECOND_US, ZoneInfo(zone))
    before = datetime.fromtimestamp(start_us // SECOND_US - 1, ZoneInfo(zone))
    if window == "day":
        assert before.date() < first.date()
    if window == "week":
        assert first.weekday() == 0
        assert before.weekday() == 6 or zone == "Pacific/Apia"
    if window == "month":
        assert (first.day, first.month != before.month) == (1, True)


@pytest.mark.parametrize(
    ("window", "zone", "start", "end", "hours"),
    [
        ("day", "UTC", "2026-01-15T00:00Z", "2026-01-16T00:00Z", 24),
        ("day", "Asia/Shanghai", "2026-01-15T00:00+08:00", "2026-01-16T00:00+08:00", 24),
        ("day", "Asia/Kolkata", "2026-01-15T00:00+05:30", "2026-01-16T00:00+05:30", 24),
        ("hour", "Asia/Kolkata", "2026-01-15T00:00+05:30", "2026-01-15T01:00+05:30", 1),
        ("day", "Europe/Amsterdam", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00", 23),
        ("day", "Europe/Amsterdam", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00", 25),
        ("hour", "Europe/Amsterdam", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", 1),
        ("hour", "Europe/Amsterdam", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00", 1),
        ("hour", "Europe/Amsterdam", "2026-03-29T01:00+01:00", "2026-03-29T03:00+02:00", 1),
        ("week", "Europe/Amsterdam", "2026-03-23T00:00+01:00", "2026-03-30T00:00+02:00", 167),
        ("week", "Europe/Amsterdam", "2026-10-19T00:00+02:00", "2026-10-26T00:00+01:00", 169),
        ("month", "Europe/Amsterdam", "2026-03-01T00:00+01:00", "2026-04-01T00:00+02:00", 31 * 24 - 1),
        ("month", "UTC", "2026-02-01T00:00Z", "2026-03-01T00:00Z", 28 * 24),
        ("month", "UTC", "2028-02-01T00:00Z", "2028-03-01T00:00Z", 29 * 24),
        ("month", "UTC", "2100-02-01T00:00Z", "2100-03-01T00:00Z", 28 * 24),
        ("month", "UTC", "2026-04-01T00:00Z", "2026-05-01T00:00Z", 30 * 24),
        ("month", "UTC", "2026-12-01T00:00Z", "2027-01-01T00:00Z", 31 * 24),
        ("month", "Asia/Kolkata", "2026-12-01T00:00+05:30", "2027-01-01T00:00+05:30", 31 * 24),
        ("day", "UTC", "2028-02-29T00:00Z", "2028-03-01T00:00Z", 24),
        ("day", "UTC", "2026-12-31T00:00Z", "2027-01-01T00:00Z", 24),
        ("week", "UTC", "2026-12-28T00:00Z", "2027-01-04T00:00Z", 168),
        ("week", "America/Los_Angeles", "2026-11-16T00:00-08:00", "2026-11-23T00:00-08:00", 168),
        ("day", "America/St_Johns", "2026-03-08T00:00-03:30", "2026-03-09T00:00-02:30", 23),
        ("day", "America/Sao_Paulo", "2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00", 23),
        ("day", "America/Sao_Paulo", "2018-11-03T00:00-03:00", "2018-11-04T01:00-02:00", 24),
        ("day", "America/Sao_Paulo", "2018-02-17T00:00-02:00", "2018-02-18T00:00-03:00", 25),
        ("day", "America/Havana", "2026-11-01T00:00-04:00", "2026-11-02T00:00-05:00", 25),
        ("day", "Pacific/Apia", "2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00", 24),
    ],
)
def test_calendar(window: Window, zone: str, start: str, end: str, hours: int) -> None:
    """C4: days, weeks and months of the calendar, on the nights when clocks turn and where midnight does not exist."""
    right = us(start), us(end)
    assert right[1] - right[0] == hours * HOUR_US
    for at_us in (right[0], (right[0] + right[1]) // 2, right[1] - 1):
        assert window_of(window, zone, at_us) == right


def test_total_has_one_window() -> None:
    """The window `total` begins with time and never ends."""
    assert window_of("total", "UTC", AT_US) == (0, FOREVER_US)
