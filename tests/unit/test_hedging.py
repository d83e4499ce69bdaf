"""hedging: two attempts of a call at once. Every run is judged: `played` raises on what does not hold."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from tests.lines import GOOD, SHAPES, STREAMS, TWO, a_call, a_run, played

from tollkeeper.breaker import Bounds
from tollkeeper.retry import FLOOR, RetryBudget
from tollkeeper.testing.script import GROUPS, Ledger, Placed
from tollkeeper.testing.simulate import Run
from tollkeeper.values import Budget, Entry

PAIRS = tuple(Placed(f"{group}{number}") for group in GROUPS for number in (1, 2))
THREE = tuple(Placed(f"o{number}") for number in (1, 2, 3))
LATE: dict[str, Any] = {"think_s": 2}
SLOW = structs.replace(GOOD, think_s=2)
HEDGED: dict[str, Any] = {"places": TWO, "attempts": 2, "hedge_s": 0.3}


def went(run: Run, number: int = 0) -> list[str]:
    """Where a call's attempts went to."""
    return [tried.where for tried in run.stories[number].tries]


def booked(run: Run, number: int = 0) -> list[tuple[str, int, str]]:
    """Its entries: provider, calls and outcome, by attempt."""
    found = sorted(run.entries(number), key=lambda entry: entry.id)
    return [(entry.provider or "", entry.calls, entry.outcome) for entry in found]


def of(run: Run, provider: str) -> Entry:
    return next(entry for entry in run.entries(0) if entry.provider == provider)


def told(run: Run) -> tuple[int | None, bytes, bytes]:
    """Status, provider and attempts."""
    story = run.stories[0]
    fields = (story.headers.get(b"x-tollkeeper-provider", b""), story.headers.get(b"x-tollkeeper-attempts", b""))
    return (story.status, *fields)


# ── who serves ──


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_the_hedge_serves(dialect: str, stream: bool | str) -> None:
    """The client has its reply and no byte of the other; both are booked, and count as one call."""
    run = played(a_call(dialect, stream, **LATE, further=(GOOD,)), **HEDGED | {"places": PAIRS})
    first, second = (tried.where for tried in run.stories[0].tries)
    assert told(run) == (200, second.encode(), b"2")
    assert booked(run) == [(first, 1, "left"), (second, 0, "ok")]
    assert (of(run, first).note, of(run, first).charge.status) == ("outrun", "estimated")
    assert of(run, second).charge.status == "priced"
    assert run.over_s < 2, "who has lost is not waited for"
    if not stream:
        amounts = [entry.charge.amount_nanos or 0 for entry in run.entries(0)]
        assert run.stories[0].headers[b"x-tollkeeper-cost"] == f"{sum(amounts) / 10**9:.9f}".rstrip("0").encode()


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_the_first_serves(dialect: str, stream: bool | str) -> None:
    """A hedge that is slower still is cut and booked: it has cost something."""
    run = played(a_call(dialect, stream, think_s=0.5, further=(SLOW,)), **HEDGED | {"places": PAIRS})
    first, second = (tried.where for tried in run.stories[0].tries)
    assert told(run) == (200, first.encode(), b"2")
    assert booked(run) == [(first, 1, "ok"), (second, 0, "left")]


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_both_at_the_same_moment(dialect: str, stream: bool | str) -> None:
    """One serves; the other is booked for what it used, in whole replies all of it."""
    same = structs.replace(GOOD, think_s=0.7, connect_s=0)
    runs = [
        played(a_call(dialect, stream, think_s=1 + late_s, connect_s=0, further=(same,)), **HEDGED | {"places": PAIRS},
               ledger=Ledger())
        for late_s in (-1e-5, -2e-6, -1e-6, 0.0, 1e-6)
    ]  # fmt: skip
    for run in runs:
        assert sorted(calls for _, calls, _ in booked(run)) == [0, 1]
        assert len(run.entries(0)) == 2


def test_an_answer_in_time() -> None:
    """No hedge; nor where only the content is late: its provider has begun."""
    for planned in (a_call(think_s=0.2), a_call(think_s=0.1, gap_s=0.5), a_call(trouble="stalls", at=0.5)):
        assert went(played(planned, **HEDGED)) == ["o1"]


