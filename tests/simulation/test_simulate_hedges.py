"""Proof that the simulator sees what is wrong with hedged calls: faults put in on purpose are caught."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.simulation.test_simulate import WITHIN, is_caught

from tollkeeper import attempt, flow
from tollkeeper.call import Attempt
from tollkeeper.errors import Outrun
from tollkeeper.health import Pass
from tollkeeper.latency import Latencies
from tollkeeper.retry import Tries
from tollkeeper.values import Entry, Route

Patch = pytest.MonkeyPatch


def both_serve(patch: Patch) -> None:
    """Two attempts at once send to the client what comes."""
    good = attempt._send
    loser_goes_on(patch)

    async def send(call: flow.Call, tried: Attempt, reply: flow.Reply, data: bytes) -> None:
        await (reply.send(data) if call.started and tried.lost else good(call, tried, reply, data))

    patch.setattr(attempt, "_send", send)


def loser_is_free(patch: Patch) -> None:
    """The hold of an attempt that is cut for another one is let go."""
    good = attempt._put_right

    async def put_right(gate: flow.Gate, call: flow.Call, tried: Attempt) -> Entry | None:
        tried.sent = tried.sent and not tried.lost
        return await good(gate, call, tried)

    patch.setattr(attempt, "_put_right", put_right)


def loser_goes_on(patch: Patch) -> None:
    """An attempt that has lost is not cut: the call waits for its end."""
    patch.setattr(attempt, "_cut", lambda tried, in_s: None)


def loser_is_a_failure(patch: Patch) -> None:
    """What is cut for another attempt counts against its provider."""
    good = attempt._judge

    def judge(gate: flow.Gate, call: flow.Call, tried: Attempt, leave_to_go: Pass) -> None:
        if isinstance(tried.failure, Outrun):
            gate.health.report(leave_to_go, failed="model", reason="outrun")
        good(gate, call, tried, leave_to_go)

    patch.setattr(attempt, "_judge", judge)


def hedge_counts_no_call(patch: Patch) -> None:
    """A first attempt that has no connection is let go, and its hedge is still the second."""
    patch.setattr(attempt, "_is_followed", lambda call, tried: False)


def hedges_too_soon(patch: Patch) -> None:
    """It does not wait for what is usual."""
    patch.setattr(Latencies, "usual_s", lambda known, place, stream: 0.001)


def hedges_at_the_same_place(patch: Patch) -> None:
    """The provider that is slow gets the call once more."""

    def beside(tries: Tries, route: Route) -> Route:
        tries.put_back(route)
        return route

    patch.setattr(Tries, "beside", beside)


CONTROLS: list[Callable[[Patch], None]] = [
    both_serve, loser_is_free, loser_goes_on, loser_is_a_failure, hedge_counts_no_call, hedges_too_soon,
    hedges_at_the_same_place,
]  # fmt: skip


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.__name__)
def test_a_known_bad_hedge_is_caught(control: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """B5, C6: what goes wrong with two attempts at once is found."""
    control(monkeypatch)
    assert is_caught(), f"not caught within {WITHIN} seeds: {control.__doc__}"
