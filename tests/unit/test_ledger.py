"""The ledger's rules: what counts where, corrections, and the census."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper.errors import Conflict, UnknownEntry
from tollkeeper.ledger import (
    CELL_SUMS,
    HOLD_LIFE,
    Census,
    Shape,
    amount_of,
    cells_of,
    correcting,
    correction,
    expired,
    ids_of,
    is_late,
    settling,
    spent_by,
    window_of,
)
from tollkeeper.testing.samples import AT_US, DAY_US, DIME, HOUR_US, UNKNOWN, a_hold, an_entry
from tollkeeper.values import OTHER, Charge, Entry, Measure, ScopeKind, Scopes, Usage

FULL = Scopes(project="p", agent="a", session="s", user="u", key="k", tags=("t1", "t2"))
BARE = Scopes(project="p")


def test_a_hold_ends_once() -> None:
    """C2: a hold is settled, voided or expired once; only an expired one can still be settled."""
    assert {state for state, _ in HOLD_LIFE} == {"held", "expired"}
    assert {event for state, event in HOLD_LIFE if state == "expired"} == {"settle"}
    assert HOLD_LIFE["held", "void"] == "voided"


@pytest.mark.parametrize(
    ("scope", "full", "bare"),
    [
        ("all", (("", ""),), (("", ""),)),
        ("project", (("p", ""),), (("p", ""),)),
        ("agent", (("p", "a"),), ()),
        ("session", (("p", "s"),), ()),
        ("user", (("p", "u"),), ()),
        ("key", (("", "k"),), ()),
        ("model", (("", "m"),), (("", "m"),)),
        ("tag", (("p", "t1"), ("p", "t2")), ()),
    ],
)
def test_ids_of(scope: ScopeKind, full: object, bare: object) -> None:
    """C8: agents, sessions, users and tags carry their project; keys, models and `all` stand alone; None counts nowhere."""
    assert ids_of(scope, FULL, "m") == full
    assert ids_of(scope, BARE, "m") == bare


@pytest.mark.parametrize(
    ("measure", "entry", "amount"),
    [
        ("usd", an_entry("a/1"), DIME),
        ("usd", an_entry("a/1", sign=-1), -DIME),
        ("usd", an_entry("a/1", None), 0),
        ("tokens", an_entry("a/1", usage=Usage(input=1, cache_read=2, output=4, reasoning=3, web_search=9)), 7),
        ("tokens", an_entry("a/1", tokens=5, sign=-1), -5),
        ("requests", an_entry("a/2", None), 1),
        ("requests", an_entry("a/1", sign=-1), -1),
    ],
)
def test_amount_of(measure: Measure, entry: Entry, amount: int) -> None:
    """What an entry adds is signed; reasoning and searches are no tokens beside the others; each attempt is a request."""
    assert amount_of(measure, entry) == amount
    shape = Shape("project", measure, "day", "UTC")
    assert [added for _, added in spent_by([shape], entry)] == ([amount] if amount else [])


def test_cells_of() -> None:
    """An entry is in an hour, a day and a month of each of its scopes, with the start of each, and no cell twice."""
    entry = an_entry("a/1", scopes=FULL, at_us=AT_US + 1, outcome="error")
    cells = list(cells_of(entry))
    assert len({key for key, _ in cells}) == len(cells) == 3 * 7
    for key, sums in cells:
        assert (
            key.start_us
            == {"hour": AT_US, "day": AT_US - 12 * HOUR_US, "month": AT_US - 14 * DAY_US - 12 * HOUR_US}[key.period]
        )
        named = dict(zip(CELL_SUMS, sums, strict=True))
        assert (named["calls"], named["attempts"], named["errors"], named["amount_nanos"]) == (1, 1, 1, DIME)
    assert {key.project for key, _ in cells if key.scope == "key"} == {""}


@pytest.mark.parametrize(
    ("charge", "sums"),
    [
        (Charge(amount_nanos=5, status="priced"), (5, 0, 0)),
        (Charge(amount_nanos=5, status="partial"), (5, 5, 0)),
        (Charge(amount_nanos=5, status="estimated"), (5, 5, 0)),
        (Charge(amount_nanos=0, status="priced"), (0, 0, 0)),
        (UNKNOWN, (0, 0, 1)),
    ],
)
def test_what_is_not_exact(charge: Charge, sums: tuple[int, int, int]) -> None:
    """A5: a cell says how much of its amount is not `priced`, and counts what has no amount at all."""
    for sign in (1, -1):
        for _, found in cells_of(an_entry("a/1", charge=charge, sign=sign)):
            assert tuple(found[-3:]) == tuple(sign * value for value in sums)


def test_past_the_cap_cells_move_and_keys_do_not() -> None:
    """Scopes past the cap count under _other, in their project or in _other's; a key has no project to be past."""
    cells = [key for key, _ in cells_of(an_entry("a/1", scopes=FULL, other=("project", "tag"))) if key.period == "day"]
    assert {(key.scope, key.project, key.id) for key in cells} == {
        ("project", OTHER, ""), ("agent", OTHER, "a"), ("session", OTHER, "s"), ("user", OTHER, "u"), ("key", "", "k"),
        ("tag", OTHER, OTHER),
    }  # fmt: skip


