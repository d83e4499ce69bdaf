"""reports, and gather with it: what is asked of a ledger, and that every grouping adds up to the same total."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from tollkeeper import reports
from tollkeeper.cli.gather import differences, gather
from tollkeeper.errors import BadRequest
from tollkeeper.ledger import CELL_SUMS, Period, window_of
from tollkeeper.reports import GROUPINGS, Grouping, Slice, Source, Sums, choose, plan, span
from tollkeeper.stores import Retention
from tollkeeper.stores.memory import MemoryStore
from tollkeeper.values import Charge, Entry, Part, Scopes, Usage

HOUR = 3_600_000_000
NOTHING_PRUNED: dict[Source, int] = dict.fromkeys(get_args(Source), 0)


def at(text: str, zone: str = "UTC") -> int:
    """An instant in UTC microseconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1_000_000


def entry(number: int, at_us: int, **changes: Any) -> Entry:
    """An entry with an amount of its own."""
    charge = Charge(amount_nanos=1000 + number, computed_nanos=1000 + number, status="priced", price_version="v")
    fields: dict[str, Any] = {
        "id": f"{number}/1", "call": str(number), "at_us": at_us, "scopes": Scopes(project="p"), "charge": charge,
        "dialect": "openai-chat", "provider": "openai", "model": "m", "served": "m",
        "usage": Usage(input=number + 1, output=2, reasoning=1),
    }  # fmt: skip
    return Entry(**fields | changes)


def report(
    entries: list[Entry], by: Grouping | None, each: Period | None, from_us: int, to_us: int, zone: str,
    project: str | None = None, retention: Retention | None = None, now_us: int = 0,
) -> reports.Report:  # fmt: skip
    """The report over a fresh ledger that holds these entries."""

    async def ask() -> reports.Report:
        store = MemoryStore()
        for each_entry in entries:
            await store.settle(each_entry)
        if retention is not None:
            await store.prune(now_us, retention)
        return await gather(store, plan(by, each, from_us, to_us, zone, project))

    return asyncio.run(ask())


def added(rows: tuple[reports.Row, ...]) -> Sums:
    total = Sums()
    for row in rows:
        total = total.plus(row.sums)
    return total


def test_sums_are_the_cells_own() -> None:
    """Sums has the columns of a cell in their order, and tokens counts what Usage counts."""
    assert Sums._fields == CELL_SUMS
    sums = Sums(*range(1, len(CELL_SUMS) + 1))
    usage = Usage(**{kind: getattr(sums, kind) for kind in Usage.__struct_fields__})
    assert (sums.input_tokens, sums.output_tokens, sums.tokens) == (
        usage.input_tokens, usage.output_tokens, usage.tokens,
    )  # fmt: skip


# ── every grouping, one total ────────────────────────────────────────────────────────────────────────────────────────

#: (zone, first day, day after the last): plain weeks, both DST nights, a month's and a year's end.
SPANS = [
    ("UTC", "2026-11-01", "2026-12-01"),
    ("UTC", "2026-12-28", "2027-01-04"),
    ("Asia/Kolkata", "2026-10-30", "2026-11-03"),
    ("America/Los_Angeles", "2026-03-06", "2026-03-10"),
    ("America/Los_Angeles", "2026-10-30", "2026-11-03"),
    ("Europe/Amsterdam", "2026-03-27", "2026-03-31"),
    ("Europe/Amsterdam", "2026-10-23", "2026-10-27"),
]

