"""A breaker under any order of events equals a slow, obvious model, and small mistakes in it are noticed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tollkeeper.breaker import Bounds, Breaker, Outcome, Permit, Turn

#: Short times, in halves: sums of them are exact. All of an open time, a window and a probe's time pass within a few steps.
BOUNDS = (
    Bounds(failures=2, minimum=4, window_s=10, open_s=4, open_max_s=12, probe_s=3),
    Bounds(failures=99, ratio=0.5, minimum=3, window_s=20, open_s=2, open_max_s=2, probe_s=8),
    Bounds(failures=99, ratio=1, minimum=2, slow_ratio=0.5, window_s=5, open_s=3, open_max_s=100, probe_s=1),
    Bounds(failures=1, open_s=5, open_max_s=40, probe_s=2.5),
)
PASSED_S = st.sampled_from([0.0, 0.5, 0.5, 1.0, 2.0, 3.0, 5.0, 11.0])
OUTCOMES = st.sampled_from(["ok", "fail", "fail", "ignore"])


class Model:
    """Every call that counts is kept, and everything is worked out anew."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.phase = "closed"
        self.era = 0  #: grows whenever anything is decided
        self.until_s = 0.0
        self.failed_probes = 0
        self.calls: list[tuple[int, str, bool]] = []  #: since it was closed: bucket, outcome, slow
        self.probe: list[Any] | None = None
        self.turns: list[tuple[str, str, float]] = []

    def become(self, phase: str, until_s: float) -> None:
        if phase != self.phase:
            self.turns.append((self.phase, phase, until_s))
        self.phase, self.until_s, self.probe = phase, until_s, None
        self.era += 1

    def look(self, now_s: float) -> None:
        if self.phase == "open" and now_s >= self.until_s:
            self.become("half_open", 0)

    def allows(self, now_s: float) -> bool:
        self.look(now_s)
        if self.phase == "half_open":
            return self.probe is None or now_s >= self.probe[1] + self.bounds.probe_s
        return self.phase == "closed"

    def admit(self, now_s: float) -> list[Any] | None:
        """A permit: era, when, whether it has spoken."""
        if not self.allows(now_s):
            return None
        permit = [self.era, now_s, False]
        if self.phase == "half_open":
            self.probe = permit
        return permit

    def report(self, permit: list[Any], outcome: str, now_s: float, slow: bool) -> None:
        late = permit[2] or permit[0] != self.era
        permit[2] = True
        if late:
            return
        if outcome == "ignore":
            if permit is self.probe:
                self.probe = None
        elif self.phase == "half_open" and outcome == "ok":
            self.failed_probes = 0
            self.calls = []
            self.become("closed", 0)
        elif self.phase == "half_open":
            self.failed_probes += 1
            self.open(now_s)
        else:
            self.calls.append((self.bucket(now_s), outcome, slow))
            if self.trips(outcome, slow, now_s):
                self.open(now_s)

    def block(self, until_s: float, now_s: float) -> None:
        if until_s > now_s:
            self.become("open", max(until_s, self.until_s))

    def open(self, now_s: float) -> None:
        self.become("open", now_s + min(self.bounds.open_s * 2**self.failed_probes, self.bounds.open_max_s))

    def bucket(self, now_s: float) -> int:
        return math.floor(now_s / (self.bounds.window_s / 10))

    def counts(self, now_s: float) -> tuple[int, int, int]:
        window = [call for call in self.calls if call[0] > self.bucket(now_s) - 10]
        return len(window), sum(call[1] == "fail" for call in window), sum(call[2] for call in window)

    def trips(self, outcome: str, slow: bool, now_s: float) -> bool:
        bounds, (calls, failures, slow_ones) = self.bounds, self.counts(now_s)
        last = [call[1] for call in self.calls][-bounds.failures :]
        in_a_row = len(last) == bounds.failures and set(last) == {"fail"}
        by_failing = outcome == "fail" and (in_a_row or (calls >= bounds.minimum and failures / calls >= bounds.ratio))
        return by_failing or (slow and calls >= bounds.minimum and slow_ones / calls >= bounds.slow_ratio)


