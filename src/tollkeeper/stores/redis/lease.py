"""One gateway's slice of a hard budget, which it reserves from without asking Redis. Pure: no Redis, no clock, no lock.

In Redis a lease is held of its balance as a whole. Here it is what calls hold now (`live`), what calls have spent that Redis does
not know yet (`owed`), and the rest, which is free:

    Redis    spent + held ≤ limit,   held = other holds + leases
    here     granted = live + owed + free

A call that is settled goes from `live` to `owed`; when its entry is applied, as much of the lease becomes spent, in one step.
So whatever happens, Redis has at least what is spent and held in truth, and never more than the limit.

    state     calls take   event → state
    none      nothing      granted → leased    scarce → direct
    leased    what is free granted → leased    scarce → direct    idle, recalled, doubted → none
    direct    nothing      again → none        recalled, doubted → none

`scarce`: little of the budget is left. It must not lie idle with gateways: each gives back what is free, and calls ask Redis.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

State = Literal["none", "leased", "direct"]
Event = Literal["granted", "scarce", "idle", "again", "recalled", "doubted"]
#: (state, event) → state; what is not here changes nothing.
LEASE_LIFE: Final[dict[tuple[State, Event], State]] = {
    ("none", "granted"): "leased",
    ("none", "scarce"): "direct",
    ("leased", "granted"): "leased",
    ("leased", "scarce"): "direct",
    ("leased", "idle"): "none",
    ("leased", "recalled"): "none",
    ("leased", "doubted"): "none",
    ("direct", "again"): "none",
    ("direct", "recalled"): "none",
    ("direct", "doubted"): "none",
}
#: Milliseconds without a call after which what is free is given back.
IDLE_MS: Final = 1000
#: Milliseconds for which calls ask Redis where little is left.
DIRECT_MS: Final = 1000
#: The part of a limit below which what remains is little: one in so many.
SCARCE_IN: Final = 10


class Wish(NamedTuple):
    """What a gateway asks of Redis: that its lease be at least and at most so much."""

    least: int
    most: int
    limit: int | None = None  #: the budget's; None: it only gives back


class Lease:
    """Of one balance. `size`: how much shall be free; `limit`: the budget's."""

    __slots__ = ("again_ms", "granted", "limit", "live", "owed", "size", "state", "used_ms", "wanted")

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        self.state: State = "none"
        self.granted = self.live = self.owed = 0
        self.wanted = False  #: calls could not take of it, or soon cannot
        self.used_ms = self.again_ms = 0

    @property
    def free(self) -> int:
        return self.granted - self.live - self.owed

    @property
    def over(self) -> bool:
        """Whether nothing of it is left to be told."""
        return self.state == "none" and self.granted == 0 and not self.wanted

    # ── calls ──

    def take(self, asked: int, now_ms: int) -> bool:
        """Hold an amount; False: Redis must be asked."""
        self.used_ms = now_ms
        if self.state != "leased":
            self.wanted = self.wanted or self.state == "none"
            return False
        free = self.free
        if free - asked < self.size // 2:
            self.wanted = True
        if asked > free:
            return False
        self.live += asked
        return True

    def void(self, asked: int) -> None:
        """A call came to nothing."""
        self.live -= asked

    def settle(self, asked: int, spent: int) -> int:
        """A call is booked here: how much of the lease becomes spent when Redis hears of it."""
        part = min(asked, spent)
        self.live -= asked
        self.owed += part
        return part

    def applied(self, part: int) -> None:
        """Redis has heard of it."""
        self.owed -= part
        self.granted -= part

    def change(self, size: int, limit: int) -> None:
        """Calls come under another budget: what was granted under the one before is not for them."""
        if (size, limit) != (self.size, self.limit):
            self.tell("recalled")
            self.size, self.limit = size, limit

    # ── Redis ──

    def tell(self, event: Event) -> None:
        self.state = LEASE_LIFE.get((self.state, event), self.state)

    def wish(self, now_ms: int, look: bool) -> Wish | None:
        """What to ask of Redis now. `look`: also where nothing is needed, to hear how much is left."""
        if self.state == "direct" and now_ms >= self.again_ms:
            self.tell("again")
        if self.state == "leased" and now_ms - self.used_ms >= IDLE_MS:
            self.tell("idle")
            self.wanted = False
        if self.state != "leased" and self.free:
            self.granted = self.live + self.owed  # before Redis hears it: nobody takes of it any more
            return Wish(self.granted, self.granted)
        if self.state == "direct" or not (self.wanted or (look and self.state == "leased")):
            return None
        most = self.live + self.owed + self.size if self.wanted else self.granted
        self.wanted = False
        return Wish(self.granted, max(most, self.granted), self.limit)

    def answered(self, wish: Wish, granted: int, scarce: bool, now_ms: int) -> None:
        """What Redis said to a wish."""
        self.granted = granted
        if wish.limit != self.limit:  # it only gave back, or the limit is another one by now: nobody takes of it
            return
        if scarce:
            self.again_ms = now_ms + DIRECT_MS
        self.tell("scarce" if scarce else "granted")

    def doubted(self) -> int:
        """Redis is asked to hold what it must again; how much that is. All that was free is given up."""
        self.tell("doubted")
        self.granted = self.live + self.owed
        self.wanted = False
        return self.granted