def test_off() -> None:
    """Nobody is hedged unless it is switched on, nor before it is known what is usual."""
    assert went(played(a_call(**LATE), places=TWO, attempts=2)) == ["o1"]
    run = a_run(a_call(**LATE), **HEDGED | {"hedge_s": 100})
    assert run.gate.latencies is not None
    run.gate.latencies._of.clear()
    assert run.play() == []
    assert went(run) == ["o1"]


def test_another_key_of_the_provider() -> None:
    """It is another place."""
    run = played(a_call(**LATE, further=(GOOD,)), **HEDGED | {"places": (Placed("o1", credentials=2),)})
    assert len(set(went(run))) == 2


def test_one_place_and_one_attempt() -> None:
    """Where no other place is, or no attempt left, nothing is hedged."""
    assert went(played(a_call(**LATE), **HEDGED | {"places": (Placed("o1"),)})) == ["o1"]
    assert went(played(a_call(**LATE), **HEDGED | {"attempts": 1})) == ["o1"]


def test_what_is_learned() -> None:
    """Who is outrun counts by how long it was waited for: else what is usual would sink with each hedge."""
    run = played(a_call(**LATE, further=(GOOD,)), **HEDGED)
    assert run.gate.latencies is not None
    here, there = (list(run.gate.latencies._of[place, True])[-1] for place in run.places(run.script.calls[0]))
    assert here > 0.3 > there
    run = played(a_call(think_s=0.4, further=(SLOW,)), **HEDGED)  # a hedge that was cut says nothing of its place
    assert run.gate.latencies is not None
    assert set(run.gate.latencies._of[run.places(run.script.calls[0])[1], True]) == {0.3}


# ── one of them fails ──


@pytest.mark.parametrize("trouble", ["status", "breaks"])
def test_the_first_fails(trouble: str) -> None:
    """The call stays with its hedge, and no third is made."""
    run = played(
        a_call(think_s=0.5, trouble=trouble, status=503, further=(SLOW,)), **HEDGED | {"places": THREE, "attempts": 3}
    )
    assert went(run) == ["o1", "o2"]
    assert told(run) == (200, b"o2", b"2")


@pytest.mark.parametrize("trouble", ["status", "breaks", "refuses"])
def test_the_hedge_fails(trouble: str) -> None:
    """The call stays with the first attempt."""
    failing = structs.replace(GOOD, trouble=trouble, status=503)
    run = played(a_call(**LATE, further=(failing,)), **HEDGED | {"places": THREE, "attempts": 3})
    assert went(run) == ["o1", "o2"]
    assert told(run) == (200, b"o1", b"1" if trouble == "refuses" else b"2")


@pytest.mark.parametrize("trouble", ["error_first", "error_done"])
def test_a_reply_with_an_error_inside(trouble: str) -> None:
    """It has not the call, also where content came with the error: what was good goes on, and no third one is made."""
    bad = structs.replace(GOOD, trouble=trouble, at=0.5, chunk=65536)
    run = played(a_call(think_s=0.8, further=(bad, GOOD)), **HEDGED | {"places": THREE, "attempts": 3})
    assert (went(run), told(run)) == (["o1", "o2"], (200, b"o1", b"2"))
    run = played(a_call(trouble=trouble, at=0.5, chunk=65536, further=(structs.replace(GOOD, gap_s=0.1, chunk=97),)),
                 places=TWO, attempts=2)  # fmt: skip
    assert told(run) == (200, b"o2", b"2")
    assert run.over_s - run.stories[0].started_s > 1, "it goes out as it comes"


def test_both_fail() -> None:
    """What may follow is decided as after any failure."""
    failing = structs.replace(GOOD, trouble="status", status=503)
    run = played(
        a_call(think_s=0.5, trouble="breaks", further=(failing, GOOD)), **HEDGED | {"places": THREE, "attempts": 3}
    )
    assert went(run) == ["o1", "o2", "o3"]
    assert told(run) == (200, b"o3", b"3")
    assert [calls for _, calls, _ in booked(run)] == [1, 0, 0]


