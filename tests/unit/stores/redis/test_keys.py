"""tollkeeper.stores.redis.keys: names that never meet, read back as they were, and a deadline for each thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper.ledger import BalanceKey, CellKey, Shape
from tollkeeper.stores import Retention
from tollkeeper.stores.redis.batch import Unit
from tollkeeper.stores.redis.keys import (
    FOREVER_S,
    GLOBAL,
    SKEW_S,
    SPARE_S,
    Deadlines,
    Keys,
    balance_tag,
    cell_fields,
    decode,
    digest_of,
    encode,
    hour_of,
    shape_name,
    shape_of,
    tag_of,
)
from tollkeeper.stores.redis.legs import Held
from tollkeeper.testing.samples import AT_US, DAY_US, HOUR_US, a_hold, an_entry
from tollkeeper.values import OTHER, Charge, Scopes, Usage

KEYS = Keys("t")
HARSH = st.text(st.sampled_from(":{}|/=%#@\n\0 aé€\U0001f600\ud800"), min_size=1, max_size=12)
IDS = st.one_of(HARSH, st.text(min_size=1, max_size=128))


@settings(max_examples=400, deadline=None)
@given(st.lists(IDS, min_size=2, max_size=40, unique=True))
def test_ids_never_meet(ids: list[str]) -> None:
    """F3: keys, tags and fields of different ids differ, and an id is read back as it was; separators stay ours."""

    def balance(id: str) -> str:
        return KEYS.balance(BalanceKey(Shape("agent", "usd", "day", "UTC"), "p", id, 5))

    def cells(id: str) -> str:
        return KEYS.cells(tag_of("p"), CellKey("day", 5, "agent", "p", id, "o", "m"))

    makers: list[Callable[[str], str]] = [encode, tag_of, balance, cells]
    for make in makers:
        assert len({make(id) for id in ids}) == len(ids)
    for id in ids:
        assert decode(encode(id)) == id
        assert not set(encode(id)) & set(":{}|/= #\n\0")
        key = balance(id)
        assert KEYS.balance_key(key, "p").id == id
        assert (key.count("{"), key.count("}"), key.count(":")) == (1, 1, 8)


def near() -> list[str]:
    """Ids that are like each other: what is encoded beside what it stands for, one sign more or less, one letter in two ways."""
    signs = [*":{}|/=%#@ \n\0*aAé", "e\u0301", "\U0001f600", "\ud83d", "\udc00"]
    parts = ["", *signs, *map(encode, signs)]
    pairs = [before + after for before in parts for after in parts if before or after]
    return list(dict.fromkeys([*pairs, *("x" * 127 + sign for sign in signs), *(f"{sign}:0" for sign in signs)]))


def test_a_million_pairs_never_meet() -> None:
    """F3: of 1,400 ids that are like each other no two share a name, wherever an id may stand; nor do pairs of them."""
    ids = near()
    assert len(ids) * (len(ids) - 1) // 2 > 1_000_000
    shape, at = Shape("agent", "usd", "day", "UTC"), 5
    places: list[Callable[[str], object]] = [
        encode, tag_of,
        lambda id: KEYS.balance(BalanceKey(shape, "p", id, at)),
        lambda id: KEYS.balance(BalanceKey(shape, id, "p", at)),
        lambda id: KEYS.cells("t", CellKey("day", at, "agent", "p", id, "o", "m")),
        lambda id: KEYS.cells(tag_of(id), CellKey("day", at, "project", id, "", "o", "m")),
        lambda id: cell_fields(id, "m")[0],
        lambda id: cell_fields("o", id)[0],
        lambda id: Unit(1, structs.replace(an_entry("a/1"), id=id)).name,
        lambda id: Held(structs.replace(a_hold("a/1"), id=id), (), {}).field(GLOBAL),
        lambda id: Held(a_hold("a/1", scopes=Scopes(project=id)), (), {}).field(GLOBAL),
    ]  # fmt: skip
    for place in places:
        assert len({place(id) for id in ids}) == len(ids)
    some = ids[:: len(ids) // 40]
    pairs = [(a, b) for a in some for b in some]
    assert len({cell_fields(a, b)[0] for a, b in pairs}) == len(pairs)
    assert len(
        {Held(structs.replace(a_hold("a/1"), id=b, scopes=Scopes(project=a)), (), {}).field(GLOBAL) for a, b in pairs}
    ) == len(pairs)
    assert len({KEYS.balance(BalanceKey(shape, a, b, at)) for a, b in pairs}) == len(pairs)
    names = {
        Unit(1, structs.replace(an_entry("a/1"), id=id, revision=n, by=by)).name
        for id in ids
        for n, by in ((0, None), (1, "x"), (10, "x"))
    }
    assert len(names) == 3 * len(ids)


@pytest.mark.parametrize("scope", ["all", "project", "agent", "session", "user", "key", "model", "tag"])
def test_a_balance_is_read_back(scope: Any) -> None:
    """A balance's key says all of the balance but its project, which the slot says; zones keep their slashes."""
    project = "" if scope in ("all", "key", "model") else "alpha"
    key = BalanceKey(Shape(scope, "tokens", "week", "America/New_York"), project, "a:b", 7)
    assert KEYS.balance_key(KEYS.balance(key), "alpha") == key
    assert balance_tag(key) == (GLOBAL if not project else tag_of("alpha"))
    assert shape_of(shape_name(key.shape)) == key.shape


