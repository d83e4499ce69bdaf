"""tollkeeper.stores.redis.legs: what a hold takes of which balances."""

from __future__ import annotations

import msgspec

from tollkeeper.stores.redis.keys import GLOBAL, tag_of
from tollkeeper.stores.redis.legs import COVERING_MAX, Held, Rules, balances_of, field_of, hold_in, numbers_of
from tollkeeper.testing.samples import ALPHA, AT_US, DAY_US, DIME, USD, a_hold, usd
from tollkeeper.values import Budget

BUDGETS = (
    usd(USD),
    usd(DIME, hard=False),
    Budget(scope="all", limit=None),
    usd(5, measure="requests", window="minute"),
)


def test_one_leg_a_balance() -> None:
    """A hard and a soft budget of one balance are one leg with the hard limit; no limit never refuses; requests count one."""
    hold = a_hold("a/1")
    covering = Rules(BUDGETS).covering(ALPHA, "m", AT_US)
    assert {(leg.key.shape.scope, leg.key.shape.measure): (leg.asked(hold), leg.limit) for leg in covering.legs} == {
        ("project", "usd"): (DIME, USD), ("all", "usd"): (DIME, None), ("project", "requests"): (1, 5),
    }  # fmt: skip
    held = Held(hold, covering.legs, covering.slots)
    assert {tag: len(slot.legs) for tag, slot in held.slots.items()} == {tag_of("alpha"): 2, GLOBAL: 1}
    assert (held.field(tag_of("alpha")), held.field(GLOBAL)) == ("a/1", f"{tag_of('alpha')}/a/1")


def test_windows_are_of_the_call() -> None:
    """C4: the remembered budgets of a minute are not those of another one, nor of another day."""
    rules = Rules([usd(USD, window="day")])
    days = {rules.covering(ALPHA, "m", at_us).budgets[0][1].start_us for at_us in (AT_US, AT_US + 1, AT_US + DAY_US)}
    assert len(days) == 2


def test_numbers_become_standings() -> None:
    """What a script says of each balance reaches every budget of that balance, and no other."""
    covering = Rules(BUDGETS).covering(ALPHA, "m", AT_US)
    legs = [leg for leg in covering.legs if leg.key.shape.measure == "usd"][:1]
    found = balances_of(covering, numbers_of(legs, [b"7", b"8"]))
    assert [(budget.hard, balance.spent, balance.held) for budget, balance in found] == [(True, 7, 8), (False, 7, 8)]


def test_a_hold_is_read_back() -> None:
    """The hold stands behind the first newline, whatever is before it; names have no separator that an id could make."""
    hold = a_hold("a\nb/1")
    assert hold_in(b"key 5 #owner\n" + msgspec.json.encode(hold)) == hold
    assert field_of("x", "own", "own") == "x"


def test_the_hard_budget_leases() -> None:
    """Of a hard and a soft budget on one balance the hard one says how much may be leased, in any order; a soft one never."""
    hard, soft = usd(USD, lease=DIME), usd(9 * USD, hard=False, lease=2)
    for budgets in ((hard, soft), (soft, hard), (soft,)):
        (leg,) = Rules(budgets).covering(ALPHA, "m", AT_US).legs
        assert leg.lease == (DIME if hard in budgets else 0)


def test_what_is_remembered_is_bounded() -> None:
    """I4: the same call finds its budgets at once; of many calls not all are remembered."""
    rules = Rules(BUDGETS)
    assert rules.covering(ALPHA, "m", AT_US) is rules.covering(ALPHA, "m", AT_US + 1)
    for number in range(COVERING_MAX):
        rules.covering(ALPHA, f"m{number}", AT_US)
    assert len(rules._found) <= COVERING_MAX