maybe = st.sampled_from([None, "a", "b"])
charges = st.sampled_from([
    Charge(amount_nanos=7, computed_nanos=7, status="priced"),
    Charge(amount_nanos=0, computed_nanos=0, status="priced"),
    Charge(amount_nanos=11, computed_nanos=13, reported_nanos=11, status="priced"),
    Charge(amount_nanos=17, computed_nanos=17, status="estimated"),
    Charge(amount_nanos=19, computed_nanos=19, status="partial"),
    Charge(amount_nanos=None, status="unpriced"),
])  # fmt: skip
entries_of = st.lists(
    st.builds(
        dict,
        place=st.integers(-1, 1001),  # thousandths of the span, and just outside of it
        scopes=st.builds(
            Scopes, project=st.sampled_from(["p", "q"]), agent=maybe, session=maybe, user=maybe, key=maybe,
            tags=st.sampled_from([(), ("x",), ("x", "y")]),
        ),
        charge=charges,
        served=st.sampled_from(["llama3:8b", "vendor/model:free", "m"]),
        provider=st.sampled_from(["openai", "groq"]),
        outcome=st.sampled_from(["ok", "error", "cut"]),
        calls=st.integers(0, 1),
        usage=st.builds(Usage, input=st.integers(0, 9), cache_read=st.integers(0, 9), output=st.integers(0, 9)),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from(SPANS), entries_of, st.sampled_from([None, "p"]))
@example(SPANS[3], [], None)
def test_every_grouping_adds_up(place: tuple[str, str, str], drawn: list[dict[str, Any]], project: str | None) -> None:
    """G1: Σ hours = Σ days = Σ agents = Σ models = the total over the entries, in every zone; tags keep the true total."""
    zone, first, after = place
    from_us, to_us = at(first, zone), at(after, zone)
    step = (to_us - from_us) // 1000
    made = [
        entry(number, from_us + fields["place"] * step, **{k: v for k, v in fields.items() if k != "place"})
        for number, fields in enumerate(drawn)
    ]
    inside = [
        each for each in made if from_us <= each.at_us < to_us and project in (None, each.scopes.project)
    ]  # fmt: skip
    whole = sum(each.charge.amount_nanos or 0 for each in inside)
    unpriced = sum(each.charge.amount_nanos is None for each in inside)
    totals = set()
    for by in (None, *GROUPINGS):
        for each in (None, "day", "month") if by != "agent" else (None, "hour", "day"):
            found = report(made, by, each, from_us, to_us, zone, project)
            totals.add(found.total)
            assert found.overlaps == (by == "tag")
            if by != "tag":
                assert added(found.rows) == found.total, (by, each)
            assert all(min(row.sums) >= 0 for row in found.rows)
    (total,) = totals
    assert (total.amount_nanos, total.unpriced, total.attempts) == (whole, unpriced, len(inside))
    assert total.tokens == sum(each.usage.tokens for each in inside)


def test_calls_without_an_agent_are_a_row() -> None:
    """G1: what names no agent stands in a row of its project without a name, so that rows add up."""
    day = at("2026-11-02")
    made = [
        entry(1, day, scopes=Scopes(project="p", agent="writer")),
        entry(2, day, scopes=Scopes(project="p")),
        entry(3, day, scopes=Scopes(project="q", agent="writer")),
    ]
    found = report(made, "agent", None, at("2026-11-01"), at("2026-12-01"), "UTC")
    assert [(row.project, row.name, row.sums.amount_nanos) for row in found.rows] == [
        ("q", "writer", 1003), ("p", "writer", 1001), ("p", None, 1002),
    ]  # fmt: skip


def test_tags_overlap_and_the_total_is_true() -> None:
    """G1: a call with two tags stands in both rows and once in the total."""
    made = [entry(1, at("2026-11-02"), scopes=Scopes(project="p", tags=("x", "y")))]
    found = report(made, "tag", None, at("2026-11-01"), at("2026-12-01"), "UTC")
    assert [(row.name, row.sums.amount_nanos) for row in found.rows] == [("x", 1001), ("y", 1001)]
    assert (found.overlaps, found.total.amount_nanos, found.total.calls) == (True, 1001, 1)


def test_names_of_models_stay_whole() -> None:
    """A6: `llama3:8b` and `vendor/model:free` stand in a report as they are."""
    made = [entry(n, at("2026-11-02"), served=name) for n, name in enumerate(["llama3:8b", "vendor/model:free"])]
    found = report(made, "model", None, at("2026-11-01"), at("2026-12-01"), "UTC")
    assert {row.name for row in found.rows} == {"llama3:8b", "vendor/model:free"}


def test_unpriced_is_counted_and_not_zero() -> None:
    """A5: a call of unknown cost adds to `unpriced` and nothing to the amount; estimates are told apart."""
    made = [
        entry(1, at("2026-11-02"), charge=Charge(amount_nanos=None, status="unpriced")),
        entry(2, at("2026-11-02"), charge=Charge(amount_nanos=50, computed_nanos=50, status="estimated")),
        entry(3, at("2026-11-02"), charge=Charge(amount_nanos=5, computed_nanos=5, status="priced")),
    ]
    total = report(made, "project", None, at("2026-11-01"), at("2026-12-01"), "UTC").total
    assert (total.amount_nanos, total.inexact_nanos, total.unpriced) == (55, 50, 1)


def test_days_are_those_of_the_zone() -> None:
    """C4: the DST night of Amsterdam has a day of 23 hours, and each call stands in its local day."""
    zone = "Europe/Amsterdam"
    days = plan(None, "day", at("2026-03-28", zone), at("2026-03-31", zone), zone).slices
    assert [(piece.to_us - piece.from_us) // HOUR for piece in days] == [24, 23, 24]
    made = [entry(n, at(f"2026-03-{day}T23:30", zone)) for n, day in enumerate((28, 29, 30))]
    found = report(made, None, "day", days[0].from_us, days[-1].to_us, zone)
    assert [(row.start_us, row.sums.calls) for row in found.rows] == [(piece.from_us, 1) for piece in days]


# ── where a slice is read ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "after", "zone", "periods"),
    [
        ("2026-11-01", "2026-12-01", "UTC", ("month", "day", "hour")),
        ("2026-11-01", "2026-11-08", "UTC", ("day", "hour")),
        ("2026-11-01T05:00", "2026-11-01T06:00", "UTC", ("hour",)),
        ("2026-11-01T05:00", "2026-11-01T06:00:01", "UTC", ()),
        ("2026-11-01", "2026-11-02", "America/Los_Angeles", ("hour",)),
        ("2026-11-01", "2026-11-02", "Asia/Kolkata", ()),
    ],
)
def test_cells_that_fit(first: str, after: str, zone: str, periods: tuple[str, ...]) -> None:
    """Cells answer a span whose edges are theirs, coarsest first; other spans need the entries."""
    (piece,) = plan("agent", None, at(first, zone), at(after, zone), zone).slices
    assert piece.periods == periods


def test_the_coarsest_kept_source_is_chosen() -> None:
    """A slice is read from the coarsest cells that are all kept, then from entries, else refused with what would do."""
    piece = Slice(at("2026-11-01"), at("2026-12-01"), ("month", "day", "hour"))
    later = piece.from_us + 1
    assert choose(piece, NOTHING_PRUNED) == "month"
    assert choose(piece, NOTHING_PRUNED, entries_only=True) == "entry"
    assert choose(piece, {**NOTHING_PRUNED, "month": later}) == "day"
    assert choose(piece, {"month": later, "day": later, "hour": later, "entry": piece.from_us}) == "entry"
    with pytest.raises(BadRequest, match=r"retention has dropped.*entries are kept since 2026-11-01T00:00:00Z"):
        choose(piece, {"month": later + HOUR, "day": later + HOUR, "hour": later + HOUR, "entry": later})


def test_a_report_is_whole_or_refused() -> None:
    """G1: what retention has dropped is told; a month that is kept as a cell is still reported to the nano-dollar."""
    made = [entry(1, at("2026-01-05")), entry(2, at("2026-01-20"))]
    january = at("2026-01-01"), at("2026-02-01")
    now_us = at("2026-11-22")
    kept = report(made, "project", None, *january, "UTC", retention=Retention(), now_us=now_us)
    assert kept.total.amount_nanos == 1001 + 1002
    with pytest.raises(BadRequest, match="needs what retention has dropped"):
        report(made, "project", "day", *january, "UTC", retention=Retention(), now_us=now_us)
    with pytest.raises(BadRequest, match="needs what retention has dropped"):
        report(made, "key", None, *january, "UTC", "p", retention=Retention(), now_us=now_us)


# ── what people write ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("from_text", "to_text", "zone", "expected"),
    [
        (None, None, "UTC", ("2026-11-01", "2026-12-01")),
        (None, None, "Asia/Kolkata", ("2026-11-01", "2026-12-01")),
        ("2026-11-03", "2026-11-03", "Europe/Amsterdam", ("2026-11-03", "2026-11-04")),
        ("2026-11-03T10:00", "2026-11-03T10:30", "America/Los_Angeles", ("2026-11-03T10:00", "2026-11-03T10:30")),
        ("2026-03-29", None, "Europe/Amsterdam", ("2026-03-29", "2026-12-01")),
    ],
)
def test_span(from_text: str | None, to_text: str | None, zone: str, expected: tuple[str, str]) -> None:
    """A span is this month, or between dates and times of the zone; a date as the end is that whole day."""
    assert span(from_text, to_text, zone, at("2026-11-22T12:00")) == (at(expected[0], zone), at(expected[1], zone))


