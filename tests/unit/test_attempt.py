"""attempt, flow: attempts that follow each other. Every run is judged: `played` raises on what does not hold."""

from __future__ import annotations

import pytest
from msgspec import structs
from tests.lines import GOOD, SHAPES, STAYS, TWO, a_call, a_run, played

from tollkeeper.breaker import Bounds
from tollkeeper.errors import StoreUnavailable
from tollkeeper.flow import Limits
from tollkeeper.retry import FLOOR, RetryBudget
from tollkeeper.testing.script import GROUPS, Down, Ledger, Placed

PAIRS = tuple(Placed(f"{group}{number}") for group in GROUPS for number in (1, 2))


@pytest.mark.parametrize("trouble", ["status", "status_cut", "breaks", "silent", "refuses"])
@pytest.mark.parametrize(("dialect", "stream"), SHAPES)
def test_another_provider_serves(dialect: str, stream: bool | str, trouble: str) -> None:
    """B5, D5: what fails before its first content, a whole error too, goes on elsewhere; one call, an entry for each."""
    run = played(
        a_call(dialect, stream, trouble=trouble, at=0.5, status=503, further=(GOOD,)), places=PAIRS, attempts=2
    )
    story, found = run.stories[0], run.entries(0)
    assert [tried.where[1:] for tried in story.tries] == ["1", "2"]
    assert (story.status, found[-1].outcome, [each.calls for each in found]) == (200, "ok", [1, 0][: len(found)])
    assert len(found) == int(story.headers[b"x-tollkeeper-attempts"]) == (1 if trouble == "refuses" else 2)


def test_nobody_is_asked_for_a_client_that_has_left() -> None:
    """It may leave while the failed attempt is booked: its reply is complete by then, and its end is not."""
    tries = set()
    for moment in range(1, 20):
        call = a_call(trouble="status", status=503, further=(GOOD,), leaves_s=moment / 40)
        tries.add(len(played(call, places=PAIRS, attempts=2, ledger=Ledger(latency_s=0.2)).stories[0].tries))
    assert tries == {1, 2}


def test_a_try_that_is_not_made_takes_nothing() -> None:
    """E5: its share of the retries is there for the next call when its client leaves in the pause."""
    leaves = a_call(trouble="status", status=503, leaves_s=0.1)
    run = a_run(
        leaves, a_call(number=1, start_s=0.5, trouble="status", status=503, further=(GOOD,)), places=TWO[:1], attempts=2
    )
    run.gate.draw = lambda: 1.0  # the whole pause: 0.25 s
    run.gate.retries = RetryBudget(0.2)
    for _ in range(FLOOR):
        run.gate.retries.take(0)  # one is left, by the calls' own fifth
    assert run.play() == []
    assert [len(story.tries) for story in run.stories.values()] == [1, 2]


def test_a_place_that_is_shut_in_the_pause() -> None:
    """E2, E3: it is not asked, though it was open when it was chosen; another that is back meanwhile is."""
    limited = structs.replace(GOOD, trouble="status", status=429, retry_after_s=1)
    run = a_run(
        a_call(number=0, trouble="status", status=503, further=(limited,)),  # shuts o2 until 1.1 s
        a_call(number=1, start_s=0.9, trouble="breaks", further=(GOOD,)),
        structs.replace(a_call(number=2, start_s=1), provided=(limited,)),  # shuts o1
        places=TWO, attempts=3,
    )  # fmt: skip
    run.gate.draw = lambda: 1.0  # the whole pause: 0.25 s
    assert run.play() == []
    assert [tried.where for tried in run.stories[1].tries] == ["o1", "o2"]


def test_a_hold_that_is_not_let_go_is_the_last() -> None:
    """B5: it may be booked when its process dies, and counts the call then; another attempt would count it again."""
    run = a_run(a_call(trouble="refuses", further=(GOOD,)), places=TWO, attempts=2, death_s=5)

    async def void(hold_id: str) -> None:
        raise StoreUnavailable("the disk does not answer")

    run.store.void = void  # type: ignore[method-assign]
    assert run.play() == []
    assert (run.stories[0].status, [(each.id, each.outcome) for each in run.entries(0)]) == (
        502,
        [("call-0/1", "expired")],
    )


@pytest.mark.parametrize("refuses", [True, False])
def test_one_provider_is_down_for_a_minute(refuses: bool) -> None:
    """E1: of 20 calls at most 4 attempts reach it, by the defaults; each call takes at most 1.2 times the fall-back's own time."""
    calls = [a_call(number=number, start_s=3 * number, think_s=1) for number in range(20)]
    down = Down(provider="o1", begins_s=0, ends_s=60, refuses=refuses)
    defaults = Limits()
    run = played(*calls, places=TWO, downs=(down,), attempts=defaults.attempts, when_all_open=defaults.when_all_open)
    tried = [each.where for story in run.stories.values() for each in story.tries]
    assert (tried.count("o1"), tried.count("o2")) == (4, 20)
    for number, story in run.stories.items():
        last, own = story.tries[-1], run.entries(number)[-1].latency_ms
        assert own is not None
        assert last.asked_s - story.planned.start_s <= 0.2 * own / 1000, "what is lost before it"
        assert (story.status, last.where) == (200, "o2")


@pytest.mark.parametrize("slow_s", [0, 0.7])
def test_time_that_a_slow_client_took(slow_s: float) -> None:
    """E3: a reply that takes too long opens a breaker, unless its client took the time."""
    slow = structs.replace(STAYS, manner="slow", slow_s=slow_s)
    call = a_call(gap_s=0.1 if slow_s else 0.5, chunk=97, client=slow)
    run = played(call, total_s=8, bounds=Bounds(failures=1))
    assert (run.entries(0)[0].note, len(run.changes) > 0) == ("upstream_timeout", not slow_s)