@pytest.mark.parametrize("first", [{"trouble": "status", "think_s": 0.5}, {"trouble": "breaks", "think_s": 1.5}])
def test_the_last_failure_is_told(first: dict[str, Any]) -> None:
    """Of the one that was under way when the other had failed."""
    failing = structs.replace(GOOD, trouble="status", status=503, think_s=0.5)
    run = played(a_call(**first, status=500, further=(failing,)), **HEDGED)
    assert told(run)[:2] == ((503, b"o2") if first["think_s"] == 0.5 else (502, b"o1"))


@pytest.mark.parametrize("latency_s", [0, 0.4])
@pytest.mark.parametrize("stream", [True, False])
def test_the_first_has_no_connection(stream: bool, latency_s: float) -> None:
    """B5: found out while its hedge is out, which is the second one: it counts the call, and costs nothing."""
    planned = a_call(stream=stream, trouble="refuses", connect_s=0.6, further=(SLOW,))
    run = played(planned, ledger=Ledger(latency_s=latency_s), **HEDGED)
    assert told(run) == (200, b"o2", b"2")
    assert booked(run) == [("o1", 1, "cut"), ("o2", 0, "ok")]
    assert (of(run, "o1").charge.amount_nanos, of(run, "o1").charge.status) == (0, "priced")
    assert of(run, "o1").note == "upstream_unreachable"


def test_neither_has_a_connection() -> None:
    """B5: the hedge is let go; the one after it is a further one."""
    refused = structs.replace(GOOD, trouble="refuses", connect_s=1)
    planned = a_call(trouble="refuses", connect_s=0.6, further=(refused, GOOD))
    run = played(planned, **HEDGED | {"places": THREE, "attempts": 3})
    assert booked(run) == [("o1", 1, "cut"), ("o3", 0, "ok")]
    assert [entry.attempt for entry in run.entries(0)] == [1, 2]


def test_a_connection_that_hangs() -> None:
    """B5: the first one has none yet when its hedge serves: it has seen nothing, and still counts the call."""
    run = played(a_call(connect_s=3, further=(GOOD,)), **HEDGED)
    assert booked(run) == [("o1", 1, "left"), ("o2", 0, "ok")]
    assert (of(run, "o1").charge.amount_nanos, of(run, "o1").note) == (0, "outrun")


def test_the_hedge_had_no_connection_before() -> None:
    """B5: it is let go, and then the first one is too: nothing was made."""
    refused = structs.replace(GOOD, trouble="refuses", connect_s=0.01)
    run = played(a_call(trouble="refuses", connect_s=1, further=(refused,)), **HEDGED)
    assert (run.stories[0].status, run.entries(0)) == (502, [])


# ── holds and bounds ──


@pytest.mark.parametrize("measure", ["usd", "requests"])
def test_no_budget_for_a_hedge(measure: Any) -> None:
    """C6: it is not sent, and the call is served as if there were none."""
    limit = 1 if measure == "requests" else 1_000_000
    run = played(
        a_call(**LATE), budgets=(Budget(scope="project", measure=measure, window="total", limit=limit),), **HEDGED
    )
    assert [tried.opened_s is not None for tried in run.stories[0].tries] == [True, False]
    assert told(run) == (200, b"o1", b"1")
    assert booked(run) == [("o1", 1, "ok")]


def test_a_refused_hedge_takes_nothing() -> None:
    """Its route, its place among the attempts and its share of the retries are there when the first attempt fails."""
    budgets = (Budget(scope="project", measure="usd", window="total", limit=1_000_000),)  # a failure is free
    run = a_run(a_call(think_s=0.5, trouble="status", status=503, further=(GOOD, GOOD)), budgets=budgets, **HEDGED)
    run.gate.retries = RetryBudget(0.2)
    for _ in range(FLOOR):
        run.gate.retries.take(0)  # one is left, by the call's own fifth
    assert run.play() == []
    assert [tried.where for tried in run.stories[0].tries if tried.opened_s is not None] == ["o1", "o2"]
    assert told(run) == (200, b"o2", b"2")


def test_a_ledger_that_is_away_refuses_a_hedge() -> None:
    """And not the call."""
    run = played(a_call(**LATE), ledger=Ledger(outages_s=((0.2, 1),)), **HEDGED)
    assert (told(run), booked(run)) == ((200, b"o1", b"1"), [("o1", 1, "ok")])