def test_a_time_may_name_its_own_zone() -> None:
    """An offset in the time wins over the zone of the report."""
    assert span("2026-11-03T10:00Z", "2026-11-03T12:00+01:00", "Asia/Tokyo", 0) == (
        at("2026-11-03T10:00"), at("2026-11-03T11:00"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yesterday", None, "UTC"), r"from: 'yesterday' is no date; write 2026-11-01"),
        ((None, "2026-13-01", "UTC"), r"to: '2026-13-01' is no date"),
        (("9999-12-31", "9999-12-31", "UTC"), r"from: '9999-12-31' is too far away"),
        (("0001-01-01", None, "UTC"), r"from: '0001-01-01' is too far away"),
        (("0001-01-01T00:00+14:00", None, "UTC"), r"from: .* is too far away"),
        (("2026-11-02", "2026-11-01", "UTC"), r"from, to: 2026-11-02T00:00:00Z is not before 2026-11-02T00:00:00Z"),
        ((None, None, "Mars/Olympus"), r"tz: 'Mars/Olympus' is no time zone"),
        ((None, None, "../etc/passwd"), r"tz: '../etc/passwd' is no time zone"),
    ],
)
def test_spans_that_are_none(arguments: tuple[str | None, str | None, str], message: str) -> None:
    """I2: a wrong date, zone or order is one line that names the argument and what would be right."""
    with pytest.raises(BadRequest, match=message):
        span(*arguments, at("2026-11-22"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("planet", None, 0, HOUR), "by: 'planet' is not known; expected one of project, agent"),
        (("agent", "week", 0, HOUR), "each: 'week' is not known; expected one of hour, day, month"),
        (("agent", None, 1, 1), "from, to: the span is empty"),
        (("agent", "hour", 0, 2001 * HOUR), "each: more than 2000 rows; ask for a shorter time"),
        (("agent", None, 0, HOUR, "Nowhere"), "tz: 'Nowhere' is no time zone"),
    ],
)
def test_plans_that_are_none(arguments: tuple[Any, ...], message: str) -> None:
    """I2: what cannot be planned is refused by name."""
    with pytest.raises(BadRequest, match=message):
        plan(*arguments)


