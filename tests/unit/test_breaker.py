"""The breaker: when it opens, who may probe, what late and lost calls do to it."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from tollkeeper.breaker import BREAKER_LIFE, BUCKETS, Bounds, Breaker, Counts, Outcome, Permit, Turn

BOUNDS = Bounds()


def call(breaker: Breaker, outcome: Outcome, now_s: float, *, slow: bool = False, reason: str = "") -> bool:
    """One call that takes no time; whether it had leave."""
    permit = breaker.admit(now_s)
    if permit is not None:
        breaker.report(permit, outcome, now_s, slow=slow, reason=reason)
    return permit is not None


def opened(bounds: Bounds = BOUNDS) -> Breaker:
    """Open since 0."""
    breaker = Breaker(bounds)
    for _ in range(bounds.failures):
        call(breaker, "fail", 0)
    return breaker


def probing(bounds: Bounds = BOUNDS) -> tuple[Breaker, Permit]:
    """Half-open since the end of its open time, with its probe."""
    breaker = opened(bounds)
    probe = breaker.admit(bounds.open_s)
    assert probe is not None
    assert probe.probe
    return breaker, probe


def test_life() -> None:
    """The table leads from everywhere to everywhere, and a block opens whatever there is."""
    assert {before for before, _ in BREAKER_LIFE} == set(BREAKER_LIFE.values()) == {"closed", "open", "half_open"}
    assert {BREAKER_LIFE[before, "blocked"] for before, _ in BREAKER_LIFE} == {"open"}


# ── opening ──


def test_failures_in_a_row_open_it() -> None:
    """Three in a row, with calls that say nothing between them; one that goes well begins anew."""
    breaker = Breaker(BOUNDS)
    for outcome in ("fail", "fail", "ok", "fail", "ignore", "fail", "ignore"):
        assert call(breaker, outcome, 0)  # type: ignore[arg-type]
    assert breaker.phase(0) == "closed"
    call(breaker, "fail", 1)
    assert breaker.phase(1) == "open"
    assert breaker.open_until_s == 31
    assert not call(breaker, "ok", 30.9)


@pytest.mark.parametrize(
    ("outcomes", "phase"),
    [
        ("fofofofoof", "open"),  # half of ten
        ("fofofofof", "closed"),  # nine are too few
        ("fofofofooof", "closed"),  # five of eleven
        ("fofofofoiif", "closed"),  # what is ignored is no call
        ("ffoffoffoo", "closed"),  # six of ten, but the tenth went well
        ("ffoffoffoof", "open"),
    ],
)  # fmt: skip
def test_a_share_of_failures_opens_it(outcomes: str, phase: str) -> None:
    """Half of the window's calls, ten at least; it is a failure that opens it."""
    breaker = Breaker(BOUNDS)
    for each in outcomes:
        call(breaker, {"o": "ok", "f": "fail", "i": "ignore"}[each], 0)  # type: ignore[arg-type]
    assert breaker.phase(0) == phase


def test_slow_calls_open_it() -> None:
    """Four fifths of the window's calls were slow, though all went well."""
    breaker = Breaker(BOUNDS)
    for slow in (False, False, True, True, True, True, True, True, True):
        call(breaker, "ok", 0, slow=slow)
    assert breaker.phase(0) == "closed"
    call(breaker, "ok", 0, slow=True)
    assert breaker.phase(0) == "open"
    assert breaker.counts(0) == Counts(calls=10, failures=0, slow=8)


def test_nothing_that_says_nothing_opens_it() -> None:
    """E3: a client's mistake, a client that leaves, a refusal by a budget or a mistake of ours never opens a breaker."""
    breaker = Breaker(BOUNDS)
    for number in range(1000):
        assert call(breaker, "ignore", number / 10, slow=True)
    assert breaker.counts(100) == Counts(0, 0, 0)


def test_the_window_forgets() -> None:
    """A part of the window at a time; all of it after a long silence; and it never grows."""
    breaker = Breaker(Bounds(failures=100, minimum=100, window_s=10))
    for second in range(30):
        call(breaker, "fail" if second % 2 else "ok", second, slow=second % 5 == 0)
        call(breaker, "ok", second)
    assert breaker.counts(29) == Counts(calls=20, failures=5, slow=2)
    assert breaker.counts(35) == Counts(calls=8, failures=2, slow=0)
    for now_s in (20, 35):  # a clock that is a little behind
        assert breaker.counts(now_s) == Counts(calls=8, failures=2, slow=0)
    assert breaker.counts(1e9) == Counts(0, 0, 0)
    assert len(breaker._calls) == len(breaker._failures) == len(breaker._slow) == BUCKETS


