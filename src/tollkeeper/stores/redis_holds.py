"""Reservations in Redis: one step over all budgets of a slot, in each slot of a call or in none.

What this process holds is kept here too, so that it can be asserted again in a Redis that has forgotten it, and so that a hard
budget may go on by what it declares (`when_away`) while Redis is away.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from threading import Lock
from typing import Any, Final

import msgspec

from tollkeeper.book import Budgets, asked_of, grant_of, refused, standing_of
from tollkeeper.errors import ConfigError, Conflict, StoreUnavailable
from tollkeeper.ledger import BalanceKey, Shape
from tollkeeper.stores.journal import Journal
from tollkeeper.stores.redis_apply import Doubted, Shared, pairs
from tollkeeper.stores.redis_batch import MINUTE_US, window_at
from tollkeeper.stores.redis_keys import GLOBAL, GLOBAL_SCOPES, balance_tag, shape_name, tag_of
from tollkeeper.stores.redis_legs import (
    Covering,
    Held,
    Leg,
    Numbers,
    balances_of,
    hold_in,
    legs_of,
    numbers_of,
)
from tollkeeper.stores.redis_link import Ask, Script
from tollkeeper.stores.redis_slots import open_slot
from tollkeeper.values import Budget, Entry, Grant, Hold, Scopes, Standing

#: The largest amount that a script compares exactly.
AMOUNT_MAX: Final = 2**53 - 1
#: How often a reservation opens its slots and tries again.
OPENINGS_MAX: Final = 5
PAGE: Final = 500
#: Calls whose budgets are remembered.
COVERING_MAX: Final = 10_000
_reserve: Final = Script("reserve")
_void: Final = Script("void")
_json: Final = msgspec.json.Encoder().encode


class Holds:
    """`epoch()`, `applied(tag)`: the epoch in which this process has recovered last, the last row that a slot has of it."""

    def __init__(
        self, shared: Shared, journal: Journal, *, epoch: Callable[[], str], applied: Callable[[str], int]
    ) -> None:
        self._shared, self._journal = shared, journal
        self._epoch, self._applied = epoch, applied
        self._rules: tuple[Budgets, dict[tuple[Scopes, str, int], Covering]] = Budgets(), {}  # replaced together
        self._hard = False
        self._lock = Lock()
        self._owner = f"#{secrets.token_hex(8)}"  # of what this process holds; the journal may have had other owners
        self._held: dict[str, Held] = {}
        self._gone: dict[str, Held] = {}  # must not stand in Redis, which has not answered
        self._late: dict[str, Held] = {}  # admitted while it was away, and not told to it yet
        self._away: dict[BalanceKey, int] = {}  # how much that is

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return self._rules[0].shapes

    @property
    def hard(self) -> bool:
        """Whether any budget refuses calls."""
        return self._hard

    def take(self, budgets: Iterable[Budget]) -> None:
        """Replace the limits. Raises ConfigError for one that no script could compare exactly."""
        budgets = tuple(budgets)
        for budget in budgets:
            if budget.limit is not None and budget.limit > AMOUNT_MAX:
                raise ConfigError(
                    f"budgets: the limit of the {budget.window} budget of {budget.scope} is above what a Redis store compares "
                    f"exactly; expected at most {AMOUNT_MAX} (usd: 9007199.254740991)"
                )
        self._rules = Budgets(budgets), {}
        self._hard = any(budget.hard and budget.limit is not None for budget in budgets)

    # ── reserve ──

    async def reserve(self, hold: Hold) -> Grant:
        """`Store.reserve`."""
        lived = self._held.get(hold.id)
        if lived is not None and lived.hold != hold:
            raise Conflict(f"hold {hold.id!r} exists with other contents; use a new id")
        covering = self.covering(hold.scopes, hold.model, hold.at_us)
        held = lived if lived is not None else Held(hold, legs_of(covering, hold))
        if not held.legs:
            await self._intend(held)
            return grant_of([])
        if self._shared.link.state != "ready" and (away := await self._reserve_away(held, covering)) is not None:
            return away
        self._held[hold.id] = held
        try:
            numbers = await self._reserve_in_all(held)
        except StoreUnavailable:
            self._held.pop(hold.id, None)
            self._gone[hold.id] = held
            raise
        except Exception:
            if lived is None:
                self._held.pop(hold.id, None)
            raise
        return grant_of(balances_of(covering, numbers))

    async def _reserve_in_all(self, held: Held) -> Numbers:
        """Reserve in every slot, or in none. Raises BudgetExceeded, RateLimited, Conflict, StoreUnavailable."""
        link, slots = self._shared.link, held.slots
        for _ in range(OPENINGS_MAX):
            answers = await link.asks([self._ask(held, tag, legs) for tag, legs in slots.items()])
            numbers: Numbers = {}
            granted, closed, failures = list[str](), list[str](), list[Exception]()
            for (tag, legs), answer in zip(slots.items(), answers, strict=True):
                match answer[0]:
                    case b"held" | b"known":
                        granted.append(tag)
                        numbers |= numbers_of(legs, answer[1:])
                    case b"refused":
                        failures.append(
                            self._refusal(held.hold, legs[int(answer[1]) - 1], numbers_of(legs, answer[2:]))
                        )
                    case b"conflict":
                        failures.append(Conflict(f"hold {held.hold.id!r} exists with other contents; use a new id"))
                    case b"behind":
                        failures.append(
                            self._doubted(f"Redis has row {answer[1].decode()} of this journal, and had more")
                        )
                    case _:
                        closed.append(tag)
            if (failures or closed) and granted:
                await link.asks([self._release(held, tag) for tag in granted])
            if failures:
                raise failures[0]
            if not closed:
                return numbers
            await asyncio.to_thread(self._open, held.hold.scopes.project, {tag: slots[tag] for tag in closed})
        raise StoreUnavailable("store: the slots of this call's budgets cannot be opened just now; try again")

    def _doubted(self, reason: str) -> Doubted:
        self._shared.link.tell("doubted", reason)
        return Doubted(f"store: {reason}; it is checked before anything else is admitted")

    def _open(self, project: str, slots: dict[str, list[Leg]]) -> None:
        self._shared.register([project])
        for tag, legs in slots.items():
            try:
                open_slot(self._shared, tag, self._epoch(), [leg.key.shape for leg in legs])
            except Doubted as error:
                self._shared.link.tell("doubted", str(error))
                raise

    def _ask(self, held: Held, tag: str, legs: Iterable[Leg], *, whatever: bool = False) -> Ask:
        hold, shared = held.hold, self._shared
        names = list(shared.keys.slot(tag))
        args: list[Any] = [
            self._epoch(), self._journal.id, 0 if tag == GLOBAL else self._applied(tag), held.field(tag), _json(hold),
            hold.deadline_us // 1000, shared.deadlines.hold(hold.deadline_us), "1" if whatever else "", self._owner,
        ]  # fmt: skip
        for leg in legs:
            place = shared.places.balance(leg.key, leg.end_us)
            names += place.keys
            asked = "" if leg.asked is None else min(leg.asked, AMOUNT_MAX)
            args += (shape_name(leg.key.shape), asked, "" if leg.limit is None else leg.limit, *place.deadlines)
        return _reserve(names, args)

    def _release(self, held: Held, tag: str) -> Ask:
        return _void([self._shared.keys.holds(tag), self._shared.keys.due(tag)], [held.field(tag)])

    def covering(self, scopes: Scopes, model: str, at_us: int) -> Covering:
        """Remembered: no window begins within a minute."""
        budgets, remembered = self._rules
        name = (scopes, model, at_us // MINUTE_US)
        found = remembered.get(name)
        if found is None:
            found = []
            for budget, shape, project, id in budgets.covering(scopes, model):
                start_us, end_us = window_at(shape.window, shape.timezone, at_us)
                found.append((budget, BalanceKey(shape, project, id, start_us), end_us))
            if len(remembered) >= COVERING_MAX:
                remembered.clear()
            remembered[name] = found
        return found

    def _refusal(self, hold: Hold, leg: Leg, numbers: Numbers) -> Exception:
        for budget, balance in balances_of(self.covering(hold.scopes, hold.model, hold.at_us), numbers):
            if balance.key == leg.key and budget.hard:
                return refused(standing_of(budget, balance), leg.asked, hold)
        return StoreUnavailable("store: the budgets have changed meanwhile; try again")

    # ── while Redis is away ──

    async def _reserve_away(self, held: Held, covering: Covering) -> Grant | None:
        """Admit what every hard budget lets each gateway admit now. Raises StoreUnavailable. None: Redis is there again."""
        with self._lock:
            if self._shared.link.state == "ready":
                return None
            if held.hold.id not in self._held:
                for budget, key, _ in covering:
                    if budget.hard and budget.limit is not None:
                        used, asked = self._away.get(key, 0), asked_of(budget, held.hold)
                        if asked != 0 and (asked is None or used + asked > budget.when_away):
                            raise StoreUnavailable(
                                f"store: Redis is not there ({self._shared.link.reason}); until it is back the {budget.window} "
                                f"budget of {budget.scope} {key.id or key.project or 'all'!r} lets this gateway admit no more "
                                "(when_away)"
                            )
                for leg in held.legs:
                    self._away[leg.key] = self._away.get(leg.key, 0) + (leg.asked or 0)
                self._held[held.hold.id] = self._late[held.hold.id] = held
        await self._intend(held)
        return grant_of(balances_of(covering, {leg.key: (0, self._away.get(leg.key, 0)) for leg in held.legs}))

    async def _intend(self, held: Held) -> None:
        """Make a hold that Redis does not know safe in the journal."""
        self._held[held.hold.id] = held
        try:
            await self._journal.reserve(held.hold)
        except BaseException:
            self._held.pop(held.hold.id, None)
            raise

    # ── the end of a hold ──

    async def void(self, hold_id: str) -> None:
        """`Store.void`."""
        held = self._held.pop(hold_id, None)
        if held is None:
            return
        await self._journal.void(hold_id)
        if held.legs:
            if self._shared.link.state != "ready" or hold_id in self._late:  # it may be asserted again just now
                self._gone[hold_id] = held
            try:
                await self._shared.link.asks([self._release(held, tag) for tag in held.slots])
            except StoreUnavailable:
                self._gone[hold_id] = held

    async def let_go(self, hold: Hold) -> None:
        """End another gateway's hold, for which nothing is owed any more."""
        held = Held(hold, ())
        tags = (tag_of(hold.scopes.project), GLOBAL)
        await self._shared.link.asks([self._release(held, tag) for tag in tags])

    def ends(self, entry: Entry) -> bool:
        """Whether an entry ends a hold of this process: the one of its id, if it is its own project's."""
        held = self._held.get(entry.id)
        return held is not None and held.hold.scopes.project == entry.scopes.project

    def settled(self, entry: Entry) -> bool:
        """An entry is safe in the journal: Redis lets go of its hold when it is applied. Whether the hold covers it until then."""
        if entry.by is not None or not self.ends(entry):
            return False
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
        slots: dict[str, list[Shape]] = {}
        for _, key, _ in covering:
            slots.setdefault(balance_tag(key), []).append(key.shape)
        await asyncio.to_thread(self._list_and_keep, [scopes.project], slots)
        keys = [key for _, key, _ in covering]
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
        shared = self._shared
        unheard = [tag for tag in slots if tag not in shared.shapes]
        answers = shared.link.run(*(Ask(("SMEMBERS", shared.keys.shapes(tag))) for tag in unheard))
        for tag, answer in zip(unheard, answers, strict=True):
            shared.heard(tag, sorted(answer))
        for tag, shapes in slots.items():
            if not shared.shapes[tag].issuperset(shapes):
                open_slot(shared, tag, self._epoch(), shapes)

    def live(self, tags: Iterable[str]) -> list[Hold]:
        """Holds that stand in Redis, of all gateways; on a thread."""
        keys = self._shared.keys
        answers = self._shared.link.run(*(Ask(("HVALS", keys.holds(tag))) for tag in (*tags, GLOBAL)))
        holds = {hold.id: hold for found in answers for hold in map(hold_in, found)}
        return list(holds.values())

    def dead(self, tags: Iterable[str], before_us: int) -> list[Hold]:
        """Holds in Redis whose deadline is before an instant; on a thread."""
        keys = self._shared.keys
        found: dict[str, Hold] = {}
        tags = [*tags, GLOBAL]
        due = self._shared.link.run(
            *(Ask(("ZRANGEBYSCORE", keys.due(tag), "-inf", before_us // 1000, "LIMIT", 0, PAGE)) for tag in tags)
        )
        for tag, fields in zip(tags, due, strict=True):
            if fields:
                (texts,) = self._shared.link.run(Ask(("HMGET", keys.holds(tag), *fields)))
                found |= {hold.id: hold for hold in (hold_in(text) for text in texts if text is not None)}
        return list(found.values())

    # ── after Redis was away ──

    def recovery(self) -> HoldsRecovery:
        """To be begun before the journal is read."""
        return HoldsRecovery(self, set(self._held))

    def reassert(self, before: AbstractSet[str]) -> None:
        """Make every hold of this process stand in Redis, and none that it has given up; on a thread.

        `before`: ids of those that stood before the journal was read. An old Redis may have others: they have ended since.
        """
        held = [each for each in list(self._held.values()) if each.legs]
        self._shared.register({each.hold.scopes.project for each in held})
        tags = self._shared.projects()
        self.keep(tags)
        found = self._own(tags)
        for each in held:
            self._keep_all(each)
        standing = before | {each.hold.id for each in held}
        self._run(
            [
                _void([self._shared.keys.holds(tag), self._shared.keys.due(tag)], fields)
                for tag, ids in found.items()
                if (fields := [field for field, id in ids.items() if id not in standing])
            ]
        )
        self._run([self._ask(each, *slot, whatever=True) for each in held for slot in each.slots.items()])
        self._let_go()

    def late(self) -> None:
        """The same for what was admitted until Redis was ready; on a thread."""
        with self._lock:
            late = [held for id, held in self._late.items() if held.legs and id in self._held]
            self._away.clear()
        for each in late:
            self._keep_all(each)
        self._run([self._ask(each, *slot, whatever=True) for each in late for slot in each.slots.items()])
        self._late.clear()
        self._let_go()

    def _own(self, tags: Iterable[str]) -> dict[str, dict[str, str]]:
        """What Redis has of this process: slot → field → the hold's id."""
        keys, tags = self._shared.keys, [*tags, GLOBAL]
        found: dict[str, dict[str, str]] = {}
        answers = self._shared.link.run(*(Ask(("HGETALL", keys.holds(tag))) for tag in tags))
        for tag, texts in zip(tags, answers, strict=True):
            found[tag] = {
                field.decode(): hold_in(text).id
                for field, text in pairs(texts).items()
                if text.partition(b"\n")[0].endswith(self._owner.encode())
            }
        return found

    def _let_go(self) -> None:
        """Have Redis forget what was given up while it did not answer, or was told again."""
        gone, self._gone = self._gone, {}
        try:
            self._run(
                [self._release(each, tag) for id, each in gone.items() if id not in self._held for tag in each.slots]
            )
        except StoreUnavailable:
            self._gone = gone | self._gone
            raise

    def _run(self, asks: Sequence[Ask]) -> None:
        for at in range(0, len(asks), PAGE):
            self._shared.link.run(*asks[at : at + PAGE])

    def _keep_all(self, held: Held) -> None:
        self._keep({tag: [leg.key.shape for leg in legs] for tag, legs in held.slots.items()})


class HoldsRecovery:
    """`redis_flush.Recovery`."""

    def __init__(self, holds: Holds, before: AbstractSet[str]) -> None:
        self._holds, self._before = holds, before

    def reassert(self) -> None:
        self._holds.reassert(self._before)

    def late(self) -> None:
        self._holds.late()
