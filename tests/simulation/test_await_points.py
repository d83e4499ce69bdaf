"""D4: something happens at every point where a call waits, one run for each point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.lines import GOOD, SHAPES, STAYS, STREAMS, a_call, a_run, played

from tollkeeper.testing.script import Ledger, Placed, Planned
from tollkeeper.testing.simulate import Run

Act = Callable[[Run], object]
FAILING = Ledger(latency_s=0.01, outages_s=((0.03, 0.6),))
"""Down from the reservation on, so that the tries of a settlement have their points too."""


def at_each_step(call: Planned, *acts: tuple[int, Act], **settings: object) -> list[Run]:
    """One run for each step of the undisturbed one; an act is done so many steps after it."""
    steps = played(call, **settings).loop.steps
    assert steps > 20
    runs = []
    for step in range(1, steps + 1):
        run = a_run(call, **settings)  # type: ignore[arg-type]
        for later, act in acts:
            run.loop.at_step(step + later, lambda act=act, run=run: act(run))  # type: ignore[misc]
        assert run.play() == [], f"at step {step}"
        runs.append(run)
    return runs


def cancel(run: Run) -> None:
    run.cancel(0)


def leave(run: Run) -> None:
    if 0 in run.clients:
        run.clients[0].leave()


def outcomes(runs: list[Run]) -> set[str]:
    """How the calls were booked; "" is not at all."""
    return {found[0].outcome if (found := run.entries(0)) else "" for run in runs}


@pytest.mark.parametrize("ledger", [Ledger(latency_s=0.01), FAILING], ids=["ledger", "failing-ledger"])
@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_cancelled_at_every_point(dialect: str, stream: bool | str, ledger: Ledger) -> None:
    """D4: exactly one entry where the provider saw it, none where not, no hold left."""
    runs = at_each_step(a_call(dialect, stream), (0, cancel), ledger=ledger)
    seen = [run.stories[0].seen for run in runs]
    assert {False, True} == set(seen)
    assert {"", "cut", "ok"} <= outcomes(runs)
    assert all(bool(run.entries(0)) or not run.stories[0].seen for run in runs)


@pytest.mark.parametrize("apart", [1, 2, 3, 5])
@pytest.mark.parametrize("dialect", ["openai-chat", "anthropic-messages", "openai-responses"])
def test_cancelled_twice(dialect: str, apart: int) -> None:
    """D4: a second cancellation stops the putting right as little as the first."""
    at_each_step(a_call(dialect, True), (0, cancel), (apart, cancel), ledger=FAILING)


@pytest.mark.parametrize("act", [cancel, leave])
@pytest.mark.parametrize("trouble", ["status", "breaks", "refuses"])
@pytest.mark.parametrize(
    ("dialect", "stream"), [("openai-chat", True), ("openai-chat", False), ("google-generate", "array")]
)
def test_disturbed_at_every_point_of_a_second_attempt(dialect: str, stream: bool | str, trouble: str, act: Act) -> None:
    """D4, B5: an entry for each attempt that a provider saw, one call; none is begun for a client that has left."""
    places = tuple(Placed(name) for name in ("o1", "o2", "g1", "g2"))
    runs = at_each_step(a_call(dialect, stream, trouble=trouble, further=(GOOD,)), (0, act), places=places, attempts=2)
    assert {1, 2} <= {len(run.stories[0].tries) for run in runs}


@pytest.mark.parametrize("act", [cancel, leave])
@pytest.mark.parametrize("policy", ["drain", "cancel"])
@pytest.mark.parametrize("first", [{}, {"trouble": "refuses", "connect_s": 0.35}, {"think_s": 0.31}], ids=str)
@pytest.mark.parametrize(
    ("dialect", "stream"), [("openai-chat", True), ("openai-chat", False), ("google-generate", "array")]
)
def test_disturbed_at_every_point_of_a_hedge(
    dialect: str, stream: bool | str, first: dict[str, object], policy: str, act: Act
) -> None:
    """D4: an entry for each attempt that a provider saw, one call, no hold left, and no attempt goes on by itself."""
    places = tuple(Placed(name) for name in ("o1", "o2", "g1", "g2"))
    call = a_call(dialect, stream, **({"think_s": 2} | first), further=(GOOD,))
    runs = at_each_step(call, (0, act), places=places, attempts=2, hedge_s=0.3, on_disconnect=policy)
    assert {1, 2} <= {len(run.stories[0].tries) for run in runs}
    assert max(run.over_s for run in runs) < 4


@pytest.mark.parametrize("apart", [1, 2, 3, 5])
def test_a_hedged_call_is_cancelled_twice(apart: int) -> None:
    """D4: both attempts are put right, whatever comes meanwhile."""
    call = a_call(think_s=2, further=(GOOD,))
    settings = {"places": (Placed("o1"), Placed("o2")), "attempts": 2, "hedge_s": 0.3}
    at_each_step(
        call, (0, cancel), (apart, cancel), ledger=Ledger(latency_s=0.01, outages_s=((0.35, 0.9),)), **settings
    )


@pytest.mark.parametrize("policy", ["drain", "cancel"])
@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_the_client_leaves_at_every_point(dialect: str, stream: bool | str, policy: str) -> None:
    """D1: one entry where the provider saw it, never less than was delivered; a drained reply is booked exactly."""
    runs = at_each_step(a_call(dialect, stream), (0, leave), on_disconnect=policy)
    assert all(len(run.entries(0)) == run.stories[0].seen for run in runs)
    charges = [found.charge for run in runs for found in run.entries(0)]
    amounts, statuses = {charge.amount_nanos for charge in charges}, {charge.status for charge in charges}
    if policy == "drain":
        assert len(amounts) == 1
        assert statuses == {"priced"}
    else:
        assert {"", "left", "ok"} == outcomes(runs)


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_leaves_and_is_cancelled(dialect: str, stream: bool | str) -> None:
    """D4: a shutdown while a reply is drained; Gate.draining comes back to 0."""
    for apart in (1, 2, 4, 8):
        at_each_step(a_call(dialect, stream), (0, leave), (apart, cancel), ledger=FAILING)


@pytest.mark.parametrize(("dialect", "stream"), STREAMS)
def test_a_slow_client_leaves_at_every_point(dialect: str, stream: bool | str) -> None:
    """D1: also while a piece waits for the client, and while it is told of a cut."""
    slow = type(STAYS)(manner="slow", leaves_s=None, slow_s=0.05, stops_at=0)
    at_each_step(a_call(dialect, stream, client=slow), (0, leave))
    at_each_step(a_call(dialect, stream, client=slow, trouble="cut", at=0.6), (0, leave))


@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_the_process_dies_at_every_moment(dialect: str, stream: bool | str) -> None:
    """B1, C2: what the provider saw is in the ledger once the hold's deadline has passed, whenever the process died."""
    seen, number, slow = set(), 60, Ledger(latency_s=0.05)
    lasts_s = played(a_call(dialect, stream), ledger=slow).over_s
    for moment in range(1, number):
        run = played(a_call(dialect, stream), ledger=slow, death_s=lasts_s * moment / number)
        entries = run.entries(0)
        seen.add((run.stories[0].seen, entries[0].outcome if entries else ""))
    assert {(False, "expired"), (True, "expired"), (True, "ok")} <= seen