def test_hours_of_a_zone_with_half_hours() -> None:
    """Hours begin where the zone's clock strikes: at half past in UTC for +05:30."""
    zone = "Asia/Kolkata"
    pieces = plan(None, "hour", at("2026-11-01", zone), at("2026-11-01T03:00", zone), zone).slices
    assert [piece.from_us for piece in pieces] == [window_of("hour", zone, piece.from_us)[0] for piece in pieces]
    assert len(pieces) == 3


def test_hours_of_a_night_with_half_an_hour_less() -> None:
    """C4: where the clock goes on by half an hour (Caracas, at 02:30), an hour is half as long, read from the entries."""
    zone = "America/Caracas"
    pieces = plan(None, "hour", at("2016-05-01T02:00", zone), at("2016-05-01T04:00", zone), zone).slices
    assert [piece.to_us - piece.from_us for piece in pieces] == [HOUR // 2, HOUR]
    assert [piece.periods for piece in pieces] == [(), ("hour",)]


# ── reported and computed ────────────────────────────────────────────────────────────────────────────────────────────


async def test_differences_between_reported_and_computed() -> None:
    """A8: a report shows where the provider's cost differs from ours, by model; a correction is counted once."""
    day = at("2026-11-02")
    store = MemoryStore()
    costs = [("m", 100, 100), ("m", 100, 130), ("m", None, 50), ("n", 7, 5), ("plain", 9, None)]
    for number, (served, computed, reported) in enumerate(costs):
        charge = Charge(
            amount_nanos=reported if reported is not None else computed, computed_nanos=computed,
            reported_nanos=reported, status="priced",
        )  # fmt: skip
        await store.settle(entry(number, day, served=served, charge=charge))
    found = await differences(store, at("2026-11-01"), at("2026-12-01"), None)
    assert [(*structs.astuple(row), row.difference_nanos) for row in found.rows()] == [
        ("openai", "m", 3, 1, 1, 0, 280, 200, 230, 30), ("openai", "n", 1, 1, 0, 0, 5, 7, 5, -2),
    ]  # fmt: skip


async def test_differences_follow_corrections() -> None:
    """A8: what was corrected is compared as it stands, once; the entries that it took the place of are in no figure."""
    day, store = at("2026-11-02"), MemoryStore()
    old = entry(1, day, charge=Charge(amount_nanos=9, computed_nanos=None, reported_nanos=9, status="priced"))
    await store.settle(old)
    charge = Charge(amount_nanos=9, computed_nanos=8, reported_nanos=9, status="priced")
    await store.correct(structs.replace(old, charge=charge, revision=1, by="ann"))
    (row,) = (await differences(store, at("2026-11-01"), at("2026-12-01"), None)).rows()
    assert (row.reported, row.differing, row.uncomputed, row.computed_nanos, row.reported_nanos) == (1, 1, 0, 8, 9)


def test_differences_of_several_models_and_of_ours() -> None:
    """A8: a call that several models served is compared with calls of the same ones; where our figure counts it is said."""
    charge = Charge(amount_nanos=8, computed_nanos=8, reported_nanos=9, status="priced")
    parts = (Part(Usage(input=1)), Part(Usage(input=2), "small"), Part(Usage(input=3), "large"))
    found = reports.Differences()
    for each in (entry(1, 0, served="large", charge=charge, parts=parts), entry(2, 0, served="large", charge=charge)):
        found.add(each)
    assert [(row.model, row.ours, row.counted_nanos) for row in found.rows()] == [
        ("large", 1, 0),
        ("large + small", 1, 0),
    ]


async def test_differences_need_their_entries() -> None:
    """A8: where the entries are pruned it is said."""
    store = MemoryStore()
    await store.settle(entry(1, at("2026-01-05")))
    await store.prune(at("2026-11-22"), Retention())
    with pytest.raises(BadRequest, match="single entries are kept since"):
        await differences(store, at("2026-01-01"), at("2026-02-01"), None)
