"""tollkeeper.retry: whether a call is tried again, where, and after which pause."""

from __future__ import annotations

import pytest

from tollkeeper.failures import Verdict
from tollkeeper.retry import FLOOR, PAUSE_MAX_S, PAUSE_S, WINDOW_S, RetryBudget, Tries
from tollkeeper.values import Credential, Provider, Route


def a_route(provider: str, key: str = "k", model: str = "m") -> Route:
    place = Provider(name=provider, base_url="https://x", dialects=frozenset())
    return Route(place, model, Credential(key, f"secret of {key}"))


A1, A2, B, C = a_route("a", "1"), a_route("a", "2"), a_route("b"), a_route("c")
FAILED = Verdict(True, True, "model", "fail", None, "503")
SLOW = Verdict(False, True, "model", "fail", None, "no answer")
NO_KEY = Verdict(False, True, "key", "block", 600, "401")
AWAY = Verdict(True, True, "provider", "fail", None, "unreachable")
CALLERS = Verdict(False, False, None, "ignore", None, "400")


def tries(*routes: Route, most: int = 3, shut: tuple[Route, ...] = ()) -> Tries:
    return Tries(routes, most, lambda route: route not in shut)


@pytest.mark.parametrize(
    ("verdict", "shut", "following"),
    [
        (FAILED, (), A2),
        (SLOW, (), A2),
        (NO_KEY, (), A2),
        (AWAY, (), B),
        (CALLERS, (), None),
        (FAILED, (A2, B), A1),
        (AWAY, (A2, B), A1),
        (SLOW, (A2, B), None),
        (NO_KEY, (A2, B), None),
        (FAILED, (A1, A2, B), None),
    ],
    ids=str,
)
def test_where_next(verdict: Verdict, shut: tuple[Route, ...], following: Route | None) -> None:
    """E4, D5: another route that does not share what failed, else the same one after a pause, if that is of use."""
    some = tries(A1, A2, B, shut=shut)
    assert (some.first() or some.take(A1)) == A1
    found = some.after(A1, verdict, lambda: 0.5)
    assert (None if found is None else found.route) == following


def test_a_key_is_of_its_provider() -> None:
    """E4: two providers may call their keys alike: one that is refused says nothing of the other."""
    here, there = a_route("a", "KEY"), a_route("b", "KEY")
    some = tries(here, there)
    assert some.first() == here
    found = some.after(here, NO_KEY, lambda: 0.5)
    assert found is not None
    assert found.route == there


def test_at_most() -> None:
    """E5: attempts are bounded in all, wherever they go."""
    some = tries(A1, B, C, most=2)
    assert (some.first(), some.more) == (A1, True)
    assert some.after(A1, FAILED, lambda: 0) == (B, 0)
    assert not some.more
    assert some.after(B, FAILED, lambda: 0) is None


def test_pauses() -> None:
    """Full jitter: up to a bound that doubles, and no pause before another route."""
    some = tries(A1, most=20)
    assert some.first() == A1
    pauses = [found.pause_s for _ in range(6) if (found := some.after(A1, FAILED, lambda: 1)) is not None]
    assert pauses == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, 8 * PAUSE_S, PAUSE_MAX_S, PAUSE_MAX_S]
    found = some.after(A1, FAILED, lambda: 0)
    assert found is not None
    assert found.pause_s == 0


def test_none_is_open() -> None:
    """Where all are left out nothing is first; one may be taken all the same, once."""
    some = tries(A1, B, shut=(A1, B))
    assert some.first() is None
    assert some.take(B) == B
    assert some.after(B, FAILED, lambda: 0) is None


def test_the_budget_of_tries() -> None:
    """E5: a floor, and a share of the calls of the last seconds; what is older does not count."""
    budget = RetryBudget(0.2)
    assert [budget.take(0.5) for _ in range(FLOOR + 1)] == [True] * FLOOR + [False]
    for _ in range(50):
        budget.called(1.5)
    assert [budget.take(1.9) for _ in range(11)] == [True] * 10 + [False]
    assert budget.take(0.5 + WINDOW_S)  # those of the first second are over
    later_s = 1e6
    assert [budget.take(later_s) for _ in range(FLOOR + 1)] == [True] * FLOOR + [False]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_storm(ratio: float) -> None:
    """E5: however many calls fail, further tries stay within the share of them and the floor, in any window."""
    budget, taken = RetryBudget(ratio), list[int]()
    for number in range(4000):
        second = number // 100
        budget.called(second + 0.1)
        taken += [second] * budget.take(second + 0.2)
    for first in range(40):
        within = [second for second in taken if first <= second < first + WINDOW_S]
        assert len(within) <= (ratio * 100 * WINDOW_S + FLOOR if ratio else 0)


def test_beside() -> None:
    """A second try at once goes to the next route that is open, never to the same one, and within what is left."""
    some = tries(A1, A2, B, shut=(A2,))
    assert some.first() == A1
    assert some.beside(A1) == some.beside(A1) == B
    assert tries(A1, A1).beside(A1) is None
    few = tries(A1, B, most=1)
    assert few.first() == A1
    assert few.beside(A1) is None


def test_what_was_not_tried_is_put_back() -> None:
    """It is the next one again, and counts as none."""
    some = tries(A1, B, C, most=2)
    assert some.first() == A1
    some.put_back(some.take(B))
    found = some.after(A1, FAILED, lambda: 0.5)
    assert found is not None
    assert found.route == B
    assert not some.more


def test_a_share_that_is_put_back() -> None:
    """E5: what was not made leaves its share to others; never more than there was."""
    budget = RetryBudget(0.2)
    for _ in range(FLOOR):
        assert budget.take(0)
    assert not budget.take(0)
    budget.put_back(0)
    assert budget.take(0)
    assert not budget.take(0)
    budget.put_back(2 * WINDOW_S)  # its second is forgotten already
    assert [budget.take(2 * WINDOW_S) for _ in range(FLOOR + 1)] == [True] * FLOOR + [False]
