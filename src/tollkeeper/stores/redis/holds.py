"""Reservations in Redis: one step over all budgets of a slot, in each slot of a call or in none.

What this process holds is kept here too, so that it can be asserted again in a Redis that has forgotten it, and so that a hard
budget may go on by what it declares (`when_away`) while Redis is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock
from typing import Final

from tollkeeper.book import grant_of, refused, standing_of
from tollkeeper.errors import Conflict, StoreUnavailable
from tollkeeper.ledger import Shape
from tollkeeper.stores.redis.apply import Doubted, Shared, rows_of, shapes_of
from tollkeeper.stores.redis.ask import Ask
from tollkeeper.stores.redis.away import Allowance
from tollkeeper.stores.redis.holding import PAGE, Holding
from tollkeeper.stores.redis.keys import GLOBAL, GLOBAL_SCOPES, tag_of
from tollkeeper.stores.redis.leases import Leases
from tollkeeper.stores.redis.legs import (
    Covering,
    Held,
    Leg,
    Numbers,
    Rules,
    Slots,
    balances_of,
    checked,
    numbers_of,
    shapes_in,
    slots_of,
)
from tollkeeper.stores.redis.link import State
from tollkeeper.stores.redis.slots import open_slot
from tollkeeper.stores.sqlite.journal import Journal
from tollkeeper.values import Budget, Entry, Grant, Hold, Scopes, Standing

#: How often a reservation opens its slots and tries again.
OPENINGS_MAX: Final = 5


class Holds:
    """`epoch()`, `applied(tag)`: the epoch in which this process has recovered last, the last row that a slot has of it.
    `flushed()`: as the flusher's, which calls `extend` before it is done. `look(hard)`: looks at the servers; raises
    StoreUnavailable where hard budgets, if there are any, would not hold.
    """

    def __init__(
        self, shared: Shared, journal: Journal, leases: Leases, *, epoch: Callable[[], str],
        applied: Callable[[str], int], flushed: Callable[[], Future[None]], look: Callable[[bool], None],
    ) -> None:  # fmt: skip
        self._shared, self._journal, self._leases = shared, journal, leases
        self._epoch = epoch
        self.stand = Holding(shared, journal.id, epoch=epoch, applied=applied)
        self._rules, self._hard = Rules(()), False
        self._lock = Lock()
        self._held: dict[str, Held] = {}
        self._asked: set[str] = set()  # ids of fresh ones that Redis has not answered for
        self._gone: dict[str, Held] = {}  # must not stand in Redis, which has not answered
        self._flushed, self._look = flushed, look
        self._before: AbstractSet[str] = frozenset()  # ids of those that stood before the journal was read
        self._asserting = self._stale = False
        self._away = Allowance()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self._rules.shapes

    def take(self, budgets: Iterable[Budget]) -> None:
        """Replace the limits; `cover` live holds then. Raises ConfigError as `checked`."""
        budgets = checked(budgets)
        self._rules = Rules(budgets)
        self._leases.recall()
        self._hard = any(budget.hard and budget.limit is not None for budget in budgets)

    async def cover(self) -> None:
        """Have live holds count on budgets that are new to them: now, or when Redis is back."""
        with suppress(StoreUnavailable):
            try:
                await asyncio.to_thread(self._open_for_all)  # here, where only this call waits for it
            finally:
                self._stale = True
            while self._stale:  # it may have been read before
                await asyncio.wrap_future(self._flushed())

    def _open_for_all(self) -> None:
        """Open the slots that live holds need."""
        holds, slots = [held.hold for held in list(self._held.values())], dict[str, list[Shape]]()
        for hold in holds:
            for tag, shapes in shapes_in(self._covering(hold).slots).items():
                slots[tag] = list({*slots.get(tag, ()), *shapes})
        self._list_and_keep({hold.scopes.project for hold in holds}, slots)

    def extend(self) -> None:
        """The same, on the thread that applies the journal: what it asserts has not been applied. Raises StoreUnavailable."""
        if self._stale:
            self._stale, self._asserting = False, True  # who lets go of one from now on says so again afterwards
            self._assert(self._extended())

    def _extended(self) -> list[Held]:
        """Those that were. One that Redis is asked for looks itself when it is answered, which might be a refusal."""
        live = [(id, held) for id, held in list(self._held.items()) if id not in self._asked]
        live = [(id, held) for id, held in live if self._held.get(id) is held]
        return [held for id, held in live if held.extend(self._covering(held.hold).legs, self._leases.of(id))]

    # ── reserve ──

    async def reserve(self, hold: Hold) -> Grant:
        """`Store.reserve`."""
        lived = self._held.get(hold.id)
        if lived is not None and lived.hold != hold:
            raise Conflict(f"hold {hold.id!r} exists with other contents; use a new id")
        rules, covering = self._rules, self._covering(hold)
        held = lived if lived is not None else Held(hold, covering.legs, covering.slots)
        if held.legs and self._shared.link.state != "ready" and self._admit_away(held, covering):
            await self._intend(held)
            return grant_of(balances_of(covering, {leg.key: (0, self._away.used(leg.key)) for leg in held.legs}))
        if lived is None and (rest := self._leases.take(hold, held.legs)) != held.legs:
            held = Held(hold, rest, slots_of(rest))
        numbers = await self._reserve_in_redis(held, fresh=lived is None) if held.legs else {}
        if not held.legs or self._leases.of(hold.id):
            await self._intend(held)
        if rules is not self._rules:
            await self.cover()
        if covering.budgets and (leased := self._leases.numbers()):
            numbers = leased | numbers
        return grant_of(balances_of(covering, numbers))

    async def _reserve_in_redis(self, held: Held, fresh: bool) -> Numbers:
        """The part of a hold that no lease pays for."""
        if fresh:
            self._asked.add(held.hold.id)
        self._held[held.hold.id] = held
        try:
            return await self._reserve_in_all(held, fresh)
        except Exception as error:
            if fresh:
                self._held.pop(held.hold.id, None)
                self._leases.void(held.hold.id)
                if isinstance(error, StoreUnavailable):  # what was done is not known
                    await self._end(held)
            raise
        finally:
            if fresh:
                self._asked.discard(held.hold.id)

    async def _reserve_in_all(self, held: Held, fresh: bool) -> Numbers:
        """Reserve in every slot, or in none where it is fresh. Raises BudgetExceeded, RateLimited, Conflict, StoreUnavailable."""
        link, slots, again = self._shared.link, held.slots, False
        for _ in range(OPENINGS_MAX):
            if link.state != "ready":  # what was asked before says nothing of what Redis has after its recovery
                raise link.unavailable()
            answers = await link.asks([self.stand.ask(held, tag, slot) for tag, slot in slots.items()])
            numbers: Numbers = {}
            granted, closed, failures = list[str](), list[str](), list[Exception]()
            for (tag, slot), answer in zip(slots.items(), answers, strict=True):
                match answer[0]:
                    case b"held" | b"known":
                        granted.append(tag)
                        numbers |= numbers_of(slot.legs, answer[1:])
                    case b"refused":
                        failures.append(
                            self._refusal(held.hold, slot.legs[int(answer[1]) - 1], numbers_of(slot.legs, answer[2:]))
                        )
                    case b"conflict":
                        failures.append(Conflict(f"hold {held.hold.id!r} exists with other contents; use a new id"))
                    case b"behind":
                        failures.append(
                            self._doubted(f"Redis has row {answer[1].decode()} of this journal, and had more")
                        )
                    case _:
                        closed.append(tag)
            if (failures or closed) and granted and fresh:
                await link.asks([self.stand.release(held, tag) for tag in granted])
            if failures and granted and GLOBAL not in granted and fresh and not again:
                again = True  # what stood in its way may be calls that their own projects are refusing just now
                continue
            if failures:
                raise failures[0]
            if not closed:
                return numbers
            await asyncio.to_thread(self._open, held.hold.scopes.project, {tag: slots[tag] for tag in closed})
        raise StoreUnavailable("store: the slots of this call's budgets cannot be opened just now; try again")

    def _doubted(self, reason: str) -> Doubted:
        self._shared.link.tell("doubted", reason)
        return Doubted(f"store: {reason}; it is checked before anything else is admitted")

    def _open(self, project: str, slots: Slots) -> None:
        self._shared.register([project])
        for tag, slot in slots.items():
            try:
                open_slot(self._shared, tag, self._epoch(), [leg.key.shape for leg in slot.legs])
            except Doubted as error:
                self._shared.link.tell("doubted", str(error))
                raise

    def covering(self, scopes: Scopes, model: str, at_us: int) -> Covering:
        return self._rules.covering(scopes, model, at_us)

    def _covering(self, hold: Hold) -> Covering:
        return self.covering(hold.scopes, hold.model, hold.at_us)

    def _refusal(self, hold: Hold, leg: Leg, numbers: Numbers) -> Exception:
        for budget, balance in balances_of(self._covering(hold), numbers):
            if balance.key == leg.key and budget.hard:
                return refused(standing_of(budget, balance), leg.asked(hold), hold)
        return StoreUnavailable("store: the budgets have changed meanwhile; try again")

    # ── while Redis is away ──

    def _admit_away(self, held: Held, covering: Covering) -> bool:
        """Admit a call while Redis is away; False: it is back. Raises StoreUnavailable where a hard budget does not let it."""
        with self._lock:  # `ready` sees what was admitted before it; after it nothing is
            if self._shared.link.state == "ready":
                return False
            if held.hold.id not in self._held:
                self._away.admit(held, covering, self._shared.link.reason)
                self._held[held.hold.id] = held
            return True

    def _give_back(self, hold_id: str) -> None:
        with self._lock:
            self._away.give_back(hold_id)

    async def _intend(self, held: Held) -> None:
        """Make a hold that Redis does not know safe in the journal."""
        self._held[held.hold.id] = held
        try:
            await self._journal.reserve(held.hold)
        except Exception:  # who is cancelled lets go of it by its id
            self._held.pop(held.hold.id, None)
            self._leases.void(held.hold.id)
            self._give_back(held.hold.id)
            await self._end(held)
            raise

    # ── the end of a hold ──

    async def void(self, hold_id: str) -> None:
        """`Store.void`."""
        held = self._held.pop(hold_id, None)
        if held is None:
            return
        try:
            await self._journal.void(hold_id)
        except BaseException:  # it stands as before, for whoever tries again
            self._held.setdefault(hold_id, held)
            raise
        self._leases.void(hold_id)
        await self._end(held)
        self._give_back(hold_id)

    async def _end(self, held: Held) -> None:
        """Let go of a hold in every slot: now, or when Redis is back."""
        if held.legs:
            if self._shared.link.state != "ready" or self._asserting:  # it may be asserted again just now
                self._gone[held.hold.id] = held
            try:
                await self._shared.link.asks([self.stand.release(held, tag) for tag in held.slots])
            except StoreUnavailable:
                self._gone[held.hold.id] = held

    async def let_go(self, hold: Hold) -> None:
        """End another gateway's hold, for which nothing is owed any more; not while it stands for an entry in the slot without
        a project, to which a gateway that died had not brought it yet.
        """
        link, keys, tag = self._shared.link, self._shared.keys, tag_of(hold.scopes.project)
        rows = rows_of(await link.ask(Ask(("HGETALL", keys.cursor(tag)))))
        stars = await link.ask(Ask(("HMGET", keys.cursor(GLOBAL), "", *(f"{journal}@{tag}" for journal in rows))))
        if all(int(star or 0) >= row for star, row in zip(stars[1:], rows.values(), strict=True)):
            await link.asks(self.stand.end_of(hold.scopes.project, hold.id))

    def ends(self, entry: Entry) -> bool:
        """Whether an entry ends a hold of this process: the one of its id, if it is its own project's."""
        held = self._held.get(entry.id)
        return held is not None and held.hold.scopes.project == entry.scopes.project

    def settled(self, seq: int, entry: Entry) -> bool:
        """An entry is safe in the journal: Redis lets go of its hold when it is applied. Whether the hold covers it until then."""
        if entry.by is not None or entry.sign < 0 or not self.ends(entry):
            return False
        self._leases.settled(seq, entry)
        quote, quoted = (hold := self._held.pop(entry.id).hold).quote_nanos, hold.quote_usage
        spent = entry.charge.amount_nanos
        return (spent is None or (quote is not None and spent <= quote)) and (
            quoted is not None and entry.usage.tokens <= quoted.tokens
        )

    def due(self, now_us: int) -> list[Hold]:
        """Holds of this process past their deadline."""
        return [held.hold for held in list(self._held.values()) if held.hold.deadline_us <= now_us]

    # ── what stands ──

    async def standings(self, scopes: Scopes, model: str, at_us: int) -> list[Standing]:
        covering = self.covering(scopes, model, at_us)
        await asyncio.to_thread(self._list_and_keep, [scopes.project], shapes_in(covering.slots))
        keys = [key for _, key, _ in covering.budgets]
        answers = await self._shared.link.asks(
            [Ask(("HMGET", self._shared.keys.balance(key), "spent", "held")) for key in keys]
        )
        numbers = {key: (int(spent or 0), int(held or 0)) for key, (spent, held) in zip(keys, answers, strict=True)}
        return [standing_of(budget, balance) for budget, balance in balances_of(covering, numbers)]

    def keep(self, tags: Iterable[str]) -> None:
        """Open slots for every shape that is limited; on a thread."""
        own = [shape for shape in self.shapes if shape.scope not in GLOBAL_SCOPES]
        rest = [shape for shape in self.shapes if shape.scope in GLOBAL_SCOPES]
        self._keep(dict.fromkeys(tags, own) | {GLOBAL: rest})

    def _list_and_keep(self, projects: Iterable[str], slots: dict[str, list[Shape]]) -> None:
        """A slot that is open is one of a project that is listed: holds in it are found."""
        self._shared.register(projects)
        self._keep(slots)

    def _keep(self, slots: dict[str, list[Shape]]) -> None:
        """Open slots for shapes that they do not keep yet."""
        shared, known = self._shared, self._shared.shapes
        unheard = [tag for tag in slots if tag not in known]
        answers = shared.link.run(*(Ask(("SMEMBERS", shared.keys.shapes(tag))) for tag in unheard))
        known.update({tag: shapes_of(answer) for tag, answer in zip(unheard, answers, strict=True)})
        for tag, shapes in slots.items():
            if not known[tag].issuperset(shapes):
                open_slot(shared, tag, self._epoch(), shapes)

    # ── after Redis was away ──

    def begin(self) -> None:
        """`flush.Holds.begin`. Raises StoreUnavailable as `look`."""
        self._look(self._hard)
        self._before = set(self._held)

    def reassert(self) -> None:
        """Make every hold of this process stand in Redis, and none that it has given up: an old Redis may have others."""
        self._extended()
        held = [each for each in list(self._held.values()) if each.legs]
        self._shared.register({each.hold.scopes.project for each in held})
        tags = self._shared.projects()
        self.keep(tags)
        found = self.stand.own(tags)
        standing = self._before | {each.hold.id for each in held}
        gone = {tag: [field for field, id in ids.items() if id not in standing] for tag, ids in found.items()}
        self.stand.run(
            [
                self.stand.end(tag, fields[at : at + PAGE])
                for tag, fields in gone.items()
                for at in range(0, len(fields), PAGE)
            ]
        )
        self._assert(held)

    def ready(self, tell: Callable[[], State]) -> None:
        """The same for what was admitted meanwhile; when nothing is new, `tell` that Redis is ready."""
        done: set[str] = set()
        while True:
            with self._lock:
                late = [held for id, (held, _) in self._away.admitted.items() if id in self._held and id not in done]
                if not late:
                    if tell() == "ready":
                        self._away.anew()
                    return
            self._assert(late)
            done |= {held.hold.id for held in late}

    def applied_before(self, entries: Iterable[Entry]) -> None:
        """Rows that Redis had before this process heard that they are safe: `reassert` may have found their holds alive."""
        own = [(entry.scopes.project, entry.id) for entry in entries if entry.by is None]
        self.stand.run([ask for name in own for ask in self.stand.end_of(*name)])

    def _assert(self, held: Sequence[Held]) -> None:
        """Make holds stand that may be given up meanwhile."""
        self._asserting = True
        try:
            for each in held:
                self._keep(shapes_in(each.slots))
            self.stand.stand_again(held)
        finally:
            self._asserting = False
        self._let_go()

    def _let_go(self) -> None:
        """Have Redis forget what was given up while it did not answer, or was told again."""
        gone, self._gone = self._gone, {}
        asks = [
            self.stand.release(each, tag) for id, each in gone.items() if id not in self._held for tag in each.slots
        ]
        try:
            self.stand.run(asks)
        except StoreUnavailable:
            self._gone = gone | self._gone
            raise
