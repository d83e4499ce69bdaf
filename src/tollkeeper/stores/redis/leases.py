"""This process's leases (`lease.py`), and what Redis knows of them.

Calls take of a lease in any thread. All that is said to Redis about leases is said by the thread that applies the journal, one
thing after the other: so what a lease is there never changes while something else about it is under way.

A lease has no deadline. What a gateway had reserved of it when it died are intents in its journal, and what it had settled are
rows there: whoever has the journal next books and applies them, and ends the leases then, and not before. Until then they
stand. A journal that never comes back may have spent all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Lock
from typing import Final, NamedTuple

from tollkeeper.ledger import BalanceKey, amount_of, ids_of
from tollkeeper.stores.redis.apply import Shared
from tollkeeper.stores.redis.ask import Ask, Script
from tollkeeper.stores.redis.batch import Leased, window_at
from tollkeeper.stores.redis.keys import FOREVER_S, GLOBAL, balance_tag, shape_name, tag_of
from tollkeeper.stores.redis.lease import SCARCE_IN, Lease, Wish
from tollkeeper.stores.redis.legs import Leg, Numbers
from tollkeeper.stores.redis.slots import open_slot
from tollkeeper.values import Entry, Hold

_lease: Final = Script("lease")
#: A gateway's lease grows by at most the part of what is left that is one in so many, for each gateway.
SHARE_IN: Final = 2
#: A wish that is answered with "scarce" is followed by another one.
WISHES_MAX: Final = 2


class Part(NamedTuple):
    """What applying a row takes off a lease."""

    key: BalanceKey
    amount: int


class _Kept(NamedTuple):
    lease: Lease
    end_us: int


class Leases:
    """`wanted()` is called, in any thread, when `tend` has something to do."""

    def __init__(self, shared: Shared, journal: str, *, epoch: Callable[[], str], wanted: Callable[[], None]) -> None:
        self._shared, self._journal = shared, journal
        self._epoch, self._wanted = epoch, wanted
        self._lock = Lock()
        self._leases: dict[BalanceKey, _Kept] = {}
        self._calls: dict[str, tuple[tuple[BalanceKey, int], ...]] = {}  # hold's id → what it has taken
        # Journal's row → its project's tag, what is yet to be applied.
        self._parts: dict[int, tuple[str, list[Part]]] = {}
        self._seen: Numbers = {}

    # ── for calls ──

    def take(self, hold: Hold, legs: tuple[Leg, ...]) -> tuple[Leg, ...]:
        """Hold what leases pay for; the legs that Redis must be asked for."""
        if not any(leg.lease for leg in legs):
            return legs
        taken, rest = list[tuple[BalanceKey, int]](), list[Leg]()
        now_ms, wants = self._shared.ticks_ms(), False
        with self._lock:
            for leg in legs:
                asked = leg.asked(hold)
                if not leg.lease or not asked or leg.limit is None:
                    rest.append(leg)
                    continue
                kept = self._leases.get(leg.key)
                if kept is None:
                    kept = self._leases[leg.key] = _Kept(Lease(leg.lease, leg.limit), leg.end_us)
                kept.lease.change(leg.lease, leg.limit)
                wanted = kept.lease.wanted
                if kept.lease.take(asked, now_ms):
                    taken.append((leg.key, asked))
                else:
                    rest.append(leg)
                wants = wants or (kept.lease.wanted and not wanted)
            if taken:
                self._calls[hold.id] = tuple(taken)
        if wants:
            self._wanted()
        return tuple(rest)

    def void(self, hold_id: str) -> None:
        """A call came to nothing."""
        with self._lock:
            for key, asked in self._calls.pop(hold_id, ()):
                self._leases[key].lease.void(asked)

    def settled(self, seq: int, entry: Entry) -> None:
        """A call is safe in the journal as this row."""
        with self._lock:
            parts = []
            for key, asked in self._calls.pop(entry.id, ()):
                part = self._leases[key].lease.settle(asked, _spent(key, entry))
                if part:
                    parts.append(Part(key, part))
            if parts:
                self._parts[seq] = tag_of(entry.scopes.project), parts

    def of(self, hold_id: str) -> list[BalanceKey]:
        """Balances of which a call has taken by a lease."""
        return [key for key, _ in self._calls.get(hold_id, ())]

    def numbers(self) -> Numbers:
        """(spent, held) of leased balances, as last heard."""
        return self._seen

    def recall(self) -> None:
        """Limits have changed: what is free goes back, and is asked for under the new ones."""
        with self._lock:
            for kept in self._leases.values():
                kept.lease.tell("recalled")
        self._wanted()

    # ── for the thread that applies ──

    def parts(self, rows: Iterable[int], tag: str) -> Leased:
        """What applying rows in a slot takes off leases: (field, the balance's key) → amount."""
        found: Leased = {}
        if not self._parts:
            return found
        with self._lock:
            for seq in rows:
                for part in self._parts.get(seq, ("", ()))[1]:
                    if balance_tag(part.key) == tag:
                        name = self._field(part.key), self._shared.keys.balance(part.key)
                        found[name] = found.get(name, 0) + part.amount
        return found

    def applied(self, rows: Iterable[int], tag: str) -> None:
        """They are applied there."""
        with self._lock:
            for seq in rows:
                if seq in self._parts:
                    own, parts = self._parts.pop(seq)
                    left = []
                    for part in parts:
                        if balance_tag(part.key) == tag:
                            self._leases[part.key].lease.applied(part.amount)
                        else:
                            left.append(part)
                    if left:
                        self._parts[seq] = own, left

    def tend(self, gateways: int, look: bool) -> None:
        """Ask for what is wanted and give back what lies idle. Raises Doubted, StoreUnavailable."""
        for _ in range(WISHES_MAX):
            now_ms = self._shared.ticks_ms()
            with self._lock:
                for key in [key for key, kept in self._leases.items() if kept.lease.over]:
                    del self._leases[key]
                    self._seen.pop(key, None)
                wishes = [
                    (key, kept, wish)
                    for key, kept in self._leases.items()
                    if (wish := kept.lease.wish(now_ms, look)) is not None
                ]
            if not wishes:
                return
            answers = self._shared.link.run(*(self._ask(key, kept, wish, gateways) for key, kept, wish in wishes))
            closed = []
            with self._lock:
                for (key, kept, wish), answer in zip(wishes, answers, strict=True):
                    if answer[0] == b"leased":
                        kept.lease.answered(wish, int(answer[1]), answer[2] == b"1", now_ms)
                        self._seen[key] = int(answer[3]), int(answer[4])
                    else:
                        closed.append(key)
            for key in closed:  # a call will want it again, and then it is open
                open_slot(self._shared, balance_tag(key), self._epoch(), [key.shape])
            look = False

    def reassert(self, projects: Mapping[str, str], applied: Mapping[str, int], starred: Mapping[str, int]) -> None:
        """Redis is checked: rows up to these are applied; leases are to be what calls need of them, and none else is."""
        with self._lock:
            for seq, (own, parts) in list(self._parts.items()):
                left = [part for part in parts if seq > _row(part, own, applied, starred)]
                for part in parts:
                    if part not in left:
                        self._leases[part.key].lease.applied(part.amount)
                if left:
                    self._parts[seq] = own, left
                else:
                    del self._parts[seq]
            must = {key: (kept, kept.lease.doubted()) for key, kept in self._leases.items()}
        for key in must:
            open_slot(self._shared, balance_tag(key), self._epoch(), [key.shape])
        end_leases(self._shared, self._journal, projects, keep={self._field(key) for key in must})
        self._shared.link.run(*(self._ask(key, kept, Wish(amount, amount), 1) for key, (kept, amount) in must.items()))

    def _field(self, key: BalanceKey) -> str:
        return f"{self._journal} {self._shared.keys.balance(key).rpartition('}:')[2]}"

    def _ask(self, key: BalanceKey, kept: _Kept, wish: Wish, gateways: int) -> Ask:
        shared, tag = self._shared, balance_tag(key)
        limit, scarce = ("", 0) if wish.limit is None else (wish.limit, wish.limit // SCARCE_IN)
        keys = shared.keys
        names = [keys.cursor(tag), keys.shapes(tag), keys.leases(tag), keys.index(tag), keys.balance(key)]
        return _lease(
            names,
            [
                self._epoch(), shape_name(key.shape), self._field(key), wish.least, wish.most, limit,
                SHARE_IN * max(1, gateways), scarce, shared.deadlines.balance(kept.end_us), FOREVER_S,
            ],
        )  # fmt: skip


def end_leases(shared: Shared, journal: str, projects: Iterable[str], keep: Iterable[str] = ()) -> None:
    """End the leases of a journal, all of whose rows are applied; on a thread. `projects`: their tags."""
    keys, tags, keep = shared.keys, [*projects, GLOBAL], set(keep)
    found = shared.link.run(*(Ask(("HKEYS", keys.leases(tag))) for tag in tags))
    asks = []
    for tag, fields in zip(tags, found, strict=True):
        for field in (each.decode() for each in fields):
            owner, _, name = field.partition(" ")
            if owner == journal and field not in keep:
                names = [keys.cursor(tag), keys.shapes(tag), keys.leases(tag), keys.index(tag), keys.of(tag, name)]
                asks.append(_lease(names, ["", "", field, 0, 0, "", 1, 0, FOREVER_S, FOREVER_S]))
    if asks:
        shared.link.run(*asks)


def _spent(key: BalanceKey, entry: Entry) -> int:
    """What an entry adds to a balance."""
    start_us, _ = window_at(key.shape.window, key.shape.timezone, entry.at_us)
    if start_us != key.start_us or (key.project, key.id) not in ids_of(key.shape.scope, entry.scopes, entry.model):
        return 0
    return max(0, amount_of(key.shape.measure, entry))


def _row(part: Part, own: str, applied: Mapping[str, int], starred: Mapping[str, int]) -> int:
    tag = balance_tag(part.key)
    return starred.get(own, 0) if tag == GLOBAL else applied.get(tag, 0)
