"""A lease alone: its table of states, and that a budget holds whatever gateways and Redis do in whatever order."""

from __future__ import annotations

from collections import deque
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper.stores.redis.lease import DIRECT_MS, IDLE_MS, LEASE_LIFE, SCARCE_IN, Event, Lease, State, Wish

STATES: tuple[State, ...] = ("none", "leased", "direct")
EVENTS: tuple[Event, ...] = ("granted", "scarce", "idle", "again", "recalled", "doubted")
LIMIT = 200


class Balance:
    """What Redis has of one balance: `lua/lease.lua`, `reserve.lua` and `apply.lua` in a few lines."""

    def __init__(self) -> None:
        self.spent = self.held = 0
        self.leases: dict[int, int] = {}

    def lease(self, name: int, wish: Wish, gateways: int) -> tuple[int, bool]:
        has = self.leases.get(name, 0)
        left = LIMIT - self.spent - self.held
        scarce = wish.limit is not None and left < LIMIT // SCARCE_IN
        lease = wish.most if wish.limit is None else wish.least
        if wish.limit is not None and not scarce:
            lease = max(wish.least, min(wish.most, has + left // (2 * gateways)))
        self.held += lease - has
        self.leases[name] = lease
        return lease, scarce

    def apply(self, name: int, spent: int, part: int) -> None:
        part = min(part, self.leases.get(name, 0))
        self.spent += spent
        self.held -= part
        self.leases[name] = self.leases.get(name, 0) - part


class Gateway:
    """One gateway on it, with its journal."""

    def __init__(self, name: int, balance: Balance) -> None:
        self.name, self.balance = name, balance
        self.lease = Lease(40, LIMIT)
        self.calls: list[int] = []
        self.rows: deque[tuple[int, int]] = deque()  # spent, part: safe in the journal, not applied

    @property
    def truth(self) -> int:
        return sum(self.calls) + sum(spent for spent, _ in self.rows)

    def tend(self, now_ms: int, gateways: int) -> None:
        for _ in range(2):
            wish = self.lease.wish(now_ms, look=True)
            if wish is not None:
                self.lease.answered(wish, *self.balance.lease(self.name, wish, gateways), now_ms)

    def apply(self) -> None:
        if self.rows:
            spent, part = self.rows.popleft()
            self.balance.apply(self.name, spent, part)
            self.lease.applied(part)

    def recover(self) -> None:
        """Redis has forgotten, or went back: rows are applied (here: none is lost), then the lease is said again."""
        while self.rows:
            self.apply()
        must = self.lease.doubted()
        self.balance.lease(self.name, Wish(must, must), 1)

    def die(self) -> None:
        """Whoever has the journal next books the calls at their estimates, applies all of it, and ends the lease."""
        self.rows.extend((asked, 0) for asked in self.calls)
        self.calls.clear()
        while self.rows:
            self.balance.apply(self.name, self.rows.popleft()[0], 0)
        self.balance.lease(self.name, Wish(0, 0), 1)
        self.lease = Lease(40, LIMIT)


def test_the_table() -> None:
    """Each event in each state leads where the table says, and changes nothing elsewhere; only a lease is taken of."""
    for state, event in product(STATES, EVENTS):
        lease = Lease(40, LIMIT)
        lease.state, lease.granted = state, 40
        lease.tell(event)
        assert lease.state == LEASE_LIFE.get((state, event), state)
        assert lease.take(1, 0) == (lease.state == "leased")


def test_wishes() -> None:
    """It asks for its size when wanted, for more at half of it; idle or where little is left, all that is free goes back."""
    lease = Lease(40, LIMIT)
    assert lease.wish(0, look=True) is None
    assert not lease.take(5, 0)
    assert lease.wish(0, look=False) == Wish(0, 40, LIMIT)
    lease.answered(Wish(0, 40, LIMIT), 40, False, 0)
    assert lease.take(15, 0)
    assert lease.wish(0, look=False) is None
    assert lease.wish(0, look=True) == Wish(40, 40, LIMIT), "only to hear how much is left"
    assert lease.take(10, 0)
    assert lease.wish(0, look=False) == Wish(40, 65, LIMIT)
    lease.answered(Wish(40, 65, LIMIT), 40, True, 0)
    assert not lease.take(1, 0)
    assert lease.wish(0, look=False) == Wish(25, 25)
    lease.answered(Wish(25, 25), 25, False, 0)
    assert lease.wish(DIRECT_MS - 1, look=True) is None
    assert not lease.take(1, DIRECT_MS)
    assert lease.wish(DIRECT_MS, look=True) is None, "nobody has wanted it since"
    assert not lease.take(1, DIRECT_MS)
    assert lease.wish(DIRECT_MS, look=True) == Wish(25, 65, LIMIT)
    lease.answered(Wish(25, 65, LIMIT), 65, False, DIRECT_MS)
    lease.void(25)
    lease.wanted = True
    assert lease.wish(DIRECT_MS + IDLE_MS, look=True) == Wish(0, 0)
    lease.answered(Wish(0, 0), 0, False, DIRECT_MS + IDLE_MS)
    assert lease.over


def test_another_limit() -> None:
    """C5: what was granted under another limit is no call's, also where the answer comes after the change; it goes back."""
    lease = Lease(40, LIMIT)
    lease.state, lease.granted = "leased", 40
    assert lease.take(30, 0)
    wish = lease.wish(0, look=False)
    assert wish == Wish(40, 70, LIMIT)
    lease.change(40, LIMIT)
    assert lease.take(1, 0), "the same budget again changes nothing"
    lease.change(20, LIMIT // 2)
    assert not lease.take(1, 0)
    lease.answered(wish, 70, False, 0)
    assert not lease.take(1, 0)
    assert lease.wish(0, look=False) == Wish(31, 31)
    assert lease.wish(0, look=False) == Wish(31, 51, LIMIT // 2)


@pytest.mark.parametrize(("spent", "part"), [(0, 0), (3, 3), (5, 5), (9, 5)])
def test_a_settlement(spent: int, part: int) -> None:
    """What was spent stays in the lease until it is applied; what was held and not spent is free at once."""
    lease = Lease(40, LIMIT)
    lease.state, lease.granted = "leased", 40
    lease.take(5, 0)
    assert lease.settle(5, spent) == part
    assert (lease.free, lease.granted) == (40 - part, 40)
    lease.applied(part)
    assert (lease.free, lease.granted) == (40 - part, 40 - part)


STEPS = ["call"] * 6 + ["settle", "tend"] * 3 + ["void", "apply"] * 2 + ["time", "recover", "die", "recall"]
steps = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(STEPS), st.integers(0, 30)), min_size=20, max_size=100)


@settings(max_examples=300)
@given(steps)
def test_a_budget_holds(steps: list[tuple[int, str, int]]) -> None:
    """C1, C2: after every step Redis has at least what is spent and held in truth, and the truth is never above the limit."""
    balance = Balance()
    gateways = [Gateway(name, balance) for name in range(3)]
    now_ms = 0
    for gateway in gateways:  # each begins with a lease: what follows is about it
        gateway.lease.take(1, now_ms)
        gateway.tend(now_ms, 3)
    for which, what, amount in steps:
        gateway = gateways[which]
        match what:
            case "call":
                if gateway.lease.take(amount, now_ms):
                    gateway.calls.append(amount)
            case "settle" if gateway.calls:
                asked = gateway.calls.pop()
                spent = min(asked, amount)
                gateway.rows.append((spent, gateway.lease.settle(asked, spent)))
            case "void" if gateway.calls:
                gateway.lease.void(gateway.calls.pop())
            case "apply":
                gateway.apply()
            case "tend":
                gateway.tend(now_ms, 3)
            case "time":
                now_ms += amount * 100
            case "recover":
                gateway.recover()
            case "die":
                gateway.die()
            case "recall":
                gateway.lease.tell("recalled")
        truth = balance.spent + sum(each.truth for each in gateways)
        assert truth <= balance.spent + balance.held <= LIMIT
        assert balance.held == sum(balance.leases.values())
        for each in gateways:
            assert each.lease.granted == balance.leases.get(each.name, 0) or each.lease.state != "leased"
            assert each.lease.granted <= balance.leases.get(each.name, 0)
            assert each.lease.granted >= each.lease.live + each.lease.owed
    for gateway in gateways:  # nothing is left with anyone once it is quiet
        gateway.calls, gone = [], gateway.calls
        for asked in gone:
            gateway.lease.void(asked)
        while gateway.rows:
            gateway.apply()
        for _ in range(3):  # what was wanted, what is idle, what is over
            now_ms += IDLE_MS
            gateway.tend(now_ms, 3)
    assert balance.held == 0