def test_few_calls_reach_a_place_that_is_down() -> None:
    """E1: down for 60 s, 20 calls one after the other: four reach it."""
    breaker = Breaker(BOUNDS)
    assert sum(call(breaker, "fail", number * 3.0) for number in range(20)) == 4
    assert breaker.phase(60) == "open"


def test_a_bucket_begins_with_its_first_instant() -> None:
    """A call at the very end of a bucket is in the next one, and is forgotten with it."""
    breaker = Breaker(Bounds(window_s=10))
    call(breaker, "ok", 1)
    assert breaker.counts(10.5).calls == 1
    assert breaker.counts(11).calls == 0


# ── half-open ──


def test_one_probe() -> None:
    """E2: of a hundred that ask at half-open, one may go; asking takes nothing."""
    breaker = opened()
    assert not breaker.allows(29.9)
    assert all(breaker.allows(30) for _ in range(100))
    assert sum(breaker.admit(30) is not None for _ in range(100)) == 1
    assert not breaker.allows(30)


async def test_one_probe_of_many_tasks() -> None:
    """E2: a hundred tasks that wait for the same moment: one may go."""
    breaker, gate = opened(), asyncio.Event()

    async def ask() -> bool:
        await gate.wait()
        permit = breaker.admit(30)
        await asyncio.sleep(0)
        return permit is not None

    tasks = [asyncio.create_task(ask()) for _ in range(100)]
    await asyncio.sleep(0)
    gate.set()
    assert sum(await asyncio.gather(*tasks)) == 1


class GivesWay(Breaker):
    """Lets other threads go between what it reads and what it does with it."""

    def _look(self, now_s: float) -> Turn | None:
        os.sched_yield()
        return super()._look(now_s)

    def _has_room(self, now_s: float) -> bool:
        room = super()._has_room(now_s)
        os.sched_yield()
        return room


class Sums(list[int]):
    """The same for the sums of a window."""

    def __getitem__(self, at: Any) -> Any:
        value = super().__getitem__(at)
        os.sched_yield()
        return value


