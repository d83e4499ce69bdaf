"""tollkeeper.stores.redis_legs: what a hold takes of which balances."""

from __future__ import annotations

import msgspec

from tollkeeper.ledger import BalanceKey, Shape
from tollkeeper.stores import redis_legs
from tollkeeper.stores.redis_keys import GLOBAL, tag_of
from tollkeeper.stores.redis_legs import Held, Rules, balances_of, field_of, hold_in, legs_of, numbers_of
from tollkeeper.testing.samples import ALPHA, AT_US, DIME, SECOND_US, USD, a_hold, usd
from tollkeeper.values import Budget

ALL = Budget(scope="all", measure="requests", limit=5, window="minute")
KEY = BalanceKey(Shape("all", "requests", "minute", "UTC"), "", "", AT_US)


def test_legs() -> None:
    """A leg for each balance; of a soft and a hard budget on one balance the hard one limits and leases, in any order."""
    hard, soft = usd(USD, lease=DIME), usd(9 * USD, hard=False, lease=2)
    for budgets in ((hard, soft, ALL), (ALL, soft, hard)):
        legs = legs_of(Rules(budgets).covering(ALPHA, "m", AT_US), a_hold("a/1"))
        found = {leg.key.shape.scope: (leg.asked, leg.limit, leg.lease) for leg in legs}
        assert found == {"project": (DIME, USD, DIME), "all": (1, 5, 0)}
    (leg,) = legs_of(Rules([soft]).covering(ALPHA, "m", AT_US), a_hold("a/1"))
    assert (leg.limit, leg.lease) == (None, 0)


def test_slots() -> None:
    """Each leg is in the slot of its balance, and the hold there by a name that no other project's hold has."""
    hold = a_hold("a/1")
    held = Held(hold, legs_of(Rules([usd(USD), ALL]).covering(ALPHA, "m", AT_US), hold))
    assert {tag: [leg.key.shape.scope for leg in legs] for tag, legs in held.slots.items()} == {
        tag_of("alpha"): ["project"],
        GLOBAL: ["all"],
    }
    assert held.field(tag_of("alpha")) == "a/1"
    assert held.field(GLOBAL) == field_of("a/1", tag_of("alpha"), GLOBAL) == f"{tag_of('alpha')}/a/1"


def test_covering_is_remembered() -> None:
    """The same call finds its budgets at once, another minute its own windows; what is remembered is bounded."""
    rules = Rules([ALL])
    found = rules.covering(ALPHA, "m", AT_US)
    assert rules.covering(ALPHA, "m", AT_US + SECOND_US) is found
    ((_, key, end_us),) = rules.covering(ALPHA, "m", AT_US + 60 * SECOND_US)
    assert (key.start_us, end_us) == (AT_US + 60 * SECOND_US, AT_US + 120 * SECOND_US)
    for number in range(redis_legs.COVERING_MAX):
        rules.covering(ALPHA, f"m{number}", AT_US)
    assert len(rules._found) <= redis_legs.COVERING_MAX


def test_numbers() -> None:
    """A script's numbers go to their balances; budgets whose numbers are not known are left out."""
    covering = Rules([usd(USD), ALL]).covering(ALPHA, "m", AT_US)
    legs = legs_of(covering, a_hold("a/1"))
    numbers = numbers_of(legs[1:], [b"3", b"4"])
    assert numbers == {KEY: (3, 4)}
    ((budget, balance),) = balances_of(covering, numbers)
    assert (budget, balance.spent, balance.held) == (ALL, 3, 4)


def test_the_hold_behind_its_legs() -> None:
    """A hold is read back from what stands in Redis."""
    hold = a_hold("a\n{1", DIME)
    assert hold_in(b"key 1 key 2 #owner\n" + msgspec.json.encode(hold)) == hold
