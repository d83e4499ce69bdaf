"""testing/judge_course: it finds what is wrong with the attempts of a call, and nothing wrong with right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs
from tests.lines import GOOD, TWO, a_call, played

from tollkeeper.testing.judge import of_call
from tollkeeper.testing.judge_course import of_course, serving
from tollkeeper.testing.simulate import Run
from tollkeeper.testing.stage import Story


def wrong(run: Run) -> str:
    return "; ".join(of_course(run.stories[0], {entry.id for entry in run.entries(0)}))


def a_hedged_run(**first: Any) -> Run:
    """The second of two attempts at once serves."""
    call = a_call(**({"think_s": 2} | first), further=(GOOD,))
    return played(call, places=TWO, attempts=2, hedge_s=0.3)


def test_a_good_one() -> None:
    """Nothing is wrong with one attempt, nor with two that were made as they should."""
    assert wrong(played(a_call())) == ""
    assert wrong(played(a_call(trouble="breaks", further=(GOOD,)), places=TWO, attempts=2)) == ""
    run = a_hedged_run()
    assert wrong(run) == ""
    assert serving(run.stories[0]) == run.stories[0].tries[1:]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda story: setattr(story, "hedge_s", None), "was made beside another one"),
        (lambda story: setattr(story, "hedge_s", 1), "beside another one 0.3"),
        (lambda story: setattr(story.tries[1], "after_answer", True), "beside one that had answered"),
        (lambda story: setattr(story.tries[1], "after_left", True), "for a client that had left"),
        (lambda story: setattr(story.tries[1], "after_start", True), "after the reply had begun"),
        (lambda story: setattr(story.tries[1], "route", story.tries[0].route), "as the one beside it"),
        (lambda story: setattr(story.tries[1], "lost", True), "was cut for another one, and none had content"),
        (lambda story: setattr(story.tries[1], "others", 2), "as the third at a time"),
        (lambda story: setattr(story, "started_s", -1), "two attempts are still read"),
        (lambda story: story.headers.update({b"x-tollkeeper-attempts": b"1"}), "the client is told of 1"),
    ],
)
def test_a_hedge(change: Callable[[Story], None], says: str) -> None:
    """Off, too soon, too late, at the same place, for nobody, not cut, one too many, not counted."""
    run = a_hedged_run()
    change(run.stories[0])
    assert says in wrong(run)


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (GOOD, "after a good one"),
        (structs.replace(GOOD, trouble="status", status=400), "after the client's own 400"),
    ],
)
def test_a_further_attempt(first: Any, says: str) -> None:
    """D5: none follows what went well, or what the client is the reason for."""
    run = played(a_call(trouble="status", status=503, further=(GOOD,)), places=TWO, attempts=2)
    run.stories[0].tries[0].provided = first
    assert says in wrong(run)
    run.stories[0].tries[0].opened_s = None
    assert "after one that was refused here" in wrong(run)
    run.stories[0].limits = structs.replace(run.stories[0].limits, attempts=1)
    assert "2 attempts, and 1 are allowed" in wrong(run)


def test_the_losers_bytes() -> None:
    """The client gets one attempt's reply alone, and who was cut is booked."""
    run = a_hedged_run()
    story, entries = run.stories[0], run.entries(0)
    assert "; ".join(of_call(story, entries)) == ""
    assert "0 entries stand" in "; ".join(of_call(story, [each for each in entries if each.note is None]))
    other = played(a_call()).stories[0]
    story.body[:] = other.body[:200] + story.body
    assert "did not send" in "; ".join(of_call(story, entries))


def test_a_call_is_counted_by_one_that_was_not_sent() -> None:
    """B5: where its hedge was out by then; with another amount it is wrong."""
    run = a_hedged_run(trouble="refuses", connect_s=0.305)
    story, entries = run.stories[0], run.entries(0)
    assert [entry.calls for entry in sorted(entries, key=lambda entry: entry.id)] == [1, 0]
    charged = [structs.replace(each, charge=structs.replace(each.charge, amount_nanos=1)) for each in entries]
    assert "never saw it" in "; ".join(of_call(story, charged))
    assert "count as 0 calls" in "; ".join(of_call(story, [each for each in entries if not each.calls]))