def test_cut_before_it_was_sent() -> None:
    """The first answers while the hedge's hold is asked for, or while it has no connection: it is let go."""
    for ledger, further in ((Ledger(latency_s=0.4), GOOD), (Ledger(), structs.replace(GOOD, connect_s=2))):
        run = played(a_call(think_s=0.4, further=(further,)), ledger=ledger, **HEDGED)
        assert len(run.stories[0].tries) == 2
        assert booked(run) == [("o1", 1, "ok")]


def test_hedges_are_retries() -> None:
    """E5: they take from the same budget; where it is none, nothing is hedged."""
    calls = [a_call(number=number, **LATE, further=(GOOD,)) for number in range(30)]
    run = played(*calls, **HEDGED)
    assert sum(len(story.tries) - 1 for story in run.stories.values()) == FLOOR + 30 // 5
    run = a_run(a_call(**LATE), **HEDGED)
    run.gate.retries = RetryBudget(0)
    assert run.play() == []
    assert went(run) == ["o1"]


def test_breakers() -> None:
    """E3: who is cut for another has not failed; a place that is shut gets no hedge."""
    one = Bounds(failures=1)
    assert played(a_call(**LATE, further=(GOOD,)), bounds=one, **HEDGED).changes == []
    for retry_after_s, places in ((5, ["o1"]), (1, ["o1", "o2"])):
        limited = structs.replace(GOOD, trouble="status", status=429, retry_after_s=retry_after_s)
        shuts = a_call(trouble="breaks", further=(limited,))
        run = played(shuts, a_call(number=1, start_s=2, **LATE), **HEDGED)
        assert (went(run, 0), went(run, 1)) == (["o1", "o2"], places)


# ── the client leaves, the process ends ──


@pytest.mark.parametrize("policy", ["drain", "cancel"])
@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
@pytest.mark.parametrize("leaves_s", [0.2, 0.45, 0.6])
def test_the_client_leaves(dialect: str, stream: bool | str, policy: str, leaves_s: float) -> None:
    """D1: both are read on until one has content, or cut off by policy; both are booked, and no hedge is begun for nobody."""
    run = played(
        a_call(dialect, stream, think_s=0.8, leaves_s=leaves_s, further=(SLOW,)),
        **HEDGED | {"places": PAIRS}, on_disconnect=policy, ledger=Ledger(latency_s=0.01),
    )  # fmt: skip
    assert run.gate.draining == 0
    assert sum(calls for _, calls, _ in booked(run)) == 1
    assert len(run.entries(0)) == sum(tried.seen for tried in run.stories[0].tries)
    if policy == "cancel":
        assert run.over_s < leaves_s + 0.1
        assert {outcome for *_, outcome in booked(run)} == {"left"}


def test_draining_counts_connections() -> None:
    """D1: where one more may be drained, one of the two is."""
    for limit, priced in ((0, 0), (1, 1)):
        run = played(
            a_call(think_s=0.8, leaves_s=0.5, further=(structs.replace(GOOD, think_s=0.9),)),
            drain_limit=limit, **HEDGED,
        )  # fmt: skip
        assert [entry.charge.status for entry in run.entries(0)].count("priced") == priced


@pytest.mark.parametrize(("dialect", "stream"), [STREAMS[0], ("openai-chat", False)])
@pytest.mark.parametrize("first", [LATE, {"trouble": "refuses", "connect_s": 0.35}], ids=str)
def test_the_process_dies(dialect: str, stream: bool | str, first: dict[str, Any]) -> None:
    """B1, B5: at any moment of a hedged call; what stands counts it once."""
    for moment in range(1, 40):
        played(
            a_call(dialect, stream, **first, further=(structs.replace(GOOD, think_s=0.3),)), **HEDGED,
            ledger=Ledger(latency_s=0.05), death_s=0.3 + moment / 50,
        )  # fmt: skip


def test_places_are_distinct() -> None:
    """Of several ways the next other one that is open is taken."""
    run = played(a_call(**LATE, further=(GOOD,)), **HEDGED | {"places": THREE})
    assert [tried.route.place.provider for tried in run.stories[0].tries if tried.route] == ["o1", "o2"]
