"""What one gateway may admit of hard budgets while Redis is away (`when_away`): so much of each balance, and no more. Pure."""

from __future__ import annotations

from tollkeeper.book import asked_of
from tollkeeper.errors import StoreUnavailable
from tollkeeper.ledger import BalanceKey
from tollkeeper.stores.redis.legs import Covering, Held, Leg
from tollkeeper.values import Hold


class Allowance:
    """From one time that Redis is away to the next."""

    def __init__(self) -> None:
        self._used: dict[BalanceKey, int] = {}
        self.admitted: dict[str, tuple[Held, tuple[Leg, ...]]] = {}  #: by id, with what was counted

    def admit(self, held: Held, covering: Covering, reason: str) -> None:
        """Count a call in every balance, or in none. Raises StoreUnavailable for the first budget that lets no more through."""
        for budget, key, _ in covering.budgets:
            if budget.hard and budget.limit is not None:
                asked = asked_of(budget.measure, held.hold)
                if asked != 0 and (asked is None or self.used(key) + asked > budget.when_away):
                    raise StoreUnavailable(
                        f"store: Redis is not there ({reason}); until it is back the {budget.window} budget of {budget.scope} "
                        f"{key.id or key.project or 'all'!r} lets this gateway admit no more (when_away)"
                    )
        self._count(held.hold, held.legs, 1)
        self.admitted[held.hold.id] = held, held.legs

    def give_back(self, hold_id: str) -> None:
        """What came to nothing leaves its part to others."""
        if (admitted := self.admitted.pop(hold_id, None)) is not None:
            held, legs = admitted
            self._count(held.hold, legs, -1)

    def used(self, key: BalanceKey) -> int:
        return self._used.get(key, 0)

    def anew(self) -> None:
        """Redis is back: nothing is used any more."""
        self.admitted.clear()
        self._used.clear()

    def _count(self, hold: Hold, legs: tuple[Leg, ...], sign: int) -> None:
        for leg in legs:
            self._used[leg.key] = self.used(leg.key) + sign * (leg.asked(hold) or 0)
