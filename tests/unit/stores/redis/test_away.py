"""tollkeeper.stores.redis.away: what one gateway may admit while Redis is away."""

from __future__ import annotations

import pytest

from tollkeeper.errors import StoreUnavailable
from tollkeeper.stores.redis.away import Allowance
from tollkeeper.stores.redis.legs import Covering, Held, Rules
from tollkeeper.testing.samples import AT_US, DIME, USD, a_hold, usd
from tollkeeper.values import Budget, Hold

HARD = usd(USD, when_away=2 * DIME)
TOKENS = Budget(scope="all", measure="tokens", limit=1000, when_away=150)


def call(hold: Hold, *budgets: Budget) -> tuple[Held, Covering]:
    covering = Rules(budgets).covering(hold.scopes, hold.model, hold.at_us)
    return Held(hold, covering.legs, covering.slots), covering


def admits(allowance: Allowance, hold: Hold, *budgets: Budget) -> bool:
    try:
        allowance.admit(*call(hold, *budgets), "gone")
    except StoreUnavailable:
        return False
    return True


def test_so_much_and_no_more() -> None:
    """Calls are admitted up to the amount, exactly; a refusal says which budget, and counts in none."""
    allowance = Allowance()
    assert admits(allowance, a_hold("a/1"), HARD, TOKENS)
    with pytest.raises(StoreUnavailable, match=r"\(gone\).*month budget of all 'all'.*when_away"):
        allowance.admit(*call(a_hold("b/1"), HARD, TOKENS), "gone")
    assert admits(allowance, a_hold("c/1", tokens=50), HARD, TOKENS)
    assert not admits(allowance, a_hold("d/1", 1, tokens=0), HARD, TOKENS)
    assert set(allowance.admitted) == {"a/1", "c/1"}
    assert admits(allowance, a_hold("e/1", at_us=AT_US + 31 * 86400 * 10**6), HARD), "another window"


def test_given_back() -> None:
    """What came to nothing leaves its part to others; an id that was not admitted changes nothing."""
    allowance = Allowance()
    assert admits(allowance, a_hold("a/1", 2 * DIME), HARD)
    allowance.give_back("x/1")
    assert not admits(allowance, a_hold("b/1"), HARD)
    allowance.give_back("a/1")
    allowance.give_back("a/1")
    assert admits(allowance, a_hold("b/1", 2 * DIME), HARD)
    allowance.anew()
    assert admits(allowance, a_hold("c/1", 2 * DIME), HARD)


def test_who_is_not_refused() -> None:
    """Soft budgets, those without a limit, and calls that cost nothing pass; what cannot be bounded does not."""
    allowance = Allowance()
    assert admits(allowance, a_hold("a/1", 9 * USD), usd(None), usd(0, hard=False))
    assert admits(allowance, a_hold("b/1", 0), usd(USD))
    assert not admits(allowance, a_hold("c/1", None), HARD)
    assert not admits(allowance, a_hold("d/1", tokens=None), TOKENS)