# ── corrections ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("hold", "amount", "status", "calls"),
    [
        (a_hold("a/1"), DIME, "estimated", 1),
        (a_hold("a/2"), DIME, "estimated", 0),
        (a_hold("a/1", None), None, "unpriced", 1),
        (a_hold("a/1", None, tokens=None), None, "unpriced", 1),
        (a_hold("a/1", 0), 0, "estimated", 1),
    ],
)
def test_an_expired_hold(hold: object, amount: int | None, status: str, calls: int) -> None:
    """C2: an expired hold is booked at its estimate with all that it names; without a price it is unpriced, not 0."""
    entry = expired(hold)  # type: ignore[arg-type]
    assert (entry.charge.amount_nanos, entry.charge.status, entry.calls) == (amount, status, calls)
    assert (entry.outcome, entry.at_us, entry.charge.price_version) == ("expired", AT_US, "v1")
    assert entry.note is not None


@given(old=st.integers(0, 10**9), right=st.integers(0, 10**9), late_us=st.integers(0, DAY_US * 60))
def test_a_correction_leaves_what_is_right(old: int, right: int, late_us: int) -> None:
    """C2: an estimate, its reversal and the right entry add up to the right entry, in the estimate's own windows."""
    booked = structs.replace(expired(a_hold("a/1", old)), other=("tag",))
    pair = correction(booked, an_entry("a/1", right, at_us=AT_US + late_us))
    sums: dict[object, tuple[int, ...]] = {}
    for entry in (booked, *pair):
        for key, values in cells_of(entry):
            sums[key] = tuple(map(sum, zip(sums.get(key, (0,) * len(values)), values, strict=True)))
    expected = dict(cells_of(structs.replace(pair[1], revision=0)))
    assert {key: values for key, values in sums.items() if any(values)} == expected
    assert (pair[1].at_us, pair[1].revision, pair[1].other) == (AT_US, 1, ("tag",))


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({}, False),
        ({"latency_ms": 9, "note": "again", "http_status": None, "at_us": AT_US + 1, "tier": "flex"}, False),
        ({"outcome": "expired"}, False),
        ({"usage": Usage(input=101)}, Conflict),
        ({"charge": Charge(amount_nanos=DIME + 1, status="priced")}, Conflict),
        ({"charge": UNKNOWN}, Conflict),
        ({"scopes": FULL}, Conflict),
        ({"served": "n"}, Conflict),
        ({"model": "n"}, Conflict),
        ({"provider": "n"}, Conflict),
        ({"dialect": "n"}, Conflict),
    ],
)
def test_a_second_settlement(changed: dict[str, object], answer: object) -> None:
    """B2: who, what and how much must agree in a repeat; when and how fast may differ; after an expiry any real one is late."""
    known, again = an_entry("a/1"), structs.replace(an_entry("a/1"), **changed)
    if answer is Conflict:
        with pytest.raises(Conflict, match="'a/1' was booked with other contents"):
            is_late(known, again)
    else:
        assert is_late(known, again) is answer
    estimate = expired(a_hold("a/1"))
    assert is_late(estimate, again) is (again.outcome != "expired")


ESTIMATE = expired(a_hold("a/1", 3 * DIME))
SETTLED = an_entry("a/1")
BY_ANN = structs.replace(SETTLED, revision=1, by="ann", charge=Charge(amount_nanos=7, status="priced"))
LATE = structs.replace(SETTLED, revision=2)


