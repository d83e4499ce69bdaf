"""What a hold takes of which balances, and the budgets that ask for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.book import Balance, asked_of
from tollkeeper.ledger import BalanceKey
from tollkeeper.stores.redis_keys import GLOBAL, balance_tag, tag_of
from tollkeeper.values import Budget, Hold

_decode: Final = msgspec.json.Decoder(Hold).decode

Numbers = dict[BalanceKey, tuple[int, int]]
"""(spent, held) of balances."""
Covering = list[tuple[Budget, BalanceKey, int]]
"""Budgets that cover a call, each with its balance and the end of its window."""


class Leg(NamedTuple):
    """What a hold takes of one balance."""

    key: BalanceKey
    end_us: int
    asked: int | None
    limit: int | None  #: None: it never refuses


class Held(NamedTuple):
    """A hold of this process that stands. Without `legs` no budget covers it, and only the journal knows of it."""

    hold: Hold
    legs: tuple[Leg, ...]

    @property
    def slots(self) -> dict[str, list[Leg]]:
        """The slots that have a part of it, and which."""
        found: dict[str, list[Leg]] = {}
        for leg in self.legs:
            found.setdefault(balance_tag(leg.key), []).append(leg)
        return found

    def field(self, tag: str) -> str:
        """Its name in a slot; in the one without a project it says whose it is."""
        return f"{tag_of(self.hold.scopes.project)}/{self.hold.id}" if tag == GLOBAL else self.hold.id


def legs_of(covering: Covering, hold: Hold) -> tuple[Leg, ...]:
    """One for each balance; where a hard and a soft budget share it, the hard one limits."""
    legs: dict[BalanceKey, Leg] = {}
    for budget, key, end_us in covering:
        limit = budget.limit if budget.hard else None
        if key not in legs or limit is not None:
            legs[key] = Leg(key, end_us, asked_of(budget, hold), limit)
    return tuple(legs.values())


def numbers_of(legs: Sequence[Leg], answer: Sequence[Any]) -> Numbers:
    return {leg.key: (int(answer[at * 2]), int(answer[at * 2 + 1])) for at, leg in enumerate(legs)}


def balances_of(covering: Covering, numbers: Numbers) -> list[tuple[Budget, Balance]]:
    found = []
    for budget, key, end_us in covering:
        if key in numbers:
            balance = Balance(key, end_us, numbers[key][0])
            balance.held = numbers[key][1]
            found.append((budget, balance))
    return found


def hold_in(text: bytes) -> Hold:
    """What stands behind the legs."""
    return _decode(text.partition(b"\n")[2])
