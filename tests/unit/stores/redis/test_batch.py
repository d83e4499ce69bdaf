"""tollkeeper.stores.redis.batch: which rows count, whoever came first, and what they add."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import permutations

import pytest
from msgspec import structs
from tests.shared_stores import KEPT

from tollkeeper.ledger import Shape, cells_of, expired, spent_by, window_of
from tollkeeper.money import MAX_NANOS
from tollkeeper.stores.redis.batch import (
    MINUTE_US,
    Decision,
    Place,
    Places,
    Unit,
    decide,
    decide_all,
    groups_of,
    mark_of,
    measured,
    project_batch,
    steps_of,
    units_of,
    window_at,
)
from tollkeeper.stores.redis.keys import Deadlines, Keys, tag_of
from tollkeeper.testing.corrections import corrected
from tollkeeper.testing.samples import AT_US, DIME, USD, a_hold, an_entry
from tollkeeper.values import Entry, Scopes, us_of

KEYS = Keys("t")
TAG = tag_of("alpha")
ESTIMATE = expired(a_hold("a/1"))
SETTLED = an_entry("a/1", 5)


def one(entry: Entry, reversal: Entry | None = None) -> Unit:
    return Unit(1, entry, reversal)


@pytest.mark.parametrize(
    ("unit", "stands", "adds", "conflict"),
    [
        (one(SETTLED), "", [5], False),
        (one(SETTLED), mark_of(SETTLED), [], False),
        (one(SETTLED), mark_of(an_entry("a/1", 6)), [], True),
        (one(SETTLED), mark_of(ESTIMATE), [-DIME, 5], False),
        (one(ESTIMATE), "", [DIME], False),
        (one(ESTIMATE), mark_of(ESTIMATE), [], False),
        (one(ESTIMATE), mark_of(SETTLED), [], False),
    ],
)
def test_decide(unit: Unit, stands: str, adds: list[int], conflict: bool) -> None:
    """B2, C2: the table of the module: a settlement counts once and replaces an estimate; other contents are a conflict."""
    verdict = decide(unit, stands)
    assert [each.sign * (each.charge.amount_nanos or 0) for each in verdict.adds] == adds
    assert verdict.conflict is conflict


def total(rows: list[tuple[int, Entry]]) -> int:
    """What rows of one id come to, each unit applied by itself in this order."""
    stand: dict[str, str] = {}
    sum_ = 0
    for unit in units_of(rows):
        decision = decide_all([unit], stand)
        stand |= {name: new for name, (_, new) in decision.names.items()}
        sum_ += sum(each.entry.sign * (each.entry.charge.amount_nanos or 0) for each in decision.counted)
    return sum_


@pytest.mark.parametrize(
    ("units", "right"),
    [
        ([[ESTIMATE], [SETTLED]], 5),
        ([[ESTIMATE], [ESTIMATE], [SETTLED]], 5),
        ([[SETTLED], [structs.replace(SETTLED, sign=-1), corrected(SETTLED)]], 2 * DIME),
        ([[SETTLED], [SETTLED]], 5),
    ],
)
def test_in_any_order(units: list[list[Entry]], right: int) -> None:
    """B4: after Redis was emptied journals come in any order, and the sums are the same."""
    expected = {right} if right != 2 * DIME else {corrected(SETTLED).charge.amount_nanos}
    for order in permutations(units):
        assert {total(list(enumerate([entry for unit in order for entry in unit], 1)))} == expected


def asked(old: Entry, nanos: int, by: str) -> list[Entry]:
    """A revision that somebody asked for, as a journal has it."""
    right = an_entry("a/1", nanos, revision=old.revision + 1, by=by, outcome=old.outcome)
    return [structs.replace(old, sign=-1), right]


def interleaved(journals: list[list[list[Entry]]]) -> Iterator[list[Entry]]:
    """Every order in which journals can come that leaves each of them in its own."""
    if not any(journals):
        yield []
    for at, units in enumerate(journals):
        if units:
            for rest in interleaved([*journals[:at], units[1:], *journals[at + 1 :]]):
                yield units[0] + rest


LATE = structs.replace(SETTLED, revision=1)  # as it counted: it took the place of an estimate
X = asked(LATE, 700, "x")
Y = asked(X[1], 800, "y")
Z = asked(Y[1], 900, "z")


@pytest.mark.parametrize(
    ("journals", "right"),
    [
        ([[[ESTIMATE], Y], [[SETTLED]], [X, Z]], 900),
        ([[[ESTIMATE]], [[ESTIMATE]], [[SETTLED], X], [Y]], 800),
        ([[[SETTLED]], [[SETTLED]], [asked(SETTLED, 700, "x")]], 700),
        ([[[ESTIMATE]], [asked(ESTIMATE, 700, "x")], [[SETTLED]]], 5),
        ([[[ESTIMATE]], [[ESTIMATE]], [asked(ESTIMATE, 700, "x")]], 700),
        ([[[ESTIMATE], asked(ESTIMATE, 700, "x")], [[SETTLED]], [[SETTLED]]], 5),
    ],
    ids=["a chain", "two estimates", "twice", "a late one", "an estimate corrected", "both"],
)  # fmt: skip
def test_journals_in_any_order(journals: list[list[list[Entry]]], right: int) -> None:
    """B4: what several processes have booked and corrected comes to the same after Redis was emptied, whoever is first."""
    orders = [list(enumerate(order, 1)) for order in interleaved(journals)]
    assert [order for order in orders if total(order) != right] == []


def test_units() -> None:
    """A reversal and what takes its place are one step, whoever stands around them."""
    pair = [structs.replace(SETTLED, sign=-1), corrected(SETTLED)]
    rows = list(enumerate([an_entry("x/1"), *pair, an_entry("y/1")], 1))
    assert [(unit.seq, unit.entry.id, unit.reversal is not None) for unit in units_of(rows)] == [
        (1, "x/1", False), (3, "a/1", True), (4, "y/1", False),
    ]  # fmt: skip


def test_groups_add_up() -> None:
    """B7: cells and balances of groups are those of their entries, one by one."""
    entries = [
        an_entry(f"{number}/1", nanos, at_us=AT_US + number * 10**6, scopes=Scopes(project="alpha", agent=f"a{number % 2}"))
        for number, nanos in enumerate((DIME, None, 0, USD, 7))
    ]  # fmt: skip
    found: dict[object, int] = {}
    right: dict[object, int] = {}
    for group in groups_of(entries):
        for cell, _ in cells_of(group.first):
            found[cell] = found.get(cell, 0) + measured("usd", group.sums)
    for entry in entries:
        for cell, _ in cells_of(entry):
            right[cell] = right.get(cell, 0) + (entry.charge.amount_nanos or 0)
    assert found == right
    shape = Shape("agent", "usd", "total", "UTC")
    assert sum(amount for entry in entries for _, amount in spent_by([shape], entry)) == DIME + USD + 7


def test_batch() -> None:
    """One batch has the cursor's move, the id, a block for the month and the sums of every cell and balance."""
    shape = Shape("project", "usd", "month", "UTC")
    decision = decide_all([one(an_entry("a/1"))], {})
    assert isinstance(decision, Decision)
    batch = project_batch(
        TAG, "j", 0, 1, decision, ended=["a/1"], leased={}, shapes=frozenset({shape}), now_us=AT_US,
        places=Places(KEYS, Deadlines(KEPT)),
    )  # fmt: skip
    assert (batch.cursors, batch.ended, len(batch.blocks)) == ([("j", 0, 1)], ["a/1"], 1)
    assert list(batch.names) == ["0=a/1"]
    assert batch.ids == tuple(KEYS.ids(TAG, day_us) for day_us in Deadlines(KEPT).days(AT_US))
    names, args = batch.arguments(KEYS)
    assert all(f"{{{TAG}}}" in name for name in names)
    assert args


def test_sums_beyond_a_double() -> None:
    """F4: what many entries come to is sent in steps that a script counts exactly, and together they are all of it."""
    place = Place(("k",), (0,), ("a", "b"))
    amounts = [3 * MAX_NANOS, -2 * MAX_NANOS - 5]
    steps = [each.amounts for each in steps_of(place, amounts)]
    assert all(abs(amount) <= MAX_NANOS for step in steps for amount in step)
    assert [sum(each) for each in zip(*steps, strict=True)] == amounts
    assert [each.amounts for each in steps_of(place, [1, 0])] == [[1, 0]]


@pytest.mark.parametrize("night", ["2026-04-04T15:00Z", "2026-10-03T15:30Z"])
def test_remembered_windows(night: str) -> None:
    """C4: what is remembered of a minute is right for all of it, also where the clock turns by half an hour (Lord Howe)."""
    turned_us = us_of(datetime.fromisoformat(night))
    for minute in range(-120, 120):
        for within_us in (0, MINUTE_US // 2, MINUTE_US - 1):
            asked = "hour", "Australia/Lord_Howe", turned_us + minute * MINUTE_US + within_us
            assert window_at(*asked) == window_of(*asked)