class Machine(RuleBasedStateMachine):
    """Does the same to a breaker and to the model."""

    kind: ClassVar[type[Breaker]] = Breaker

    @initialize(bounds=st.sampled_from(BOUNDS), now_s=st.sampled_from([0.0, 100.5]))
    def start(self, bounds: Bounds, now_s: float) -> None:
        self.now_s = now_s
        self.turns: list[Turn] = []
        self.breaker, self.model = self.kind(bounds, self.turns.append), Model(bounds)
        self.permits: list[tuple[Permit, list[Any]]] = []

    @rule(passed_s=PASSED_S)
    def time_passes(self, passed_s: float) -> None:
        self.now_s += passed_s

    @rule(times=st.integers(1, 4))
    def admit(self, times: int) -> None:
        for _ in range(times):
            given, right = self.breaker.admit(self.now_s), self.model.admit(self.now_s)
            assert (given is None) == (right is None)
            if given is not None and right is not None:
                assert given.probe == (self.model.phase == "half_open")
                self.permits.append((given, right))

    @precondition(lambda self: self.permits)
    @rule(which=st.integers(0, 7), outcome=OUTCOMES, slow=st.booleans(), passed_s=PASSED_S)
    def report(self, which: int, outcome: Outcome, slow: bool, passed_s: float) -> None:
        """Of the newest ones, or an older one; some have spoken before."""
        self.now_s += passed_s
        permit, right = self.permits[-1 - which % len(self.permits)]
        self.breaker.report(permit, outcome, self.now_s, slow=slow)
        self.model.report(right, outcome, self.now_s, slow)

    @rule(outcomes=st.lists(st.tuples(OUTCOMES, st.booleans()), min_size=1, max_size=6))
    def calls(self, outcomes: list[tuple[Outcome, bool]]) -> None:
        """One after the other, as long as there is leave."""
        for outcome, slow in outcomes:
            self.admit(1)
            if self.permits:
                self.report(0, outcome, slow, 0.0)

    @rule(hang=st.booleans(), report=st.booleans(), outcome=OUTCOMES)
    def probes(self, hang: bool, report: bool, outcome: Outcome) -> None:
        """It is half-open; perhaps the first probe hangs, the next one goes, and the first one speaks after all."""
        self.block(0.5)
        self.now_s = max(self.now_s, self.model.until_s)
        self.admit(2)
        if hang:
            self.now_s += self.model.bounds.probe_s
            self.admit(2)
        if report:
            self.report(1 if hang else 0, outcome, False, 0.0)
            self.admit(2)

    @rule(ahead_s=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 7.0, 30.0]))
    def block(self, ahead_s: float) -> None:
        self.breaker.block(self.now_s + ahead_s, self.now_s)
        self.model.block(self.now_s + ahead_s, self.now_s)

    @rule()
    def look(self) -> None:
        assert self.breaker.allows(self.now_s) == self.model.allows(self.now_s)
        assert self.breaker.phase(self.now_s) == self.model.phase

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "breaker"):
            return
        assert self.breaker.open_until_s == (self.model.until_s if self.model.phase == "open" else 0)
        assert self.breaker.counts(self.now_s) == self.model.counts(self.now_s)
        assert [turn[:3] for turn in self.turns] == self.model.turns

    def teardown(self) -> None:
        """Without calls it lets one through in the end: it neither stays open nor half-open."""
        if hasattr(self, "breaker"):
            assert self.breaker.allows(self.now_s + 1000)


def walk(kind: type[Machine], examples: int, *, seeded: bool = False) -> None:
    """`seeded`: the same walks each time, and none is made shorter."""
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples, stateful_step_count=15, deadline=None, database=None, print_blob=False, derandomize=seeded,
            phases=[Phase.generate] if seeded else list(Phase), suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


def test_a_breaker_equals_the_model() -> None:
    """E2, E3: in any order of calls, reports, blocks and time it lets through, counts and changes as the model does."""
    walk(Machine, 1500)


# ── small mistakes, seeded to see whether the machine notices ────────────────────────────────────────────────────────


class NoGeneration(Breaker):
    """A late permit has a say."""

    def report(self, permit: Permit, *args: Any, **options: Any) -> None:
        permit.generation = self._generation
        super().report(permit, *args, **options)


class ManyProbes(Breaker):
    """All may go while it is half-open."""

    def _has_room(self, now_s: float) -> bool:
        return self._phase == "half_open"


class ProbeWithoutDeadline(Breaker):
    """A probe that hangs keeps its place."""

    def _has_room(self, now_s: float) -> bool:
        return self._phase == "half_open" and self._probe is None


class BlockWithoutMax(Breaker):
    """A shorter Retry-After makes a longer one shorter."""

    def block(self, until_s: float, now_s: float, reason: str = "") -> None:
        self._until_s = 0.0
        super().block(until_s, now_s, reason)


class LostProbeGivesBack(Breaker):
    """A probe that lost its place gives back the place of the next one."""

    def _probed(self, probe: Permit, *args: Any) -> Turn | None:
        if args[0] == "ignore":
            self._probe = probe
        return super()._probed(probe, *args)


class NeverLonger(Breaker):
    """A failed probe does not double the open time."""

    def _probed(self, *args: Any) -> Turn | None:
        self._open_s = self.bounds.open_s / 2
        return super()._probed(*args)


class NothingForgotten(Breaker):
    """A breaker that closes has the window of before."""

    def _forget(self) -> None:
        if not hasattr(self, "_calls"):
            super()._forget()


class OldBuckets(Breaker):
    """A bucket is used again without being emptied."""

    def _advance(self, now_s: float) -> None:
        self._tick = max(self._tick, int(now_s // self._bucket_s))


@pytest.mark.parametrize(
    "kind",
    [
        NoGeneration, ManyProbes, ProbeWithoutDeadline, BlockWithoutMax, LostProbeGivesBack, NeverLonger, NothingForgotten,
        OldBuckets,
    ],
)  # fmt: skip
def test_mistakes_are_noticed(kind: Callable[..., Breaker]) -> None:
    """Each seeded mistake makes the machine fail."""
    wrong = type(f"Machine{kind}", (Machine,), {"kind": kind})
    with pytest.raises((AssertionError, KeyError)):  # KeyError: an event that BREAKER_LIFE does not have
        walk(wrong, 1500, seeded=True)
