"""testing/judge_places: it finds what is wrong with breakers, and nothing wrong with right ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs
from tests.lines import GOOD, TWO, a_call, played

from tollkeeper.breaker import Bounds
from tollkeeper.testing.judge_places import of_run
from tollkeeper.testing.script import Down
from tollkeeper.testing.simulate import Run

DOWN = Down(provider="o1", begins_s=0, ends_s=60, refuses=True)


def wrong(run: Run) -> str:
    return "; ".join(of_run(run.script, list(run.stories.values()), run.changes, run.places))


def a_down_run(**down: bool) -> Run:
    """The first of two providers fails for a while; a call comes each second."""
    calls = (a_call(number=number, start_s=number) for number in range(20))
    bounds = Bounds(failures=3, open_s=5, open_max_s=5)
    return played(*calls, places=TWO, downs=(structs.replace(DOWN, **down),), bounds=bounds, attempts=2)


@pytest.mark.parametrize("refuses", [True, False])
def test_a_provider_that_is_down(refuses: bool) -> None:
    """E1: three times until that is known, then once in an open time; each call is served elsewhere."""
    run = a_down_run(refuses=refuses)
    asked = [story for story in run.stories.values() for tried in story.tries if tried.down]
    assert len(asked) == 3 + 2  # within 20 s: at 8 and 14
    assert {story.status for story in run.stories.values()} == {200}
    assert wrong(run) == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run.changes.clear(), "is open to calls"),
        (lambda run: run.changes.__delitem__(slice(1, None)), "asked 2 times with 0 probes"),
    ],
)
def test_a_breaker_that_does_not_open(change: Callable[[Run], None], says: str) -> None:
    """E1: a provider that is known to be down gets probes alone."""
    run = a_down_run()
    change(run)
    assert says in wrong(run)


def test_a_breaker_that_opens_for_nothing() -> None:
    """E3: no opening without faults of the provider; a client's 4xx is none."""
    run = a_down_run()
    for story in run.stories.values():
        story.tries[0].provided, story.tries[0].down = GOOD, False
    assert "after 0 faults" in wrong(run)


def test_a_pause_that_is_asked_for() -> None:
    """E3: nobody goes there while it lasts, unless there is no other place."""
    limited = a_call(trouble="status", status=429, retry_after_s=5, further=(GOOD,))
    run = played(limited, a_call(number=1, start_s=2), a_call(number=2, start_s=6), places=TWO, attempts=2)
    went = [[tried.where for tried in story.tries] for story in run.stories.values()]
    assert went == [["o1", "o2"], ["o2"], ["o1"]]
    assert wrong(run) == ""
    late = run.stories[2].tries[0]
    late.asked_s -= 2
    assert "goes to o1" in wrong(run)
    late.forced = True
    assert wrong(run) == ""


def test_too_many_further_attempts() -> None:
    """E5: a fifth of the calls and ten, in as many seconds."""
    failing = (structs.replace(GOOD, trouble="breaks"),)
    calls = (a_call(number=number, start_s=number / 10, trouble="breaks", further=failing) for number in range(20))
    run = played(*calls, places=TWO, attempts=2, bounds=Bounds(failures=1000, minimum=1000))
    further = [story for story in run.stories.values() if len(story.tries) > 1]
    assert 10 <= len(further) <= 14
    assert wrong(run) == ""
    for story in run.stories.values():
        story.tries[-1].number = 2
    assert "more than 14 further attempts" in wrong(run)