@pytest.mark.parametrize(
    ("has", "settled", "added"),
    [
        ((), SETTLED, [(0, 1)]),
        ((SETTLED,), SETTLED, []),
        ((SETTLED, BY_ANN), SETTLED, []),
        ((SETTLED, BY_ANN), BY_ANN, Conflict),
        ((SETTLED, BY_ANN), ESTIMATE, []),
        ((ESTIMATE,), ESTIMATE, []),
        ((ESTIMATE,), SETTLED, [(0, -1), (1, 1)]),
        ((ESTIMATE, structs.replace(ESTIMATE, revision=1, by="ann")), SETTLED, [(1, -1), (2, 1)]),
        ((ESTIMATE, structs.replace(ESTIMATE, revision=1, by="ann"), LATE), SETTLED, []),
        ((ESTIMATE, structs.replace(ESTIMATE, revision=1, by="ann"), LATE), an_entry("a/1", 5), Conflict),
        ((BY_ANN,), BY_ANN, []),
    ],
)
def test_settling_an_id(has: tuple[Entry, ...], settled: Entry, added: object) -> None:
    """B2, C2: a settlement is judged by what was settled, not by corrections; what it corrects is the entry that stands."""
    if added is Conflict:
        with pytest.raises(Conflict):
            settling(has, settled)
    else:
        assert [(each.revision, each.sign) for each in settling(has, settled)] == added


@pytest.mark.parametrize(
    ("has", "right", "added"),
    [
        ((), BY_ANN, UnknownEntry),
        ((SETTLED,), BY_ANN, [(0, -1), (1, 1)]),
        ((SETTLED,), structs.replace(BY_ANN, at_us=AT_US + 9, other=("tag",)), [(0, -1), (1, 1)]),
        ((SETTLED,), structs.replace(BY_ANN, revision=0), Conflict),
        ((SETTLED,), structs.replace(BY_ANN, revision=2), Conflict),
        ((SETTLED, BY_ANN), BY_ANN, []),
        ((SETTLED, BY_ANN), structs.replace(BY_ANN, at_us=AT_US + 9, other=("tag",)), []),
        ((SETTLED, BY_ANN), structs.replace(BY_ANN, note="another reason"), Conflict),
        ((SETTLED, BY_ANN), structs.replace(BY_ANN, revision=2), [(1, -1), (2, 1)]),
        ((SETTLED, BY_ANN, LATE), BY_ANN, []),
        ((SETTLED,), structs.replace(BY_ANN, by=None), ValueError),
        ((SETTLED,), structs.replace(BY_ANN, scopes=FULL), ValueError),
        ((SETTLED,), structs.replace(BY_ANN, model="n"), ValueError),
    ],
)
def test_correcting_an_id(has: tuple[Entry, ...], right: Entry, added: object) -> None:
    """B2: a correction stands on the revision before its own: put there once, and refused where another one stands."""
    if isinstance(added, type):
        with pytest.raises(added):
            correcting(has, right)
    else:
        assert [(each.revision, each.sign) for each in correcting(has, right)] == added


# ── the census ───────────────────────────────────────────────────────────────────────────────────────────────────────


def session(id: str, project: str = "p", at_us: int = AT_US) -> Entry:
    return an_entry("a/1", scopes=Scopes(project=project, session=id), at_us=at_us)


def test_the_cap_is_per_project_and_month() -> None:
    """The first `cap` ids of a month fit, again and again; the next one does not; another project or month begins anew."""
    census = Census(2)
    placed = [census.place(session(id)) for id in ("s1", "s2", "s3", "s1", "s3", "s2")]
    assert placed == [(), (), ("session",), (), ("session",), ()]
    assert census.place(session("s3", "q")) == ()
    assert census.place(session("s3", at_us=AT_US + 31 * DAY_US)) == ()
    assert census.place(session("s4")) == ("session",), "the month before still counts"
    assert census.place(session("s1")) == ()


def test_projects_past_the_cap() -> None:
    """Past the cap a project counts under _other, where its own ids have a cap of their own."""
    census = Census(1)
    assert census.place(session("s", "p")) == ()
    assert census.place(session("s", "q")) == ("project",)
    assert census.place(session("s", "r")) == ("project",)
    assert census.place(session("t", "r")) == ("project", "session")


def test_the_census_goes_on_where_the_store_stands() -> None:
    """Ids that the store has seen count; `_other` itself takes no place, in the store or in a call."""
    asked = []

    def load(scope: ScopeKind, project: str, month_us: int) -> list[str]:
        asked.append((scope, project, month_us))
        return ["s1", OTHER] if scope == "session" else []

    census = Census(2, load)
    placed = [census.place(session(id)) for id in ("s2", OTHER, "s1", "s3", "s2")]
    assert placed == [(), (), (), ("session",), ()]
    month_us, _ = window_of("month", "UTC", AT_US)
    assert asked == [("project", "", month_us), ("session", "p", month_us)]
