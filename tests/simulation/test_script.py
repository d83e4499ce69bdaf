"""testing/script: what is drawn from a seed."""

from __future__ import annotations

from collections import Counter

from tollkeeper.testing.script import TROUBLES, UNPRICED, Script, draw

SCRIPTS = [draw(seed) for seed in range(2000)]
CALLS = [call for script in SCRIPTS for call in script.calls]
PROVIDED = [provided for call in CALLS for provided in call.provided]


def test_a_seed_is_one_script() -> None:
    """Everything is drawn from the seed alone."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_the_seeds_of_a_test_run_have_all_of_it() -> None:
    """Two thousand seeds have every trouble of a provider, manner of a client and trouble of the ledger, often."""
    assert min(Counter(provided.trouble for provided in PROVIDED).values()) > 50
    assert {provided.trouble for provided in PROVIDED} == TROUBLES.keys()
    assert min(Counter(call.client.manner for call in CALLS).values()) > 300
    assert min(Counter(call.dialect for call in CALLS).values()) > 300
    assert {provided.lie for provided in PROVIDED} == {None, "zero", "triple", "absurd", "negative"}
    often: dict[str, int] = Counter()
    for script in SCRIPTS:
        often.update(_kinds(script))
    assert min(often.values()) > 40, often
    assert len(often) == 22
    assert {script.policy for script in SCRIPTS} == {"order", "weighted", "cheapest", "fastest"}
    assert {script.limits.attempts for script in SCRIPTS} == {1, 2, 3, 4}
    assert {call.target.rpartition(":")[2] for call in CALLS} == {
        "", "generateContent", "streamGenerateContent", "streamGenerateContent?alt=sse",
    }  # fmt: skip


def _kinds(script: Script) -> set[str]:
    kinds = {
        "dies": script.death_s is not None,
        "stops": script.stop_s is not None,
        "ledger: outage": bool(script.ledger.outages_s),
        "ledger: unheard": script.ledger.unheard > 0,
        "ledger: refused": script.ledger.refused > 0,
        "ledger: good": script.ledger.latency_s == 0,
        "cancelled": any(call.cancels_s for call in script.calls),
        "cancelled before its first step": any(call.cancels_s[:1] == (-1.0,) for call in script.calls),
        "cancelled while booking": any(call.booking_cancelled_s is not None for call in script.calls),
        "unpriced": any(call.model == UNPRICED for call in script.calls),
        "budgets": bool(script.budgets),
        "no budgets": not script.budgets,
        "many calls": len(script.calls) > 3,
        "a crowd": len(script.calls) > 7 and len({call.dialect for call in script.calls}) == 1,
        "a dialect with one provider": min(Counter(place.name[0] for place in script.places).values()) == 1,
        "many providers": len(script.places) > 6,
        "two credentials": any(place.credentials == 2 for place in script.places),
        "two prices": any(place.dear for place in script.places),
        "hedged": script.hedge_s is not None,
        "no connections": any(down.refuses for down in script.downs),
        "503 for all": any(not down.refuses for down in script.downs),
        "refused when all are open": script.limits.when_all_open == "refuse",
    }
    return {name for name, there in kinds.items() if there}


def test_limits_are_those_of_a_good_configuration() -> None:
    """A hold outlives its call, as the settings demand."""
    assert all(script.limits.hold_ttl_s > script.limits.total_s for script in SCRIPTS)
