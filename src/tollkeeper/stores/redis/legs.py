"""What a hold takes of which balances, and the budgets that ask for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.book import Balance, Budgets, asked_of
from tollkeeper.errors import ConfigError
from tollkeeper.ledger import BalanceKey, Shape
from tollkeeper.money import MAX_NANOS
from tollkeeper.stores.redis.batch import MINUTE_US, window_at
from tollkeeper.stores.redis.keys import GLOBAL, balance_tag, tag_of
from tollkeeper.values import Budget, Hold, Scopes

_decode: Final = msgspec.json.Decoder(Hold).decode

#: Calls whose budgets are remembered.
COVERING_MAX: Final = 10_000

Numbers = dict[BalanceKey, tuple[int, int]]
"""(spent, held) of balances."""


class Leg(NamedTuple):
    """A balance of which a hold takes a part."""

    key: BalanceKey
    end_us: int
    limit: int | None  #: None: it never refuses
    lease: int = 0  #: how much of the budget a gateway may lease at a time

    def asked(self, hold: Hold) -> int | None:
        """How much a hold takes; None: it is not known."""
        return asked_of(self.key.shape.measure, hold)


class Slot:
    """The balances of one slot of which a hold takes a part."""

    __slots__ = ("legs", "script")

    def __init__(self) -> None:
        self.legs: list[Leg] = []
        self.script: Any = None  #: what is the same whenever they are asked for, once they were (`Holding.ask`)


Slots = dict[str, Slot]
"""By their tags."""


def slots_of(legs: Iterable[Leg]) -> Slots:
    """The one without a project is asked first: a part of a hold elsewhere says that Redis was asked for the one there."""
    legs, found = tuple(legs), Slots()
    for leg in sorted(legs, key=lambda leg: balance_tag(leg.key) != GLOBAL):
        found.setdefault(balance_tag(leg.key), Slot()).legs.append(leg)
    return found


def shapes_in(slots: Slots) -> dict[str, list[Shape]]:
    """Those of each slot's balances."""
    return {tag: [leg.key.shape for leg in slot.legs] for tag, slot in slots.items()}


class Covering(NamedTuple):
    """Budgets that cover a call, each with its balance and the end of its window; and what a hold of it takes parts of."""

    budgets: tuple[tuple[Budget, BalanceKey, int], ...]
    legs: tuple[Leg, ...]
    slots: Slots


class Held:
    """A hold of this process that stands, with what Redis holds for it. Without `legs` only the journal knows of it: no budget
    covers it, or leases pay for it.
    """

    __slots__ = ("hold", "legs", "slots")

    def __init__(self, hold: Hold, legs: tuple[Leg, ...], slots: Slots) -> None:
        self.hold, self.legs, self.slots = hold, legs, slots

    def extend(self, legs: Iterable[Leg], but: Iterable[BalanceKey]) -> bool:
        """Hold of these balances too, `but` for some; whether it did not yet. What it holds of others it keeps."""
        known = {leg.key for leg in self.legs}.union(but)
        new = tuple(leg for leg in legs if leg.key not in known)
        if new:
            self.legs += new
            self.slots = slots_of(self.legs)
        return bool(new)

    def field(self, tag: str) -> str:
        """Its name in a slot; in the one without a project it says whose it is."""
        return field_of(self.hold.id, tag_of(self.hold.scopes.project), tag)


def field_of(id: str, own: str, tag: str) -> str:
    """The name of a hold in a slot, `own` being its project's."""
    return f"{own}/{id}" if tag == GLOBAL else id


def checked(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """Budgets whose limits a script can compare exactly. Raises ConfigError for one that it cannot."""
    budgets = tuple(budgets)
    for budget in budgets:
        if budget.limit is not None and budget.limit > MAX_NANOS:
            raise ConfigError(
                f"budgets: the limit of the {budget.window} budget of {budget.scope} is above what a Redis store compares "
                f"exactly; expected at most {MAX_NANOS} (usd: 9007199.254740991)"
            )
    return budgets


class Rules:
    """Which budgets cover a call. Remembered: no window begins within a minute."""

    def __init__(self, budgets: Iterable[Budget]) -> None:
        self._budgets = Budgets(budgets)
        self._found: dict[tuple[Scopes, str, int], Covering] = {}

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self._budgets.shapes

    def covering(self, scopes: Scopes, model: str, at_us: int) -> Covering:
        """Every budget that covers such a call."""
        name = (scopes, model, at_us // MINUTE_US)
        found = self._found.get(name)
        if found is None:
            budgets = []
            for budget, shape, project, id in self._budgets.covering(scopes, model):
                start_us, end_us = window_at(shape.window, shape.timezone, at_us)
                budgets.append((budget, BalanceKey(shape, project, id, start_us), end_us))
            legs = _legs_of(budgets)
            found = Covering(tuple(budgets), legs, slots_of(legs))
            if len(self._found) >= COVERING_MAX:
                self._found.clear()
            self._found[name] = found
        return found


def _legs_of(budgets: Iterable[tuple[Budget, BalanceKey, int]]) -> tuple[Leg, ...]:
    """One for each balance; where a hard and a soft budget share it, the hard one limits."""
    legs: dict[BalanceKey, Leg] = {}
    for budget, key, end_us in budgets:
        limit = budget.limit if budget.hard else None
        if key not in legs or limit is not None:
            legs[key] = Leg(key, end_us, limit, budget.lease if budget.hard else 0)
    return tuple(legs.values())


def numbers_of(legs: Sequence[Leg], answer: Sequence[Any]) -> Numbers:
    return {leg.key: (int(answer[at * 2]), int(answer[at * 2 + 1])) for at, leg in enumerate(legs)}


def balances_of(covering: Covering, numbers: Numbers) -> list[tuple[Budget, Balance]]:
    found = []
    for budget, key, end_us in covering.budgets:
        if key in numbers:
            balance = Balance(key, end_us, numbers[key][0])
            balance.held = numbers[key][1]
            found.append((budget, balance))
    return found


def hold_in(text: bytes) -> Hold:
    """What stands behind the legs."""
    return _decode(text.partition(b"\n")[2])
