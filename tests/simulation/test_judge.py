"""testing/judge: it finds what is wrong with an account, and nothing wrong with a right one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from tests.lines import a_call, entry, played
from tests.simulation.test_stage import a_hold

from tollkeeper.testing.judge import of_call, over_limit, price, prices
from tollkeeper.testing.simulate import Run
from tollkeeper.values import Budget, Entry, Part, Reading, Usage


def wrong(run: Run, *entries: Entry) -> str:
    """What the judge says to these entries in the place of the booked ones."""
    return "; ".join(of_call(run.stories[0], list(entries)))


def charged(found: Entry, **changes: Any) -> Entry:
    return structs.replace(found, charge=structs.replace(found.charge, **changes))


def test_its_prices_are_those_of_the_run() -> None:
    """Whole numbers here, decimals there: the same amount."""
    usage = Usage(input=3, cache_read=5, cache_write_5m=7, cache_write_1h=11, output=13)
    charge = prices().charge(Reading(parts=(Part(usage),)), provider=None, model="m", at_us=a_hold().at_us)
    assert charge.amount_nanos == price(usage) == 60_250


def test_a_good_call() -> None:
    """One entry with the amount that the provider stated; a nano more or less, none or two are wrong."""
    run = played(a_call())
    good = entry(run)
    assert good.charge.amount_nanos is not None
    assert wrong(run, good) == ""
    assert "0 entries stand" in wrong(run)
    assert "2 entries stand" in wrong(run, good, good)
    for amount in (good.charge.amount_nanos - 1, good.charge.amount_nanos + 1, 0):
        assert "the provider said" in wrong(run, charged(good, amount_nanos=amount))
    assert "the provider said" in wrong(run, charged(good, status="estimated"))
    assert "unknown" in wrong(run, charged(good, amount_nanos=None))


def test_a_correction_is_one_entry() -> None:
    """The reversed one and its next revision add up to one."""
    run = played(a_call())
    good = entry(run)
    assert wrong(run, good, structs.replace(good, sign=-1), structs.replace(good, revision=1)) == ""


def test_a_cut_call() -> None:
    """Less than what was generated is wrong, and an estimate is not exact."""
    run = played(a_call(trouble="cut_event", at=0.5))
    good = entry(run)
    assert wrong(run, good) == ""
    assert "generated" in wrong(run, charged(good, amount_nanos=1))
    assert "booked as priced" in wrong(run, charged(good, status="priced"))


def test_a_call_that_was_never_sent() -> None:
    """It has no entry."""
    run = played(a_call(trouble="refuses"))
    assert wrong(run) == ""
    assert "never saw it" in wrong(run, entry(played(a_call())))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda story: story.body.extend(b"data: more\n\n"), "did not send"),
        (lambda story: story.body.__delitem__(slice(-20, None)), "and no error"),
        (lambda story: setattr(story, "ended", False), "waits for the end"),
    ],
)
def test_a_reply(change: Any, says: str) -> None:
    """What the client got is what the provider sent, all of it."""
    run = played(a_call())
    change(run.stories[0])
    assert says in wrong(run, entry(run))


def test_a_reply_that_broke() -> None:
    """Nothing follows the gateway's error event, and no end marker stands before it."""
    run = played(a_call(trouble="cut_event", at=0.5))
    story, body = run.stories[0], bytes(run.stories[0].body)
    story.body += b"data: [DONE]\n\n"
    assert "after the gateway's error event" in wrong(run, entry(run))
    at = body.rfind(b"data: ")
    story.body[:] = body[:at] + b"data: [DONE]\n\n" + body[at:]
    assert "an end marker, and then" in wrong(run, entry(run))


def test_limits() -> None:
    """A hard budget is passed by what is spent, or by that and what is held when a hold is granted."""
    hold, budget = a_hold(), Budget(scope="project", measure="requests", window="total", limit=1)
    spent = structs.replace(entry(played(a_call())), scopes=hold.scopes)
    assert over_limit([budget], [], [hold], hold) is None
    assert over_limit([budget], [spent], [hold], hold) is not None
    assert over_limit([budget], [spent], [], None) is None
    assert over_limit([budget], [spent, spent], [], None) is not None
    assert over_limit([structs.replace(budget, hard=False)], [spent, spent], [], None) is None