def test_one_slot() -> None:
    """Every key of a project has its tag and no other one; a project that is called as the global tag has another."""
    tag = tag_of(GLOBAL)
    cell = CellKey("hour", 5, "project", "p", "", "o", "m")
    made = [
        *(make(tag) for make in (KEYS.cursor, KEYS.shapes, KEYS.holds, KEYS.due, KEYS.index, KEYS.before)),
        KEYS.entries(tag, 1), KEYS.ids(tag, 1), KEYS.seen(tag, "agent", 1), KEYS.cells(tag, cell),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert all(key.startswith(f"t:{{{tag}}}:") for key in made)
    assert tag != GLOBAL
    assert KEYS.cells(tag, cell) != KEYS.cells(tag, cell._replace(project=OTHER))


def test_deadlines() -> None:
    """Each thing is kept its time after its period's end; None is forever, a deadline too; ids: after the day of booking."""
    kept = Deadlines(Retention(hour_s=10, day_s=20, month_s=None, entries_s=40), dedupe_s=50)
    hour_s = hour_of(AT_US) // 10**6
    assert kept.cells("hour", hour_of(AT_US)) == hour_s + 3600 + 1 + 10
    assert kept.cells("month", AT_US) == FOREVER_S
    day_us = AT_US - AT_US % DAY_US
    assert kept.ids(AT_US) == (day_us + DAY_US) // 10**6 + 1 + 50 + SPARE_S
    assert kept.balance(2**62) == FOREVER_S
    assert Deadlines(Retention(hour_s=10), ahead_s=7).cells("hour", hour_of(AT_US)) == hour_s + 3600 + 1 + 10 + 7


@pytest.mark.parametrize(
    ("seconds", "dedupe_s", "days"),
    [
        (0, 86400, [0, -1]),
        (86400 - SKEW_S - 1, 86400, [0, -1]),
        (86400 - SKEW_S, 86400, [1, 0, -1]),
        (3600, 3600, [0]),
        (3599, 3600, [0, -1]),
        (7200, 3 * 86400, [0, -1, -2, -3]),
    ],
)
def test_days(seconds: int, dedupe_s: int, days: list[int]) -> None:
    """B2: an id is looked for where it may have been booked for so long, by a clock that may be ahead; the newest first."""
    day_us = AT_US - AT_US % DAY_US
    found = Deadlines(Retention(), dedupe_s).days(day_us + seconds * 10**6)
    assert [(each - day_us) // DAY_US for each in found] == days


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"latency_ms": 7, "http_status": 500, "at_us": AT_US + HOUR_US, "note": "x"}, True),
        ({"served": "other"}, False),
        ({"usage": Usage(input=101)}, False),
        ({"scopes": Scopes(project="alpha", agent="x")}, False),
        ({"charge": Charge(amount_nanos=None, status="unpriced")}, False),
    ],
)
def test_digest(change: dict[str, Any], same: bool) -> None:
    """B2: who, what and how much make an entry another one; when and how fast do not."""
    entry = an_entry("a/1")
    assert (digest_of(structs.replace(entry, **change)) == digest_of(entry)) is same
    assert len(digest_of(entry)) == 12