def test_one_probe_of_many_threads() -> None:
    """E2: eight threads at the same moment: one may go, and the change is told once."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(100):
            gate, turns = Barrier(8), list[Turn]()
            breaker = GivesWay(BOUNDS, turns.append)
            breaker.block(30, 0)

            def ask(breaker: Breaker = breaker, gate: Barrier = gate) -> bool:
                gate.wait()
                return breaker.admit(30) is not None

            assert sum(job.result() for job in [pool.submit(ask) for _ in range(8)]) == 1
            assert [turn.after for turn in turns] == ["open", "half_open"]


def test_threads_lose_no_count() -> None:
    """Eight threads that report at once are all counted."""
    breaker = Breaker(Bounds(failures=10**9, ratio=2))
    breaker._sums = Sums(breaker._sums)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(lambda: [call(breaker, "fail", 0) for _ in range(100)]) for _ in range(8)]
        assert all(all(job.result()) for job in jobs)
    assert breaker.counts(0) == Counts(calls=800, failures=800, slow=0)


def test_a_probe_that_goes_well_closes_it() -> None:
    """Closed with an empty window, and it opens no sooner and no longer than a new one."""
    breaker, probe = probing()
    breaker.report(probe, "ok", 31)
    assert breaker.phase(31) == "closed"
    assert breaker.counts(31) == Counts(0, 0, 0)
    for _ in range(3):
        assert call(breaker, "fail", 32)
    assert breaker.open_until_s == 62


def test_a_probe_that_fails_doubles_the_open_time() -> None:
    """30, 60, 120, 240, then 300 s and no more; as at first once it was closed."""
    breaker, now_s, times = opened(), 0.0, []
    for _ in range(6):
        times.append(breaker.open_until_s - now_s)
        now_s = breaker.open_until_s
        assert call(breaker, "fail", now_s)
    assert times == [30, 60, 120, 240, 300, 300]
    now_s = breaker.open_until_s
    assert call(breaker, "ok", now_s)
    assert [call(breaker, "fail", now_s) for _ in range(4)] == [True, True, True, False]
    assert breaker.open_until_s == now_s + 30


def test_a_probe_that_says_nothing_gives_its_place_back_at_once() -> None:
    """E2: a probe that is cancelled or gets a 4xx moves nothing, and the next one may go."""
    breaker, probe = probing()
    for _ in range(5):
        breaker.report(probe, "ignore", 30)
        assert breaker.phase(30) == "half_open"
        again = breaker.admit(30)
        assert again is not None
        probe = again
    assert breaker.admit(30) is None


def test_a_probe_that_hangs_loses_its_place() -> None:
    """E2: by its deadline another may go, whose place the first one does not give back."""
    breaker, lost = probing()
    assert breaker.admit(89.9) is None
    second = breaker.admit(90)
    assert second is not None
    breaker.report(lost, "ignore", 91)
    assert breaker.admit(91) is None
    breaker.report(second, "ok", 92)
    assert breaker.phase(92) == "closed"


@pytest.mark.parametrize(("outcome", "phase"), [("ok", "closed"), ("fail", "open")])
def test_a_probe_slower_than_its_place_still_counts(outcome: Outcome, phase: str) -> None:
    """E2: or a place whose every reply takes long would be half-open for ever; the second probe is late then."""
    breaker, first = probing()
    second = breaker.admit(100)
    assert second is not None
    breaker.report(first, outcome, 120)
    assert breaker.phase(120) == phase
    breaker.report(second, "fail" if outcome == "ok" else "ok", 121)
    assert breaker.phase(121) == phase


# ── late calls ──


@pytest.mark.parametrize("outcome", ["ok", "fail"])
@pytest.mark.parametrize("at_s", [10, 30, 45], ids=["open", "half_open", "closed"])
def test_late_calls_move_nothing(outcome: Outcome, at_s: float) -> None:
    """A permit from before a change neither closes nor opens it, nor counts in the window that follows."""
    bounds = Bounds(failures=1)
    breaker = Breaker(bounds)
    early = [permit for _ in range(20) if (permit := breaker.admit(0))]
    call(breaker, "fail", 0)
    if at_s > 30:
        assert call(breaker, "ok", 30)
    before = breaker.phase(at_s), breaker.open_until_s, breaker.counts(at_s)
    assert before[0] == {10: "open", 30: "half_open", 45: "closed"}[int(at_s)]
    for permit in early:
        breaker.report(permit, outcome, at_s)
    assert (breaker.phase(at_s), breaker.open_until_s, breaker.counts(at_s)) == before


def test_a_permit_speaks_once() -> None:
    """A second report of the same permit says nothing."""
    breaker = Breaker(BOUNDS)
    permit = breaker.admit(0)
    assert permit is not None
    for _ in range(5):
        breaker.report(permit, "fail", 0)
    assert breaker.counts(0) == Counts(1, 1, 0)


# ── blocks ──


def test_a_block_opens_it_until_the_later_instant() -> None:
    """E3: max(existing, Retry-After), in either order and over an open time; what is past changes nothing; no failure counted."""
    breaker = Breaker(BOUNDS)
    breaker.block(0, 5)
    breaker.block(5, 5)
    breaker.block(float("nan"), 5)
    assert breaker.phase(5) == "closed"
    for until_s, right in ((20, 20), (15, 20), (40, 40), (8, 40)):
        breaker.block(until_s, 7, "busy")
        assert (breaker.phase(7), breaker.open_until_s, breaker.last_error) == ("open", right, "busy")
    assert breaker.counts(7) == Counts(0, 0, 0)
    assert breaker.phase(40) == "half_open"

    breaker = opened()
    breaker.block(10, 1)
    assert breaker.open_until_s == 30
    breaker.block(1000, 1)
    assert breaker.open_until_s == 1000


def test_a_block_ends_a_probe() -> None:
    """A probe under way when the place blocks is late, and the next open time is not made longer by the block."""
    breaker, probe = probing()
    breaker.block(50, 31)
    breaker.report(probe, "ok", 32)
    assert (breaker.phase(32), breaker.open_until_s) == ("open", 50)
    assert call(breaker, "fail", 50)
    assert breaker.open_until_s == 110  # one probe has failed


# ── what is told ──


def test_each_change_is_told_once() -> None:
    """E5: with the reason and how long; whoever asks first tells that an open time is over; told outside of the lock."""
    turns: list[Turn] = []
    breaker = Breaker(BOUNDS, lambda turn: turns.append(turn) if breaker.allows(0) in (True, False) else None)
    for _ in range(3):
        call(breaker, "fail", 0, reason="503")
    breaker.block(40, 1, "busy")
    for _ in range(3):
        breaker.allows(40)
    call(breaker, "fail", 40, reason="reset")
    call(breaker, "ok", 100)
    assert turns == [
        ("closed", "open", 30, "3 failures in a row: 503"),
        ("open", "half_open", 0, "the open time is over"),
        ("half_open", "open", 100, "the probe failed: reset"),
        ("open", "half_open", 0, "the open time is over"),
        ("half_open", "closed", 0, "the probe went well"),
    ]
    assert breaker.last_error == "reset"


def test_reasons_have_numbers() -> None:
    """A share that opens it is told with its calls."""
    turns: list[Turn] = []
    for outcome, slow in (("fail", False), ("ok", True)):
        breaker = Breaker(Bounds(failures=99), turns.append)
        for _ in range(10):
            call(breaker, outcome, 0, slow=slow)  # type: ignore[arg-type]
    assert [turn.reason for turn in turns] == ["10 of 10 calls failed", "10 of 10 calls were slow"]
